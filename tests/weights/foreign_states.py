"""State dicts of whole networks under each framework's names, written out by hand, with our names beside them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCKS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass
class State:
    """``tensors`` by the framework's name, and ``landing``: our name of each tensor -> the framework's."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    landing: dict[str, str] = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(5))

    def add(self, ours: str, theirs: str, *shape: int, spread: float = 0.02) -> None:
        values = torch.randn(shape, generator=self.generator) * spread
        self.tensors[theirs] = values.abs() + 0.5 if theirs.endswith("running_var") else values
        self.landing[ours] = theirs

    def conv(
        self, ours: str, theirs: str, out: int, into: int, kernel: int, dot: str = ".", weight: str = "weight", bias: str = "bias"
    ) -> None:
        self.add(f"{ours}.weight", f"{theirs}{dot}{weight}", out, into, kernel, kernel)
        self.add(f"{ours}.bias", f"{theirs}{dot}{bias}", out)

    def norm(self, ours: str, theirs: str, channels: int) -> None:
        for part in NORM:
            self.add(f"{ours}.{part}", f"{theirs}.{part}", channels, spread=0.3)


@dataclass(frozen=True)
class Conv:
    """A convolution of a residual block; ``number`` 0 is the shortcut's."""

    stage: int
    block: int
    number: int
    shape: tuple[int, int, int]


def residual_convs(backbone: str) -> Iterator[Conv]:
    is_deep = backbone == "resnet50"
    into = 64
    for stage, count in enumerate(BLOCKS[backbone], 1):
        inner = 64 * 2 ** (stage - 1)
        out = inner * 4 if is_deep else inner
        for block in range(count):
            basic = [(inner, into, 3), (inner, inner, 3)]
            shapes = [(inner, into, 1), (inner, inner, 3), (out, inner, 1)] if is_deep else basic
            for number, shape in enumerate(shapes, 1):
                yield Conv(stage, block, number, shape)
            if block == 0 and into != out:
                yield Conv(stage, block, 0, (out, into, 1))
            into = out


def our_conv(conv: Conv) -> tuple[str, str]:
    """Return our names of a convolution's weight and of its norm."""
    block = f"backbone.layer{conv.stage}.{conv.block}"
    return (
        (f"{block}.conv{conv.number}.weight", f"{block}.bn{conv.number}")
        if conv.number
        else (
            f"{block}.downsample.0.weight",
            f"{block}.downsample.1",
        )
    )


def stage_channels(backbone: str) -> tuple[int, int, int]:
    return (512, 1024, 2048) if backbone == "resnet50" else (128, 256, 512)


def detectron2(backbone: str = "resnet18", width: int = 32, rows: int = 3, *, p6_from: str = "C5") -> State:
    state = State()
    bottom = "backbone.bottom_up"
    state.add("backbone.conv1.weight", f"{bottom}.stem.conv1.weight", 64, 3, 7, 7)
    state.norm("backbone.bn1", f"{bottom}.stem.conv1.norm", 64)
    for conv in residual_convs(backbone):
        weight, norm = our_conv(conv)
        name = "shortcut" if conv.number == 0 else f"conv{conv.number}"
        place = f"{bottom}.res{conv.stage + 1}.{conv.block}.{name}"
        state.add(weight, f"{place}.weight", conv.shape[0], conv.shape[1], conv.shape[2], conv.shape[2])
        state.norm(norm, f"{place}.norm", conv.shape[0])
    for number, channels in enumerate(stage_channels(backbone)):
        state.conv(f"fpn.inner_blocks.{number}.0", f"backbone.fpn_lateral{number + 3}", width, channels, 1)
        state.conv(f"fpn.layer_blocks.{number}.0", f"backbone.fpn_output{number + 3}", width, width, 3)
    state.conv("fpn.extra_blocks.p6", "backbone.top_block.p6", width, stage_channels(backbone)[2] if p6_from == "C5" else width, 3)
    state.conv("fpn.extra_blocks.p7", "backbone.top_block.p7", width, width, 3)
    for unit, layer in enumerate((0, 2, 4, 6)):
        state.conv(f"head.cls.shared_units.{unit}.0", f"head.cls_subnet.{layer}", width, width, 3)
        state.conv(f"head.bbox.shared_units.{unit}.0", f"head.bbox_subnet.{layer}", width, width, 3)
    state.conv("head.cls.shared_predict", "head.cls_score", 9 * rows, width, 3)
    state.conv("head.bbox.shared_predict", "head.bbox_pred", 36, width, 3)
    return state


