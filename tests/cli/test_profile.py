from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lw_retinanet.data.sample import CATEGORIES

BLOCKS = [f"C{level}" for level in range(1, 6)] + [f"{kind}{level}" for kind in "PD" for level in range(3, 8)]


def test_json_has_the_keys_of_the_contract(cli: Any) -> None:
    result = cli("profile", "lw-v3", "--json").json
    assert list(result) == ["model", "size_hw", "num_classes", "macs", "flops", "params", "blocks"]
    assert (result["model"], result["size_hw"], result["num_classes"]) == ("lw-v3", [800, 800], 80)
    assert list(result["blocks"]) == BLOCKS
    assert all({"macs", "params", "share"} <= set(block) for block in result["blocks"].values())
    assert result["flops"] == 2 * result["macs"]
    assert sum(block["macs"] for block in result["blocks"].values()) == result["macs"]
    assert sum(block["share"] for block in result["blocks"].values()) == pytest.approx(1)


def test_a_block_in_a_branch_by_name(cli: Any) -> None:
    result = cli("profile", "cls-dw5", "--json").json
    assert result["model"] == "cls-dw5"
    # P3 has 100 x 100 cells: class branch 5x5 depthwise, 4 x 1x1, 720 logits; the box branch is the original.
    assert result["blocks"]["D3"]["macs"] == (256 * 25 + 4 * 256 * 256 + 256 * 720 + (4 * 256 * 256 + 256 * 36) * 9) * 100 * 100


def test_settings_reach_the_count(cli: Any) -> None:
    result = cli("profile", "retinanet", "--size", "256", "320", "--classes", "3", "--backbone", "resnet18", "--width", "64", "--json").json
    assert (result["size_hw"], result["num_classes"]) == ([256, 320], 3)
    # D3 is 32 x 40 cells: 2 towers of 4 convolutions 64 -> 64, then 9 * 3 logits and 9 * 4 deltas, all 3x3.
    assert result["blocks"]["D3"]["macs"] == (8 * 64 * 64 * 9 + 64 * (27 + 36) * 9) * 32 * 40
    # The stem of a ResNet: 7x7, 3 -> 64, at half size.
    assert result["blocks"]["C1"]["macs"] == 7 * 7 * 3 * 64 * 128 * 160


@pytest.mark.parametrize(("arguments", "size_hw"), [(["--size", "256"], [256, 256]), (["--size", "256x320"], [256, 320])])
def test_forms_of_a_size(cli: Any, arguments: list[str], size_hw: list[int]) -> None:
    assert cli("profile", "lw-v3", *arguments, "--backbone", "resnet18", "--json").json["size_hw"] == size_hw


def test_stride_in_changes_the_count(cli: Any) -> None:
    one, three = (cli("profile", "lw-v3", "--size", "256", "--stride-in", stride, "--json").json["macs"] for stride in ("1x1", "3x3"))
    assert one < three


def test_one_anchor_saves_eight_ninths_of_the_predictions(cli: Any) -> None:
    nine, one = (cli("profile", "retinanet", "--anchors", number, "--json").json for number in ("nine", "one"))
    # 8 anchors fewer: 8 * (80 + 4) outputs of a 3x3 convolution over 256 channels, in every cell of P3..P7.
    cells = 100**2 + 50**2 + 25**2 + 13**2 + 7**2
    assert (nine["macs"], one["macs"]) == (149_194_714_112, 149_194_714_112 - 8 * 84 * 256 * 9 * cells)
    assert "1 anchor a cell" in cli("profile", "lw-v3", "--anchors", "one", "--size", "256").out
    assert "anchor a cell" not in cli("profile", "lw-v3", "--size", "256").out


def test_the_table_names_every_block(cli: Any) -> None:
    outcome = cli("profile", "lw-v3", "--size", "256", "--backbone", "mobilenet_v2")
    rows = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    assert [row for row in rows if row in BLOCKS] == BLOCKS
    assert "total" in rows
    assert "FLOPs = 2 x MACs" in outcome.out
    assert outcome.err == ""


def test_a_model_file_says_itself_what_it_is(cli: Any, trained: Path) -> None:
    for model in (trained, trained / "model.safetensors"):
        result = cli("profile", model, "--json").json
        assert (result["size_hw"], result["num_classes"]) == ([64, 64], len(CATEGORIES))
    assert "classes: only presets take this" in cli.refuses("profile", trained, "--classes", "3", unchanged=trained)


def test_a_chart_on_request(cli: Any, tmp_path: Path) -> None:
    outcome = cli("profile", "lw-v3", "--size", "256", "--plot", tmp_path / "new" / "cost.png")
    assert outcome.code == 0
    with Image.open(tmp_path / "new" / "cost.png") as chart:
        assert chart.width > 300


def test_latency(cli: Any, trained: Path) -> None:
    result = cli("profile", trained, "--latency", "--device", "cpu", "--json").json
    assert all(times["median"] > 0 for times in result["latency_ms"].values())


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["lw-v33"], ["'lw-v33' is no preset", "did you mean lw-v3?", "lw-narrow"]),
        (["both-narrow100"], ["'both-narrow100' is no preset", "did you mean both-narrow96?"]),
        (["lw-v3", "--backbone", "resnet51"], ["resnet51", "did you mean resnet50?"]),
        (["lw-v3", "--stride-in", "2x2"], ["stride_in", "3x3, 1x1"]),
        (["lw-v3", "--anchors", "1"], ["anchors='1'", "nine, one"]),
        (["lw-v3", "--size", "31"], ["size 31", "32 to 16384"]),
        (["lw-v3", "--size", "big"], ["--size big", "one side, or height and width"]),
        (["lw-v3", "--size", "0", "800"], ["size 0 800"]),
        (["lw-v3", "--plot", "cost.bmp"], ["cost.bmp", ".png"]),
        (["empty"], ["empty holds no model.safetensors"]),
        (["lw-v3", "--latency", "--device", "tpu9"], ["unknown device 'tpu9'"]),
    ],
)
def test_bad_input(cli: Any, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    line = cli.refuses("profile", *arguments, unchanged=tmp_path)
    assert all(part in line for part in parts), line
