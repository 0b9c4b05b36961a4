"""The stride rule is measured: statistics that a network has gathered under one rule are those of its activations under that rule."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor

from lw_retinanet.config import ModelConfig
from lw_retinanet.conventions import InputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights import stride_rule
from lw_retinanet.weights.backbone_file import find_stride
from lw_retinanet.weights.create import with_stride
from lw_retinanet.weights.stride_rule import measured_stride


@pytest.fixture(scope="module")
def gathered() -> dict[str, dict[str, Tensor]]:
    """Tensors of a random ResNet-50 whose norms have gathered their statistics under either rule."""
    torch.manual_seed(0)
    states = {}
    start = torchvision.models.resnet50(num_classes=1).state_dict()
    for stride in ("3x3", "1x1"):
        network: Any = stride_rule._network("resnet50", {name: tensor.clone() for name, tensor in start.items()}, stride, 1e-5)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
        with torch.no_grad():
            network.train()(stride_rule._images(InputRule()))
        states[stride] = {name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}
    return states


@pytest.mark.parametrize("stride", ["3x3", "1x1"])
def test_the_rule_under_which_statistics_were_gathered_is_found(gathered: Any, stride: str, tmp_path: Path) -> None:
    found = measured_stride("resnet50", gathered[stride], InputRule())
    assert found is not None
    assert found[0] == stride
    # A name that says the opposite changes nothing, and metadata save the measurement.
    save_file(gathered[stride], tmp_path / "caffe_r50.safetensors")
    assert find_stride(str(tmp_path / "caffe_r50.safetensors"), name="resnet50") == stride
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors", metadata={"source": "Caffe2, MSRA R-50"})
    assert find_stride(str(tmp_path / "w.safetensors"), name="resnet50") == "1x1"


def test_where_nothing_tells_nothing_is_said(gathered: Any, tmp_path: Path) -> None:
    state = gathered["3x3"]
    assert measured_stride("resnet18", state, InputRule()) is None
    constant = {name: torch.ones_like(tensor) if name.endswith("running_var") else tensor for name, tensor in state.items()}
    assert measured_stride("resnet50", constant, InputRule()) is None
    torch.save(constant, tmp_path / "w.pth")
    assert find_stride(str(tmp_path / "w.pth"), name="resnet50") == "3x3"
    assert find_stride("none", name="resnet50") == find_stride("imagenet", name="resnet50") == "3x3"
    settings = ModelConfig(backbone_weights=str(tmp_path / "w.pth"), stride_in="1x1")
    assert with_stride(settings) == settings
    (tmp_path / "w.safetensors").write_bytes(b"rubbish")
    with pytest.raises(WeightsError, match="cannot read weights file"):
        find_stride(str(tmp_path / "w.safetensors"), name="resnet50")


@pytest.mark.real
def test_real_weights_of_caffes_kind(shared: Path) -> None:
    found = measured_stride("resnet50", load_file(shared / "weights" / "resnet50_imagenet_caffe_fp16.safetensors"), InputRule())
    assert found is not None
    assert found[0] == "1x1"
