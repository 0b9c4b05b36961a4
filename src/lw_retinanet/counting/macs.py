"""Multiply-accumulates and parameters of every block, computed from layer attributes and sizes without running the network.

As in the paper, only convolutions count; normalisation, activations, sums and resizing are left out. A bias is a parameter but no MAC.
The tests count the same from an actual forward pass (tests/counting/hooked.py), and both counts are equal.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.call_trace import Call, trace
from lw_retinanet.errors import ConfigError
from lw_retinanet.models.backbone import Backbone, TimmBackbone
from lw_retinanet.models.build import meta_copy
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet

STAGES = ("C1", "C2", "C3", "C4", "C5")
BLOCKS = (*STAGES, *LEVELS, *(f"D{level[1]}" for level in LEVELS))

# Large enough that the maps of two strides never have the same size.
_PROBE_SIZE = (512, 512)
_STAGE_OF_STRIDE = {1: "C1", 2: "C1", 4: "C2", 8: "C3", 16: "C4", 32: "C5"}
_SAME_SIZE = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.Dropout,
    nn.BatchNorm2d,
    nn.GroupNorm,
    FrozenBatchNorm2d,
)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one block costs.

    Args:
        macs: Multiply-accumulates for one image.
        params: Trainable or frozen parameters, without the buffers of frozen norms. Weights that several blocks use belong to the first of
            these blocks (the shared head to D3, or to D4 if D3 has its own), so that the blocks add up to the model.
        parts: Costs of a head block's towers and predictions: ``cls_tower``, ``cls_predict``, ``bbox_tower``, ``bbox_predict``.
    """

    macs: int
    params: int
    parts: Mapping[str, "Cost"] = field(default_factory=dict)


class Size(NamedTuple):
    """Shape of a feature map."""

    channels: int
    height: int
    width: int


def count_blocks(model: RetinaNet, size_hw: tuple[int, int]) -> dict[str, Cost]:
    """Costs of C1..C5, P3..P7 and D3..D7, in this order.

    The layer sizes of timm's backbones are recorded on the meta device. Their linear layers count as the 1x1 convolutions that they are,
    and a layer belongs to the stage of its stride.

    Args:
        model: The model, on any device. It is not changed.
        size_hw: Height and width of the padded network input in pixels.

    Raises:
        ConfigError: If the size is too small, or the backbone has a layer of an unknown kind.
    """
    if min(size_hw) < 1:
        raise ConfigError(f"size_hw must be positive, got {size_hw[0]} x {size_hw[1]}")
    seen: set[int] = set()
    stages, maps = _count_backbone(model.backbone, size_hw, seen)
    levels: dict[str, Cost] = {}
    for level, (source, modules) in fpn_modules(model.fpn).items():
        macs, maps[level] = follow(modules, maps[source])
        levels[level] = Cost(macs=macs, params=_new_params(modules, seen))
    return stages | levels | _count_head(model.head, maps, seen)


def count_head(head: Head, pyramid: Mapping[str, Size]) -> dict[str, Cost]:
    """Costs of D3..D7 alone, on feature maps of these shapes by ``P3``..``P7``."""
    return _count_head(head, pyramid, set())


def pyramid_sizes(model: RetinaNet, size_hw: tuple[int, int]) -> dict[str, Size]:
    """Shapes of P3..P7 for an input of this size; for errors see :func:`count_blocks`."""
    _, maps = _count_backbone(model.backbone, size_hw, set())
    for level, (source, modules) in fpn_modules(model.fpn).items():
        _, maps[level] = follow(modules, maps[source])
    return {level: maps[level] for level in LEVELS}


def fpn_modules(fpn: FPN) -> dict[str, tuple[str, list[nn.Module]]]:
    """For each of P3..P7, the map that it is computed from and the modules that compute it, in order. Merging levels costs no MAC."""
    plan: dict[str, tuple[str, list[nn.Module]]] = {
        level: (stage, [inner, layer])
        for level, stage, inner, layer in zip(LEVELS[:3], STAGES[2:], fpn.inner_blocks, fpn.layer_blocks, strict=True)
    }
    plan["P6"] = (fpn.extra_blocks.source, [fpn.extra_blocks.p6])
    plan["P7"] = ("P6", [fpn.extra_blocks.p7])
    return plan


def follow(modules: Iterable[nn.Module], size: Size) -> tuple[int, Size]:
    """MACs of modules that run one after the other on a map of shape ``size``, and the shape of the result.

    Raises:
        ConfigError: For a module of unknown kind, a map with the wrong number of channels, or one smaller than a kernel.
    """
    total = 0
    for module in modules:
        macs, size = _follow(module, size)
        total += macs
    return total, size


def _follow(module: nn.Module, size: Size) -> tuple[int, Size]:
    if isinstance(module, nn.Conv2d):
        return _follow_conv(module, size)
    if isinstance(module, nn.MaxPool2d):
        assert not module.ceil_mode
        return 0, Size(size.channels, *_window(module, size))
    if isinstance(module, _SAME_SIZE):
        return 0, size
    if isinstance(module, nn.Sequential):
        return follow(module, size)
    if isinstance(module, InvertedResidual):
        return follow(module.conv, size)
    if isinstance(module, BasicBlock | Bottleneck):
        convs = [module.conv1, module.conv2, *([module.conv3] if isinstance(module, Bottleneck) else [])]
        macs, result = follow(convs, size)
        shortcut, same = follow([] if module.downsample is None else [module.downsample], size)
        assert same == result, f"the two paths of a block end in {result} and {same}"
        return macs + shortcut, result
    raise ConfigError(f"cannot count a layer of type {type(module).__name__}; use a backbone and units of this package")


