"""``torchvision:NAME`` wherever a command takes a model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import detection

NAME = "torchvision:retinanet_resnet50_fpn_v2"
FILE = "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth"


@pytest.mark.parametrize(
    "arguments",
    [
        ["predict", "{name}", "{data}/images"],
        ["evaluate", "{name}", "{data}"],
        ["lighten", "{name}", "--to", "lw-narrow", "--out", "light.safetensors"],
        ["export", "{name}", "--format", "onnx", "--out", "model.onnx"],
        ["benchmark", "{name}", "--images", "{data}/images"],
        ["serve", "{name}", "--port", "0"],
        ["train", "{data}", "--model", "{name}", "--out", "run", "--dry-run"],
        ["convert", "{name}", "--out", "model.safetensors"],
    ],
)
def test_every_command_knows_torchvisions_names(
    cli: Any, data: Path, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refuses(*(text.format(name="torchvision:retinanet_resnet50", data=data) for text in arguments), unchanged=tmp_path)
    assert "torchvision has no RetinaNet called 'retinanet_resnet50'; known: retinanet_resnet50_fpn, " in line


@pytest.mark.slow
def test_predict_with_a_file_from_torchs_cache(cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = tmp_path / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    torch.manual_seed(0)
    state = detection.retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None).state_dict()
    state["head.classification_head.cls_logits.bias"].zero_()  # plenty of detections
    torch.save(state, checkpoints / FILE)
    image = cli("predict", NAME, data / "images" / "val_0001.jpg", "--json").json["images"][0]
    assert len(image["detections"]) == 300
    assert {"name", "category_id"} <= set(image["detections"][0])
