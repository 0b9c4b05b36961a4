"""Which convolution of a ResNet's bottlenecks has the stride: no tensor's name or shape tells, but the statistics of the norms do."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.preprocess import normalise
from lw_retinanet.data.sample import draw_scene

StrideIn = Literal["3x3", "1x1"]
BOTTLENECKS = ("resnet50", "resnet101", "resnet152")
_SIDE, _SCENES = 160, 3
_SANE = 1.0  # beyond it the activations are far from the statistics under either rule: untrained, or trained on since then
_CLEAR = 0.02  # the smaller of two distances must be smaller by this share of their sum; a ResNet-50 of Caffe's kind gives 0.07


@torch.no_grad()
def measured_stride(name: str, tensors: Mapping[str, Tensor], rule: InputRule, *, eps: float = 1e-5) -> tuple[StrideIn, str] | None:
    """Run a backbone with either rule on drawn images, and take the rule under which its activations are as its norms remember them.

    Args:
        name: Name of the ResNet.
        tensors: The backbone's tensors by torchvision's names.
        rule: How its images are normalised.
        eps: Epsilon of its norms.

    Returns:
        The rule and a sentence about the measurement; None if there is no choice, or the norms hold no statistics that tell.
    """
    if name not in BOTTLENECKS or not _fits(name, tensors):
        return None
    spread = tensors["layer4.0.bn2.running_var"].float().log()
    if not torch.isfinite(spread).all() or spread.std() < 0.01:  # affine layers, whose statistics are constants
        return None
    images = _images(rule)
    distances = {stride: _distance(_network(name, tensors, stride, eps), images) for stride in ("3x3", "1x1")}
    if not min(distances.values()) < _SANE or abs(distances["3x3"] - distances["1x1"]) < _CLEAR * sum(distances.values()):
        return None
    chosen: StrideIn = "3x3" if distances["3x3"] < distances["1x1"] else "1x1"
    numbers = ", ".join(f"{value:.2f} with the stride in the {stride}" for stride, value in distances.items())
    return chosen, f"measured: activations are this far from the norms' statistics: {numbers}"


def resnet_names(name: str) -> list[str]:
    """torchvision's names of the tensors of a ResNet without its classifier."""
    return list(_resnet_tensors(name))


def _resnet_tensors(name: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        network: nn.Module = getattr(torchvision.models, name)()
    state = network.state_dict()
    return {key: tensor for key, tensor in state.items() if not key.startswith("fc.") and not key.endswith("num_batches_tracked")}


def _fits(name: str, tensors: Mapping[str, Tensor]) -> bool:
    return all(key in tensors and tensors[key].shape == wanted.shape for key, wanted in _resnet_tensors(name).items())


def _images(rule: InputRule) -> Tensor:
    rng = np.random.default_rng(0)
    scenes = np.stack([draw_scene(rng, (_SIDE, _SIDE)).image for _ in range(_SCENES)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2).float()
    return normalise(images, torch.full((_SCENES, 2), _SIDE), rule)


def _network(name: str, tensors: Mapping[str, Tensor], stride: str, eps: float) -> nn.Module:
    with torch.device("meta"):
        network: Any = getattr(torchvision.models, name)(num_classes=1)
    network.fc = nn.Identity()
    wanted = network.state_dict()
    state = {key: tensors[key].float() if key in tensors else torch.zeros((), dtype=torch.int64) for key in wanted}
    network.load_state_dict(state, assign=True)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = eps
    if stride == "1x1":
        for stage in (network.layer2, network.layer3, network.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    model: nn.Module = network.eval()
    return model


def _distance(network: nn.Module, images: Tensor) -> float:
    """How far the variances of activations are from those that the norms of the last three stages hold: mean of medians, as logarithms."""
    found: list[float] = []

    def look(norm: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        ratios = (inputs[0].var((0, 2, 3)).clamp(min=1e-8) / norm.running_var.clamp(min=1e-8)).log().abs()
        found.append(ratios.median().item())

    hooks = [
        module.register_forward_hook(look)
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and name.startswith(("layer2", "layer3", "layer4"))
    ]
    network(images)
    for hook in hooks:
        hook.remove()
    return float(np.mean(found))
