from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file

from lw_retinanet.config import ModelConfig
from lw_retinanet.weights.create import create_model

TINY = ModelConfig(backbone="mobilenet_v2", head_width=16)


def test_a_seed_decides_the_weights() -> None:
    one, same, other = (create_model(TINY, num_classes=2, seed=seed).state_dict() for seed in (5, 5, 6))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(("stride_in", "expected"), [("auto", "1x1"), ("3x3", "3x3")])
def test_the_stride_is_asked_of_the_weights_unless_it_is_set(
    stride_in: Literal["auto", "3x3"], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "caffe.safetensors"
    save_file({"a": torch.zeros(1)}, path, metadata={"source": "Caffe"})
    loaded: list[str] = []
    monkeypatch.setattr("lw_retinanet.weights.create.load_backbone", lambda backbone, *, name, source: loaded.append(source))
    with torch.device("meta"):
        config = ModelConfig(backbone="resnet50", head_width=16, backbone_weights=str(path), stride_in=stride_in)
        model = create_model(config, num_classes=1)
    assert loaded == [str(path)]
    assert model.conventions.stride_in == expected
    # The first bottleneck of C3: which of its convolutions halves the image.
    body = dict(model.backbone.named_modules())
    strides = [body[f"layer2.0.conv{number}"].stride for number in (1, 2)]
    assert strides == ([(2, 2), (1, 1)] if expected == "1x1" else [(1, 1), (2, 2)])


def test_classes_and_size_are_kept() -> None:
    model = create_model(TINY, num_classes=7, image_size=320)
    assert model.num_classes == 7
    assert model.conventions.input.size == 320