def mmdet(backbone: str = "resnet18", width: int = 32, rows: int = 3, *, has_norm: bool = False) -> State:
    state = State()
    state.add("backbone.conv1.weight", "backbone.conv1.weight", 64, 3, 7, 7)
    state.norm("backbone.bn1", "backbone.bn1", 64)
    state.tensors["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    for conv in residual_convs(backbone):
        weight, norm = our_conv(conv)
        state.add(weight, weight, conv.shape[0], conv.shape[1], conv.shape[2], conv.shape[2])
        state.norm(norm, norm, conv.shape[0])
        state.tensors[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    for number, channels in enumerate(stage_channels(backbone)):
        state.conv(f"fpn.inner_blocks.{number}.0", f"neck.lateral_convs.{number}.conv", width, channels, 1)
        state.conv(f"fpn.layer_blocks.{number}.0", f"neck.fpn_convs.{number}.conv", width, width, 3)
    state.conv("fpn.extra_blocks.p6", "neck.fpn_convs.3.conv", width, stage_channels(backbone)[2], 3)
    state.conv("fpn.extra_blocks.p7", "neck.fpn_convs.4.conv", width, width, 3)
    for ours, theirs in (("cls", "cls_convs"), ("bbox", "reg_convs")):
        for unit in range(4):
            place = f"head.{ours}.shared_units.{unit}"
            if has_norm:
                state.add(f"{place}.0.weight", f"bbox_head.{theirs}.{unit}.conv.weight", width, width, 3, 3)
                state.add(f"{place}.1.weight", f"bbox_head.{theirs}.{unit}.gn.weight", width)
                state.add(f"{place}.1.bias", f"bbox_head.{theirs}.{unit}.gn.bias", width)
            else:
                state.conv(f"{place}.0", f"bbox_head.{theirs}.{unit}.conv", width, width, 3)
    state.conv("head.cls.shared_predict", "bbox_head.retina_cls", 9 * rows, width, 3)
    state.conv("head.bbox.shared_predict", "bbox_head.retina_reg", 36, width, 3)
    return state


def odtk(backbone: str = "resnet18", width: int = 32, rows: int = 3) -> State:
    state = State()
    place = f"backbones.ResNet{backbone.removeprefix('resnet')}FPN"
    state.add("backbone.conv1.weight", f"{place}.features.conv1.weight", 64, 3, 7, 7)
    state.norm("backbone.bn1", f"{place}.features.bn1", 64)
    for conv in residual_convs(backbone):
        weight, norm = our_conv(conv)
        in_odtk = [name.replace("backbone.", f"{place}.features.", 1) for name in (weight, norm)]
        state.add(weight, in_odtk[0], conv.shape[0], conv.shape[1], conv.shape[2], conv.shape[2])
        state.norm(norm, in_odtk[1], conv.shape[0])
    state.tensors[f"{place}.features.fc.weight"] = torch.zeros(1000, 8)
    state.tensors[f"{place}.features.fc.bias"] = torch.zeros(1000)
    for number, channels in enumerate(stage_channels(backbone)):
        state.conv(f"fpn.inner_blocks.{number}.0", f"{place}.lateral{number + 3}", width, channels, 1)
        state.conv(f"fpn.layer_blocks.{number}.0", f"{place}.smooth{number + 3}", width, width, 3)
    state.conv("fpn.extra_blocks.p6", f"{place}.pyramid6", width, stage_channels(backbone)[2], 3)
    state.conv("fpn.extra_blocks.p7", f"{place}.pyramid7", width, width, 3)
    for unit, number in enumerate((0, 2, 4, 6)):
        state.conv(f"head.cls.shared_units.{unit}.0", f"cls_head.{number}", width, width, 3)
        state.conv(f"head.bbox.shared_units.{unit}.0", f"box_head.{number}", width, width, 3)
    state.conv("head.cls.shared_predict", "cls_head.8", 9 * rows, width, 3)
    state.conv("head.bbox.shared_predict", "box_head.8", 36, width, 3)
    return state


def caffe2(backbone: str = "resnet50", width: int = 32, rows: int = 3) -> State:
    """A state dict with affine layers instead of norms, so without running statistics."""
    state = State()

    def affine(ours: str, blob: str, channels: int) -> None:
        state.add(f"{ours}.weight", f"{blob}_bn_s", channels, spread=0.3)
        state.add(f"{ours}.bias", f"{blob}_bn_b", channels, spread=0.3)

    def conv(ours: str, blob: str, out: int, into: int, kernel: int) -> None:
        state.conv(ours, blob, out, into, kernel, "_", "w", "b")

    state.add("backbone.conv1.weight", "conv1_w", 64, 3, 7, 7)
    affine("backbone.bn1", "res_conv1", 64)
    for item in residual_convs(backbone):
        weight, norm = our_conv(item)
        blob = f"res{item.stage + 1}_{item.block}_{('branch1', 'branch2a', 'branch2b', 'branch2c')[item.number]}"
        state.add(weight, f"{blob}_w", item.shape[0], item.shape[1], item.shape[2], item.shape[2])
        affine(norm, blob, item.shape[0])
    laterals = ("fpn_inner_res3_3_sum_lateral", "fpn_inner_res4_5_sum_lateral", "fpn_inner_res5_2_sum")
    outputs = ("fpn_res3_3_sum", "fpn_res4_5_sum", "fpn_res5_2_sum")
    for number, channels in enumerate(stage_channels(backbone)):
        conv(f"fpn.inner_blocks.{number}.0", laterals[number], width, channels, 1)
        conv(f"fpn.layer_blocks.{number}.0", outputs[number], width, width, 3)
    conv("fpn.extra_blocks.p6", "fpn_6", width, stage_channels(backbone)[2], 3)
    conv("fpn.extra_blocks.p7", "fpn_7", width, width, 3)
    for unit in range(4):
        conv(f"head.cls.shared_units.{unit}.0", f"retnet_cls_conv_n{unit}_fpn3", width, width, 3)
        conv(f"head.bbox.shared_units.{unit}.0", f"retnet_bbox_conv_n{unit}_fpn3", width, width, 3)
    conv("head.cls.shared_predict", "retnet_cls_pred_fpn3", 9 * rows, width, 3)
    conv("head.bbox.shared_predict", "retnet_bbox_pred_fpn3", 36, width, 3)
    state.tensors["conv1_w_momentum"] = torch.zeros(64, 3, 7, 7)
    state.tensors["fc1000_w"] = torch.zeros(1000, 8)
    state.tensors["lr"] = torch.zeros(1)
    return state


def torchvision(backbone: str = "resnet18", width: int = 32, rows: int = 3, *, has_norm: bool = False, generation: int = 3) -> State:
    """A state dict with the names of before 0.13 (``generation`` 1), of 0.13 to 0.14 (2) or of today (3)."""
    state = State()
    state.add("backbone.conv1.weight", "backbone.body.conv1.weight", 64, 3, 7, 7)
    state.norm("backbone.bn1", "backbone.body.bn1", 64)
    for conv in residual_convs(backbone):
        weight, norm = our_conv(conv)
        state.add(weight, f"backbone.body.{weight.removeprefix('backbone.')}", conv.shape[0], conv.shape[1], conv.shape[2], conv.shape[2])
        state.norm(norm, f"backbone.body.{norm.removeprefix('backbone.')}", conv.shape[0])
    inner = "" if generation == 1 else ".0"
    for number, channels in enumerate(stage_channels(backbone)):
        state.conv(f"fpn.inner_blocks.{number}.0", f"backbone.fpn.inner_blocks.{number}{inner}", width, channels, 1)
        state.conv(f"fpn.layer_blocks.{number}.0", f"backbone.fpn.layer_blocks.{number}{inner}", width, width, 3)
    p6_channels = stage_channels(backbone)[2] if has_norm else width
    state.conv("fpn.extra_blocks.p6", "backbone.fpn.extra_blocks.p6", width, p6_channels, 3)
    state.conv("fpn.extra_blocks.p7", "backbone.fpn.extra_blocks.p7", width, width, 3)
    for ours, theirs in (("cls", "classification_head"), ("bbox", "regression_head")):
        for unit in range(4):
            place = f"head.{ours}.shared_units.{unit}"
            if has_norm:
                state.add(f"{place}.0.weight", f"head.{theirs}.conv.{unit}.0.weight", width, width, 3, 3)
                state.add(f"{place}.1.weight", f"head.{theirs}.conv.{unit}.1.weight", width)
                state.add(f"{place}.1.bias", f"head.{theirs}.conv.{unit}.1.bias", width)
            else:
                tower = f"head.{theirs}.conv.{unit}.0" if generation == 3 else f"head.{theirs}.conv.{2 * unit}"
                state.conv(f"{place}.0", tower, width, width, 3)
    state.conv("head.cls.shared_predict", "head.classification_head.cls_logits", 9 * rows, width, 3)
    state.conv("head.bbox.shared_predict", "head.regression_head.bbox_reg", 36, width, 3)
    return state


STATES: dict[str, Callable[..., State]] = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "mmdet": mmdet,
    "odtk": odtk,
    "caffe2": caffe2,
}
