"""``profile`` of torchvision's detectors, and what it proposes for a budget."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CONTRACT = ["model", "size_hw", "num_classes", "macs", "flops", "params", "blocks"]


def test_json_of_a_torchvision_model(cli: Any) -> None:
    result = cli("profile", "torchvision:retinanet_resnet50_fpn", "--json").json
    assert list(result) == [*CONTRACT, "ranking"]
    assert (result["model"], result["size_hw"], result["num_classes"]) == ("torchvision:retinanet_resnet50_fpn", [800, 800], 91)
    assert result["macs"] == 151_540_437_248
    assert sum(block["share"] for block in result["blocks"].values()) == pytest.approx(1)
    first = result["ranking"][0]
    assert (first["level"], first["branch"], first["macs"]) == ("P3", "cls", 42_462_720_000)


def test_classes_and_size_reach_it(cli: Any) -> None:
    result = cli("profile", "torchvision:ssd300_vgg16", "--classes", "4", "--size", "512", "--json").json
    assert (result["num_classes"], result["size_hw"]) == (4, [512, 512])
    assert result["blocks"]["D3"]["parts"]["cls_predict"]["macs"] == 64 * 64 * 512 * 16 * 9
    assert cli("profile", "torchvision:ssdlite320_mobilenet_v3_large", "--json").json["size_hw"] == [320, 320]


def test_the_table_of_a_two_stage_detector(cli: Any) -> None:
    outcome = cli("profile", "torchvision:maskrcnn_resnet50_fpn", "--size", "320")
    assert outcome.code == 0
    rows = [line.split()[0] for line in outcome.out.splitlines() if line.strip()]
    assert [row for row in rows if row.endswith("_head")] == ["box_head", "mask_head"]
    assert "The mask head is counted on 100 detections" in outcome.out
    assert "convolutions and linear layers only" in outcome.out
    assert "Start at D2" in outcome.out


@pytest.mark.parametrize("model", ["retinanet", "torchvision:fcos_resnet50_fpn"])
def test_a_budget(cli: Any, model: str) -> None:
    full = cli("profile", model, "--size", "256", "--json").json["macs"]
    budget = 0.8 * full / 1e9
    result = cli("profile", model, "--size", "256", "--budget", budget, "--json").json
    assert list(result) == [*CONTRACT, "ranking", "proposal"]
    assert result["macs"] == full
    assert result["proposal"]["macs"] <= 0.8 * full
    outcome = cli("profile", model, "--size", "256", "--budget", budget)
    assert f"{result['proposal']['macs'] / 1e9:.3f} instead of {full / 1e9:.3f}" in outcome.out
    assert "What is worth lightening" in outcome.out


def test_a_budget_for_a_model_file(cli: Any, trained: Path) -> None:
    result = cli("profile", trained, "--budget", "1000", "--json").json
    assert result["proposal"]["is_met_already"]
    assert result["proposal"]["steps"] == []


@pytest.mark.parametrize(
    "arguments", [["torchvision:ssd300_vgg16"], ["torchvision:retinanet_resnet50_fpn", "--size", "256", "--budget", "12"]]
)
def test_charts(cli: Any, arguments: list[str], tmp_path: Path) -> None:
    assert cli("profile", *arguments, "--plot", tmp_path / "chart.png").code == 0
    with Image.open(tmp_path / "chart.png") as chart:
        assert chart.width > 600


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["torchvision:retinanet_resnet50_fnp"], ["no detector 'retinanet_resnet50_fnp'", "did you mean retinanet_resnet50_fpn?"]),
        (["torchvision:fcos_resnet50_fpn", "--backbone", "resnet18"], ["backbone: only presets take this"]),
        (["torchvision:fcos_resnet50_fpn", "--latency"], ["latency is measured for models of this package only"]),
        (["torchvision:fcos_resnet50_fpn", "--classes", "1"], ["give at least 2"]),
        (["torchvision:ssd300_vgg16", "--size", "32"], ["use another size"]),
        (["torchvision:ssd300_vgg16", "--budget", "3"], ["no plan for this model (SSD)", "leave the budget out"]),
        (["retinanet", "--budget", "50"], ["no plan reaches 50.000 GMACs", "takes 72.291", "raise the budget"]),
        (["retinanet", "--budget", "0"], ["budget 0", "a positive number"]),
        (["retinanet", "--budget", "nan"], ["budget nan", "a positive number"]),
        (["retinanet", "--budget", "90", "--plot", "cost.bmp"], ["cost.bmp", ".png"]),
    ],
)
def test_bad_input(cli: Any, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refuses("profile", *arguments, unchanged=tmp_path)
    assert all(part in line for part in parts), line