def _follow_conv(conv: nn.Conv2d, size: Size) -> tuple[int, Size]:
    if conv.in_channels != size.channels:
        raise ConfigError(
            f"a convolution of {conv.in_channels} channels was given a map of {size.channels}; the parts of the model do not fit"
        )
    height, width = _window(conv, size)
    macs = height * width * conv.out_channels * (conv.in_channels // conv.groups) * math.prod(conv.kernel_size)
    return macs, Size(conv.out_channels, height, width)


def _window(layer: nn.Conv2d | nn.MaxPool2d, size: Size) -> tuple[int, int]:
    """Height and width after a sliding window."""
    kernel, stride, padding, dilation = (_pair(getattr(layer, name)) for name in ("kernel_size", "stride", "padding", "dilation"))
    height, width = (
        (length + 2 * p - d * (k - 1) - 1) // s + 1
        for length, k, s, p, d in zip((size.height, size.width), kernel, stride, padding, dilation, strict=True)
    )
    if min(height, width) < 1:
        raise ConfigError(f"the input is too small: a map of {size.height} x {size.width} is smaller than a kernel; use a larger size")
    return height, width


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    assert not isinstance(value, str), "padding by name is not used in these networks"
    return (value, value) if isinstance(value, int) else value


def _new_params(modules: Iterable[nn.Module], seen: set[int]) -> int:
    return _claim((parameter for module in modules for parameter in module.parameters()), seen)


def _claim(parameters: Iterable[nn.Parameter], seen: set[int]) -> int:
    """Count the numbers in the parameters that are not in ``seen`` yet, and add these to it."""
    total = 0
    for parameter in parameters:
        if id(parameter) not in seen:
            seen.add(id(parameter))
            total += parameter.numel()
    return total


def _count_head(head: Head, maps: Mapping[str, Size], seen: set[int]) -> dict[str, Cost]:
    blocks: dict[str, Cost] = {}
    for level in LEVELS:
        parts: dict[str, Cost] = {}
        for name, branch in (("cls", head.cls), ("bbox", head.bbox)):
            units, predict = branch.layers(level)
            macs, size = follow(units, maps[level])
            macs -= follow(units[: branch.num_common(level)], maps[level])[0]  # computed once, in the class tower
            parts[f"{name}_tower"] = Cost(macs=macs, params=_new_params(units, seen))
            macs, _ = follow([predict], size)
            parts[f"{name}_predict"] = Cost(macs=macs, params=_new_params([predict], seen))
        blocks[f"D{level[1]}"] = Cost(
            macs=sum(part.macs for part in parts.values()), params=sum(part.params for part in parts.values()), parts=parts
        )
    return blocks


def _count_backbone(backbone: Backbone, size_hw: tuple[int, int], seen: set[int]) -> tuple[dict[str, Cost], dict[str, Size]]:
    if isinstance(backbone, TimmBackbone):
        return _count_calls(backbone, size_hw)
    size = Size(3, *size_hw)
    stages: dict[str, Cost] = {}
    maps: dict[str, Size] = {}
    for name, modules in backbone.stages():
        macs, size = follow(modules, size)
        stages[name], maps[name] = Cost(macs=macs, params=_new_params(modules, seen)), size
    return stages, maps


def _count_calls(backbone: Backbone, size_hw: tuple[int, int]) -> tuple[dict[str, Cost], dict[str, Size]]:
    calls, maps = staged_calls(meta_copy(backbone), size_hw)
    macs, params, claimed = dict.fromkeys(STAGES, 0), dict.fromkeys(STAGES, 0), set[int]()
    for call, stage in calls:
        macs[stage] += call.macs
        params[stage] += _claim(call.module.parameters(recurse=False), claimed)
    # Parameters that no call has shown have no stride; they belong to C5.
    params["C5"] += sum(parameter.numel() for parameter in backbone.parameters()) - sum(params.values())
    return {name: Cost(macs=macs[name], params=params[name]) for name in STAGES}, maps


def staged_calls(backbone: Backbone, size_hw: tuple[int, int]) -> tuple[list[tuple[Call, str]], dict[str, Size]]:
    """All module calls of a backbone on the meta device with their stages, and the shapes of C3..C5."""
    probe, real = (trace(backbone, torch.empty((1, 3, *size), device="meta")) for size in (_PROBE_SIZE, size_hw))
    stage, stages = "C1", dict[int, str]()
    for call in probe.calls:
        # Layers without a map of their own (squeeze and excitation, norms) belong to the stage of the layer before them.
        if isinstance(call.module, nn.Conv2d) and call.output_side:
            stage = _STAGE_OF_STRIDE.get(round(_PROBE_SIZE[0] / call.output_side), stage)
        stages |= {id(each): stage for each in call.chain()}  # a module with layers inside belongs to the last one's stage
    maps = {name: Size(*each.shape[1:]) for name, each in real.output.items()}
    return [(counted, stages[id(call)]) for call, counted in zip(probe.calls, real.calls, strict=True)], maps
