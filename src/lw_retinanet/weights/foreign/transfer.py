"""Tensors of a foreign file into our network, every one of them accounted for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.errors import ConfigError, WeightsError
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.blueprint import Blueprint, Structure
from lw_retinanet.weights.foreign.state_file import ForeignFile

_CLASS_PREDICTION = "head.cls.shared_predict."


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """A filled network and the account of it.

    Args:
        model: in evaluation mode.
        used: our tensor name -> the file's.
        unused: the file's tensor name -> why it is left out.
    """

    model: RetinaNet
    used: Mapping[str, str]
    unused: Mapping[str, str]


def transfer(file: ForeignFile, blueprint: Blueprint, structure: Structure, conventions: Conventions, rows: Sequence[int]) -> Transfer:
    """Build the network and fill it.

    Args:
        file: tensors.
        blueprint: their names.
        structure: their shapes' meaning.
        conventions: of the network to build.
        rows: class rows of an anchor that become classes, in this order.

    Raises:
        WeightsError: for tensors that are missing, left over, of another shape or not finite, naming the first of each.
    """
    try:
        with torch.device("meta"):
            model = build(
                structure.plan,
                num_classes=len(rows),
                backbone=structure.backbone,
                width=structure.width,
                norm="frozen",
                conventions=conventions,
            )
    except (ConfigError, ValueError) as error:
        raise WeightsError(f"{file.where} cannot be converted: {error}") from None
    state: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    missing, shapes, broken = [], [], []
    for ours, wanted in model.state_dict().items():
        theirs = blueprint.name(ours)
        if theirs is None:
            state[ours] = _constant(ours, wanted, conventions)
            continue
        tensor = file.tensors.get(theirs)
        if tensor is None:
            missing.append(theirs)
            continue
        used[ours] = theirs
        shape = tuple(wanted.shape)
        if ours.startswith(_CLASS_PREDICTION):
            shape = (structure.num_anchors * structure.num_rows, *shape[1:])
        if tuple(tensor.shape) != shape:
            shapes.append(f"{theirs} {tuple(tensor.shape)} instead of {shape}")
            continue
        if not tensor.is_floating_point():
            raise WeightsError(f"{theirs} of {file.where} holds {tensor.dtype}, not floating point numbers; give the unquantised model")
        values = tensor.to(torch.float32, copy=True)
        if not bool(torch.isfinite(values).all()) or (ours.endswith("running_var") and not _can_divide(values, conventions.norm_eps)):
            broken.append(theirs)
            continue
        if ours.startswith(_CLASS_PREDICTION):
            values = values.unflatten(0, (structure.num_anchors, structure.num_rows))[:, list(rows)].flatten(0, 1)
        state[ours] = values.contiguous()
    taken = set(used.values())
    unused = {name: blueprint.reason_to_drop(name) for name in file.tensors if name not in taken}
    unknown = [name for name, reason in unused.items() if reason is None]
    found = (("missing", missing), ("not known", unknown), ("of another shape", shapes), ("not finite, or variances not above 0", broken))
    problems = "; ".join(f"{len(names)} {what}, first {names[0]}" for what, names in found if names)
    if problems:
        kind = f"{blueprint.framework} ({blueprint.generation}), {structure.backbone}"
        raise WeightsError(f"the tensors of {file.where} do not fit a RetinaNet of {kind}: {problems}; give the whole, unchanged file")
    model.load_state_dict(state, assign=True)
    model.requires_grad_(True)
    return Transfer(model=model.eval(), used=used, unused={name: reason or "" for name, reason in unused.items()})


def _can_divide(variances: Tensor, eps: float) -> bool:
    return bool((variances >= 0).all()) and bool((variances + eps > 0).all())


def _constant(ours: str, wanted: Tensor, conventions: Conventions) -> Tensor:
    """What an origin without running statistics implies: a norm that only scales and shifts."""
    if ours.endswith("running_mean"):
        return torch.zeros(wanted.shape)
    if ours.endswith("running_var"):
        return torch.full(wanted.shape, 1 - conventions.norm_eps)
    raise WeightsError(f"this framework's files have no counterpart of {ours}; the model's structure cannot be converted")
