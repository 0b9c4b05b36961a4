"""The network of a foreign weights file: its architecture is read off the shapes of the tensors, then it is built and filled."""

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.errors import ConfigError, WeightsError, shown
from lw_retinanet.heads import SHARED, HeadPlan, Level, TowerPlan
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import TensorNames, WeightsFormat
from lw_retinanet.weights.tensor_file import fault

# (has bottlenecks, residual blocks of the four stages) -> torchvision's name of the network.
RESNETS: dict[tuple[bool, tuple[int, ...]], str] = {
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
_MAX_CLASSES = 100_000
_MAX_CHANNELS = 8192


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The parts of a network that the shapes of its tensors determine.

    Args:
        backbone: Name of the backbone, as the setting ``model.backbone`` takes it.
        width: Number of channels of the pyramid.
        plan: Plan of the head.
        num_anchors: Number of anchors in a cell, from the rows of the box predictor.
        num_rows: Number of class rows of an anchor.
        p6_source: Input of P6, from the shape of its kernel; None where both inputs have the same width.
    """

    backbone: str
    width: int
    plan: HeadPlan
    num_anchors: int
    num_rows: int
    p6_source: Literal["C5", "P5"] | None


@dataclass(frozen=True, kw_only=True)
class FilledNetwork:
    """A network with the tensors of a file.

    Args:
        model: The network, in evaluation mode.
        used: Name of each of our tensors -> name of the file's tensor that fills it.
        unused: Name of each other tensor of the file -> the reason why it is left out.
    """

    model: RetinaNet
    used: Mapping[str, str]
    unused: Mapping[str, str]


def read_architecture(tensors: Mapping[str, Tensor], names: TensorNames, *, where: str, backbone: str | None = None) -> Architecture:
    """Read depth, widths and counts off the shapes of the tensors.

    Args:
        tensors: Tensors of the file.
        names: The file's names of our tensors.
        where: Name of the file, for messages.
        backbone: Name of the backbone; None determines it from the tensors.

    Raises:
        WeightsError: For a backbone, a head or a count that cannot be converted; the message names what was found.
    """
    backbone = backbone or _read_backbone(tensors, names, where)
    width = _shape(tensors, names("fpn.inner_blocks.0.0.weight"), where)[0]
    box_rows = _shape(tensors, names("head.bbox.shared_predict.weight"), where)[0]
    rows = _shape(tensors, names("head.cls.shared_predict.weight"), where)[0]
    if box_rows % 4 or box_rows == 0:
        raise WeightsError(
            f"the box predictor of {where} has {box_rows} rows, not four for each anchor; boxes of other kinds cannot be converted"
        )
    anchors = box_rows // 4
    if rows % anchors or not 1 <= rows // anchors <= _MAX_CLASSES or width > _MAX_CHANNELS:
        raise WeightsError(
            f"the class predictor of {where} has {rows} rows for {anchors} anchors in a cell; one row for each anchor and class is expected"
        )
    p6 = _shape(tensors, names("fpn.extra_blocks.p6.weight"), where)
    c5 = _shape(tensors, names("fpn.inner_blocks.2.0.weight"), where)
    p6_source: Literal["C5", "P5"] | None = None
    if len(p6) > 1 and len(c5) > 1 and c5[1] != width:
        p6_source = "C5" if p6[1] == c5[1] else "P5"
    plan = _read_plan(tensors, names, where)
    return Architecture(backbone=backbone, width=width, plan=plan, num_anchors=anchors, num_rows=rows // anchors, p6_source=p6_source)


def _read_plan(tensors: Mapping[str, Tensor], names: TensorNames, where: str) -> HeadPlan:
    num_units = 0
    while names(f"head.cls.shared_units.{num_units}.0.weight") in tensors:
        num_units += 1
    if num_units == 0:
        raise WeightsError(f"the head of {where} has no class tower: {names('head.cls.shared_units.0.0.weight')} is missing")
    has_norm = names("head.cls.shared_units.0.1.weight") in tensors
    plan = HeadPlan()
    if has_norm or num_units != len(plan.shared.units):
        plan = HeadPlan(shared=TowerPlan(units=("3x3-gn" if has_norm else "3x3",) * num_units))
    cls, bbox = (_read_own_towers(tensors, names, branch, where) for branch in ("cls", "bbox"))
    return replace(plan, cls=cls, bbox=bbox) if cls or bbox else plan


def _read_own_towers(tensors: Mapping[str, Tensor], names: TensorNames, branch: str, where: str) -> dict[Level, TowerPlan]:
    """The light towers of a branch by level, recognised by the names and shapes of their tensors."""
    width = _shape(tensors, names("fpn.inner_blocks.0.0.weight"), where)[0]
    plans: dict[Level, TowerPlan] = {}
    for level in get_args(Level):
        start = names(f"head.{branch}.own_units.{level}.0.")
        if start is None or not any(name.startswith(start) for name in tensors):
            continue
        inner, units = width, list[str]()
        while layer := _layer(tensors, names(f"head.{branch}.own_units.{level}.{len(units)}.")):
            outer = _out_channels(layer)
            units.append(_kind(UNITS, layer, inner, outer, f"unit {len(units)} of {branch} {level} of {where}"))
            inner = outer
        predict = SHARED
        if layer := _layer(tensors, names(f"head.{branch}.own_predict.{level}.")):
            predict = _kind(PREDICTIONS, layer, inner, _out_channels(layer), f"the prediction of {branch} {level} of {where}")
        plans[level] = TowerPlan(units=tuple(units), width=None if inner == width else inner, predict=predict)
    return plans


def _layer(tensors: Mapping[str, Tensor], start: str | None) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors whose names start so, by the rest of the names."""
    found = {name.removeprefix(start or ""): tuple(tensor.shape) for name, tensor in tensors.items() if start and name.startswith(start)}
    return dict(sorted(found.items()))


def _out_channels(layer: Mapping[str, tuple[int, ...]]) -> int:
    """The rows of the last kernel."""
    return next((shape[0] for shape in reversed(list(layer.values())) if len(shape) == 4), 0)


def _kind(kinds: Mapping[str, Any], layer: Mapping[str, tuple[int, ...]], inner: int, outer: int, what: str) -> str:
    for kind, make in kinds.items():
        with contextlib.suppress(ValueError, ZeroDivisionError, RuntimeError), torch.device("meta"):
            if {name: tuple(tensor.shape) for name, tensor in make(inner, outer).state_dict().items()} == dict(layer):
                return kind
    shapes = ", ".join(f"{name} {shape}" for name, shape in layer.items())
    raise WeightsError(
        f"{what} is light in a way that is not known, or mixed from two models ({shapes[:120]}); give the unchanged state dict"
    )


def _shape(tensors: Mapping[str, Tensor], name: str | None, where: str) -> tuple[int, ...]:
    if name is None or name not in tensors:
        raise WeightsError(f"{where} lacks {name}, so it does not hold a whole RetinaNet; give the file of the whole detector")
    shape = tuple(tensors[name].shape)
    if not shape:
        raise WeightsError(f"{name} of {where} is a single number instead of a kernel; get the file anew")
    return shape


def _read_backbone(tensors: Mapping[str, Tensor], names: TensorNames, where: str) -> str:
    blocks = []
    for stage in range(1, 5):
        count = 0
        while names(f"backbone.layer{stage}.{count}.conv1.weight") in tensors:
            count += 1
        blocks.append(count)
    if not any(blocks):
        kind = next((kind for kind, pattern in _OTHER_BACKBONES.items() if any(re.search(pattern, key) for key in tensors)), None)
        found = f"{kind} (by its names)" if kind else "of an unknown kind"
        raise WeightsError(f"the backbone of {where} is {found}, no ResNet; only ResNets can be converted")
    first = tensors.get(names("backbone.layer1.0.conv1.weight") or "")
    second = tensors.get(names("backbone.layer1.0.conv2.weight") or "")
    if first is not None and second is not None and first.dim() == second.dim() == 4:
        if second.shape[1] != first.shape[0]:
            groups = first.shape[0] // max(1, second.shape[1])
            raise WeightsError(f"the backbone of {where} is a ResNeXt ({groups} groups); only plain ResNets can be converted")
        if first.shape[0] != 64:
            raise WeightsError(f"the backbone of {where} is a ResNet of other widths ({first.shape[0]} channels in C2, not 64)")
    has_bottlenecks = names("backbone.layer1.0.conv3.weight") in tensors
    try:
        return RESNETS[has_bottlenecks, tuple(blocks)]
    except KeyError:
        kind = "bottlenecks" if has_bottlenecks else "basic blocks"
        raise WeightsError(
            f"the backbone of {where} has {tuple(blocks)} {kind}, which is no ResNet of 18, 34, 50, 101 or 152 layers"
        ) from None


def fill_network(
    file: ForeignFile, layout: WeightsFormat, architecture: Architecture, conventions: Conventions, rows: Sequence[int]
) -> FilledNetwork:
    """Build the network of a file and copy the file's tensors into it.

    Args:
        file: The tensors.
        layout: Their names.
        architecture: What their shapes determine.
        conventions: Conventions of the network to build.
        rows: The class rows of an anchor that become classes, in the order of the labels.

    Raises:
        WeightsError: For tensors that are missing, left over, of another shape or not finite; the message names the first of each.
    """
    model = _build(file.where, architecture, conventions, num_classes=len(rows))
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    missing, misshapen = [], []
    broken: dict[str, list[str]] = {}
    class_rows = _class_predictions(model)
    for ours, wanted in model.state_dict().items():
        theirs = layout.names(ours)
        if theirs is None:
            state[ours] = _constant(ours, wanted, conventions)
            continue
        tensor = file.tensors.get(theirs)
        if tensor is None:
            missing.append(theirs)
            continue
        used[ours] = theirs
        shape = tuple(wanted.shape)
        if ours in class_rows:
            shape = (architecture.num_anchors * architecture.num_rows, *shape[1:])
        if tuple(tensor.shape) != shape:
            misshapen.append(f"{theirs} {tuple(tensor.shape)} instead of {shape}")
            continue
        if ours.endswith("num_batches_tracked"):
            state[ours] = tensor.clone()
            continue
        if not tensor.is_floating_point():
            raise WeightsError(f"{theirs} of {file.where} holds {tensor.dtype}, not floating point numbers; give the unquantised model")
        values = tensor.to(torch.float32, copy=True)
        if what := fault(ours, values, conventions.norm_eps):
            broken.setdefault(what, []).append(theirs)
            continue
        if ours in class_rows:
            values = values.unflatten(0, (architecture.num_anchors, architecture.num_rows))[:, list(rows)].flatten(0, 1)
        state[ours] = values.contiguous()
    taken = set(used.values())
    unused = {name: layout.reason_to_drop(name, tensor) for name, tensor in file.tensors.items() if name not in taken}
    unknown = [name for name, reason in unused.items() if reason is None]
    found = (("missing", missing), ("not known", unknown), ("of another shape", misshapen), *broken.items())
    problems = "; ".join(f"{len(names)} {what}, first {shown(names[0])}" for what, names in found if names)
    if problems:
        kind = f"{layout.framework} ({layout.generation}), {architecture.backbone}"
        raise WeightsError(f"the tensors of {file.where} do not fit a RetinaNet of {kind}: {problems}; give the whole, unchanged file")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    return FilledNetwork(model=model.eval(), used=used, unused={name: reason or "" for name, reason in unused.items()})


def _class_predictions(model: RetinaNet) -> set[str]:
    """Names of the tensors that have a row for each anchor and class."""
    branch = model.head.cls
    predictions = {"shared_predict": branch.shared_predict, **{f"own_predict.{level}": own for level, own in branch.own_predict.items()}}
    names = set()
    for place, prediction in predictions.items():
        convs = [name for name, module in prediction.named_modules() if isinstance(module, nn.Conv2d)] if prediction is not None else []
        for parameter in ("weight", "bias") if convs else ():
            names.add(".".join(part for part in ("head.cls", place, convs[-1], parameter) if part))
    return names


def _build(where: str, architecture: Architecture, conventions: Conventions, *, num_classes: int) -> RetinaNet:
    try:
        with torch.device("meta"):
            return build(
                architecture.plan,
                num_classes=num_classes,
                backbone=architecture.backbone,
                width=architecture.width,
                norm="frozen",
                conventions=conventions,
            )
    except (ConfigError, ValueError) as error:
        raise WeightsError(f"{where} cannot be converted: {error}") from None


def _constant(ours: str, wanted: Tensor, conventions: Conventions) -> Tensor:
    """The running statistics that make a norm scale and shift only, for frameworks whose files have none."""
    if ours.endswith("running_mean"):
        return torch.zeros(wanted.shape)
    if ours.endswith("running_var"):
        return torch.full(wanted.shape, 1 - conventions.norm_eps)
    raise WeightsError(f"files of this framework have no tensor for {ours}; a model of this architecture cannot be converted")
