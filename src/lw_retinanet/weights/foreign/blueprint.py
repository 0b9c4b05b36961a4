"""What a foreign file says about the network that it was made for: names, structure, conventions, and what had to be assumed."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.heads import HeadPlan, TowerPlan

Naming = Callable[[str], str | None]

# (bottlenecks?, blocks of the four stages) -> setting.
_RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
    (False, (2, 2, 2, 2)): "resnet18",
    (False, (3, 4, 6, 3)): "resnet34",
    (True, (3, 4, 6, 3)): "resnet50",
    (True, (3, 4, 23, 3)): "resnet101",
    (True, (3, 8, 36, 3)): "resnet152",
}
_OTHER_BACKBONES = {
    "mobilenet": r"features\.\d+\.\d+|features\.\d+\.conv",
    "Swin or another transformer": r"\.attn\.|relative_position|patch_embed",
    "ConvNeXt": r"gamma$|dwconv",
    "RegNet": r"trunk_output|\.se\.",
    "VGG or SSD": r"vgg|backbone\.features\.\d+\.weight",
}
# Left out of every conversion, whatever the framework.
_COUNTERS = (r".*\.num_batches_tracked", "a counter of training")
MOST_CLASSES = 100_000
MOST_CHANNELS = 8192


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """Something that the file does not say.

    Args:
        setting: a dotted field of Conventions, as ``--set`` takes it, or ``classes``.
        value: what was taken.
        why: on what ground.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """How to read one file.

    Args:
        framework: ``torchvision``, ``detectron2``, ``mmdet``, ``odtk`` or ``caffe2``.
        generation: which of the framework's forms this is, for people.
        conventions: of the framework, with what the file itself says.
        name: our tensor name -> the file's; None where the file has no such tensor and a constant stands in for it.
        unused: patterns of whole names that are left out, each with the reason.
        assumed: what the file does not say.
        categories: the classes that the file names, in the order of its rows.
        counts_background: row 0 may be the background (torchvision's layout).
        cell_anchors: (anchors, 4) anchors around (0, 0) of each level, where the file holds them; the anchor rule must give the same.
    """

    framework: str
    generation: str
    conventions: Conventions
    name: Naming
    unused: tuple[tuple[str, str], ...] = ()
    assumed: tuple[Assumption, ...] = ()
    categories: tuple[Category, ...] | None = None
    counts_background: bool = False
    cell_anchors: tuple[Tensor, ...] = ()

    def reason_to_drop(self, name: str) -> str | None:
        """Why a tensor of the file is not used, or None if that is not known."""
        return next((reason for pattern, reason in (_COUNTERS, *self.unused) if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What the shapes of a file tell.

    Args:
        backbone: setting that rebuilds it.
        width: channels of the pyramid.
        plan: of the head.
        num_anchors: a cell, by the rows of the box predictor.
        num_rows: class rows of an anchor.
        p6_source: by the shape of P6's kernel; None where both would fit.
    """

    backbone: str
    width: int
    plan: HeadPlan
    num_anchors: int
    num_rows: int
    p6_source: Literal["C5", "P5"] | None


def read_structure(tensors: Mapping[str, Tensor], name: Naming, *, where: str, backbone: str | None = None) -> Structure:
    """Read depth, widths and counts off the tensors.

    Args:
        tensors: of the file.
        name: our tensor name -> the file's.
        where: the file, for messages.
        backbone: taken as it is, instead of a look at the keys.

    Raises:
        WeightsError: for a backbone, a head or a count that cannot be carried over, naming what was found.
    """
    backbone = backbone or _backbone(tensors, name, where)
    width = _shape(tensors, name("fpn.inner_blocks.0.0.weight"), where)[0]
    bottom = _shape(tensors, name("head.bbox.shared_predict.weight"), where)[0]
    rows = _shape(tensors, name("head.cls.shared_predict.weight"), where)[0]
    if bottom % 4 or bottom == 0:
        raise WeightsError(f"the box predictor of {where} has {bottom} rows, not four an anchor; boxes of other kinds cannot be converted")
    anchors = bottom // 4
    if rows % anchors or not 1 <= rows // anchors <= MOST_CLASSES or width > MOST_CHANNELS:
        raise WeightsError(
            f"the class predictor of {where} has {rows} rows for {anchors} anchors a cell; one row an anchor and class is expected"
        )
    num_units = 0
    while name(f"head.cls.shared_units.{num_units}.0.weight") in tensors:
        num_units += 1
    if num_units == 0:
        raise WeightsError(f"the head of {where} has no class tower of the usual name {name('head.cls.shared_units.0.0.weight')}")
    has_norm = name("head.cls.shared_units.0.1.weight") in tensors
    plan = HeadPlan()
    if has_norm or num_units != len(plan.shared.units):
        plan = HeadPlan(shared=TowerPlan(units=("3x3-gn" if has_norm else "3x3",) * num_units))
    p6 = _shape(tensors, name("fpn.extra_blocks.p6.weight"), where)
    c5 = _shape(tensors, name("fpn.inner_blocks.2.0.weight"), where)
    p6_source: Literal["C5", "P5"] | None = None
    if len(p6) > 1 and len(c5) > 1 and c5[1] != width:
        p6_source = "C5" if p6[1] == c5[1] else "P5"
    return Structure(backbone=backbone, width=width, plan=plan, num_anchors=anchors, num_rows=rows // anchors, p6_source=p6_source)


def _shape(tensors: Mapping[str, Tensor], name: str | None, where: str) -> tuple[int, ...]:
    if name is None or name not in tensors:
        raise WeightsError(f"{where} lacks {name}, so it holds no whole RetinaNet; give the file of the whole detector")
    shape = tuple(tensors[name].shape)
    if not shape:
        raise WeightsError(f"{name} of {where} is a single number and no kernel; get the file anew")
    return shape


def blocks_of(tensors: Mapping[str, Tensor], name: Naming) -> tuple[int, ...]:
    """Residual blocks of the four stages."""
    counts = []
    for stage in range(1, 5):
        count = 0
        while name(f"backbone.layer{stage}.{count}.conv1.weight") in tensors:
            count += 1
        counts.append(count)
    return tuple(counts)


def _backbone(tensors: Mapping[str, Tensor], name: Naming, where: str) -> str:
    blocks = blocks_of(tensors, name)
    if not any(blocks):
        kind = next((kind for kind, pattern in _OTHER_BACKBONES.items() if any(re.search(pattern, key) for key in tensors)), None)
        found = f"{kind} (by its names)" if kind else "of an unknown kind"
        raise WeightsError(f"the backbone of {where} is {found}, no ResNet; only ResNets can be converted")
    first = tensors.get(name("backbone.layer1.0.conv1.weight") or "")
    second = tensors.get(name("backbone.layer1.0.conv2.weight") or "")
    if first is not None and second is not None and first.dim() == second.dim() == 4:
        if second.shape[1] != first.shape[0]:
            groups = first.shape[0] // max(1, second.shape[1])
            raise WeightsError(f"the backbone of {where} is a ResNeXt ({groups} groups); only plain ResNets can be converted")
        if first.shape[0] != 64:
            raise WeightsError(f"the backbone of {where} is a ResNet of other widths ({first.shape[0]} channels in C2, not 64)")
    has_bottlenecks = name("backbone.layer1.0.conv3.weight") in tensors
    try:
        return _RESNETS[has_bottlenecks, blocks]
    except KeyError:
        kind = "bottlenecks" if has_bottlenecks else "basic blocks"
        raise WeightsError(f"the backbone of {where} has {blocks} {kind}, which is no ResNet of 18, 34, 50, 101 or 152 layers") from None


_HEAD = re.compile(r"head\.(cls|bbox)\.(?:shared_units\.(\d+)\.(\d)|(shared_predict))\.(weight|bias)")
_FPN = re.compile(r"fpn\.(inner_blocks|layer_blocks|extra_blocks)\.(\d|p6|p7)(?:\.0)?\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class HeadPart:
    """One tensor of the head: of unit ``unit`` (its ``layer`` 0 the convolution, 1 the norm), or of the prediction if ``unit`` is None."""

    branch: Literal["cls", "bbox"]
    unit: int | None
    layer: int
    parameter: str


def head_part(ours: str) -> HeadPart | None:
    """The parts of one of our head's tensor names; None for the name of something else."""
    match = _HEAD.fullmatch(ours)
    if match is None:
        return None
    unit = None if match[4] else int(match[2])
    return HeadPart(branch="cls" if match[1] == "cls" else "bbox", unit=unit, layer=int(match[3] or 0), parameter=match[5])


def fpn_part(ours: str) -> tuple[str, str, str] | None:
    """``("inner_blocks", "0", "weight")``, ``("extra_blocks", "p6", "bias")`` ...; None for the name of something else."""
    match = _FPN.fullmatch(ours)
    return (match[1], match[2], match[3]) if match else None


_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)")


@dataclass(frozen=True, kw_only=True)
class BlockPart:
    """One tensor of a residual block: of convolution ``conv`` (0: the shortcut's), or of the norm behind it."""

    stage: int
    block: int
    conv: int
    is_norm: bool
    parameter: str


def block_part(ours: str) -> BlockPart | None:
    """The parts of one of our backbone's tensor names; None for the stem's and for all others."""
    match = _BLOCK.fullmatch(ours)
    if match is None:
        return None
    is_norm = match[3] == "bn" or match[5] == "1"
    return BlockPart(stage=int(match[1]), block=int(match[2]), conv=int(match[4] or 0), is_norm=is_norm, parameter=match[6])
