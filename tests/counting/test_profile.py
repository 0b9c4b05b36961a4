"""The profile's record: JSON as the command line promises it, and a table that a person can add up."""

import json
import re
from functools import cache

import pytest
import torch

from lw_retinanet.counting.profile import Profile, profile, with_head
from lw_retinanet.errors import ConfigError
from lw_retinanet.heads import PRESETS, HeadPlan, TowerPlan
from lw_retinanet.models.build import build

BLOCKS = ["C1", "C2", "C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7", "D3", "D4", "D5", "D6", "D7"]
LATENCY = {"fp32": {"median": 812.25, "p10": 800.0, "p90": 900.0}}


@cache
def _profile(preset: str, *, backbone: str = "resnet50", num_classes: int = 80, side: int = 800, width: int = 256) -> Profile:
    with torch.device("meta"):
        model = build(PRESETS[preset], num_classes=num_classes, backbone=backbone, width=width)
    return profile(model, name=preset, size_hw=(side, side))


def test_json_has_the_promised_keys() -> None:
    result = _profile("lw-v3").as_dict()
    assert list(result) == ["model", "size_hw", "num_classes", "macs", "flops", "params", "blocks"]
    assert (result["model"], result["size_hw"], result["num_classes"]) == ("lw-v3", [800, 800], 80)
    assert (result["macs"], result["flops"]) == (91_768_794_112, 2 * 91_768_794_112)
    assert list(result["blocks"]) == BLOCKS
    for name, block in result["blocks"].items():
        assert list(block) == ["macs", "params", "share"] + (["parts"] if name[0] == "D" else [])
        assert block["share"] == block["macs"] / result["macs"]
    assert list(result["blocks"]["D3"]["parts"]) == ["cls_tower", "cls_predict", "bbox_tower", "bbox_predict"]
    assert json.loads(json.dumps(result)) == result


def test_blocks_and_parts_add_up() -> None:
    result = _profile("lw-v2", num_classes=3).as_dict()
    for key in ("macs", "params", "share"):
        total = 1.0 if key == "share" else result[key]
        assert sum(block[key] for block in result["blocks"].values()) == pytest.approx(total, abs=1e-12)
        for block in result["blocks"].values():
            if "parts" in block:
                assert sum(part[key] for part in block["parts"].values()) == pytest.approx(block[key], abs=1e-12)


def test_latency_is_shown_only_where_it_was_measured() -> None:
    with torch.device("meta"):
        model = build(PRESETS["lw-v3"], num_classes=2, backbone="resnet18", width=16)
    measured = profile(model, name="small", size_hw=(64, 64), latency_ms=LATENCY)
    assert measured.as_dict()["latency_ms"] == LATENCY
    assert "Latency, fp32: 812.2 ms (p10 800.0, p90 900.0)." in measured.notes()
    assert not any("Latency" in line for line in _profile("lw-v3").lines())


@pytest.mark.parametrize(
    ("preset", "gain"),
    [
        ("lw-v1", "1.08x fewer MACs than retinanet (149.195 G); D3 alone: 1.19x fewer."),
        ("lw-v3", "1.63x fewer MACs than retinanet (149.195 G); D3 alone: 9.00x fewer."),
    ],
)
def test_gain_over_the_original_head(preset: str, gain: str) -> None:
    assert gain in _profile(preset).notes()


def test_the_original_head_claims_no_gain() -> None:
    full = _profile("retinanet")
    assert (full.original_macs, full.original_d3_macs) == (full.macs, full.blocks["D3"].macs)
    assert not any("fewer" in line for line in full.lines())


def test_another_head_is_counted_without_its_weights() -> None:
    with torch.device("meta"):
        model, light = (build(PRESETS[name], num_classes=7, backbone="resnet18", width=64) for name in ("retinanet", "lw-narrow"))
    found = with_head(model, PRESETS["lw-narrow"])
    size = (256, 192)
    assert profile(found, name="", size_hw=size) == profile(light, name="", size_hw=size)
    assert found.backbone is model.backbone
    assert all(parameter.is_meta for parameter in found.head.parameters())
    with pytest.raises(ConfigError, match="for a head 64 wide: a depthwise unit keeps its width, got 64 -> 8"):
        with_head(model, HeadPlan(cls={"P3": TowerPlan(units=("dw5x5",), width=8)}))


def test_gain_is_against_the_same_backbone_width_and_classes() -> None:
    light, full = (_profile(preset, backbone="mobilenet_v2", num_classes=7, side=333, width=64) for preset in ("lw-v3", "retinanet"))
    assert light.original_macs == full.macs
    assert light.original_d3_macs == full.blocks["D3"].macs


def test_notes_say_what_was_counted() -> None:
    text = "\n".join(_profile("lw-v3", num_classes=1, side=64, backbone="resnet18").notes())
    assert "64 x 64 pixels, 1 class: convolutions only; normalisation, activations, resizing, anchors and NMS are left out." in text
    assert "FLOPs = 2 x MACs" in text


def test_linear_layers_are_mentioned_where_they_are_counted() -> None:
    pytest.importorskip("timm")
    assert "convolutions and linear layers only" in _profile("lw-v3", backbone="timm:convnext_tiny", side=64).notes()[0]


def test_table_of_lw_v3() -> None:
    lines = _profile("lw-v3").lines()
    rows = {cells[0].strip(): cells[1:] for line in lines if len(cells := re.split(r"\s{2,}(?=\S)", line.rstrip())) >= 5}
    assert rows["D3"][:4] == ["7.178", "14.356", "0.721", "7.8%"]
    assert rows["total"] == ["91.769", "183.538", "38.636", "100.0%"]
    assert rows["D4"][2] == "6.463"
    assert rows["D5"][2] == "shared"
    # C4 is the largest block and fills the bar; C2 has 0.456 of it, 10.95 of 24 cells: 10 and 7.6 eighths, rounded to 8.
    assert rows["C4"][4] == "█" * 24
    assert rows["C2"][4] == "█" * 11
    assert sum(line.startswith("  cls tower ") for line in lines) == 5
    heading = next(line for line in lines if "GMACs" in line)
    assert heading.index("share") + len("share") == next(line for line in lines if line.startswith("total")).index("100.0%") + len("100.0%")


def test_plain_table_is_ascii_and_has_the_same_numbers() -> None:
    plain, drawn = _profile("lw-v3").lines(unicode=False), _profile("lw-v3").lines()
    assert all(line.isascii() for line in plain)
    assert [re.sub(r"[#-]+$", "", line).rstrip() for line in plain] == [re.sub(r"[█▏▎▍▌▋▊▉─]+$", "", line).rstrip() for line in drawn]


def test_small_models_do_not_round_to_nothing() -> None:
    lines = _profile("lw-v3", backbone="resnet18", num_classes=1, side=64, width=16).lines()
    total = next(line for line in lines if line.startswith("total")).split()[1]
    assert float(total) > 0
    assert len(total.replace(".", "").lstrip("0")) >= 5


def test_an_input_that_is_too_small_is_refused() -> None:
    with torch.device("meta"):
        model = build(PRESETS["retinanet"], num_classes=2, backbone="resnet18", width=16)
    with pytest.raises(ConfigError, match="positive"):
        profile(model, name="x", size_hw=(64, 0))


def test_a_notebook_shows_the_table() -> None:
    shown = _profile("lw-v3", backbone="resnet18", width=64, side=128)._repr_html_()
    assert shown.count("<tr>") == 1 + 15 + 1  # a header, C1..C5, P3..P7, D3..D7, the sum
    assert "fewer MACs than retinanet" in shown
