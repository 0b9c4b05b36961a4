"""The dense head of a detector: every branch on every level, with what a lighter branch in its place has to compute."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.call_trace import Call
from lw_retinanet.counting.macs import Cost, Size
from lw_retinanet.models.head import Branch, Head

DenseBranch = Literal["cls", "bbox", "rpn"]

_PREDICTIONS = {"cls_logits", "bbox_reg", "bbox_ctrness", "bbox_pred", "module_list", "cls_score"}


@dataclass(frozen=True, kw_only=True)
class LevelBranch:
    """One branch of the dense head on one level, with what a lighter branch in its place has to compute.

    Args:
        level: The level; ``P3`` has stride 8.
        branch: ``cls``, ``bbox``, or ``rpn`` if one tower serves both branches, as in R-CNN's proposal network.
        size: Shape of the level's map.
        depth: Number of units of the shared tower, or of the coarsest level's tower if none is shared. 0 if there is no tower.
        outputs: Channels of each prediction.
        kernel: Kernel size of that tower's prediction.
        macs: MACs of the tower and the predictions.
        predict_macs: MACs of the predictions alone.
        is_own: Whether the tower is not the shared one.
    """

    level: str
    branch: DenseBranch
    size: Size
    depth: int
    outputs: tuple[int, ...]
    kernel: int
    macs: int
    predict_macs: int
    is_own: bool


def branches_of_head(head: Head, blocks: Mapping[str, Cost], sizes: Mapping[str, Size]) -> list[LevelBranch]:
    """The branches of a model of this package.

    Args:
        head: The model's head.
        blocks: The costs of at least ``D3``..``D7``, from :func:`~lw_retinanet.counting.macs.count_blocks`.
        sizes: Shapes of the maps by ``P3``..``P7``.
    """
    kinds: tuple[tuple[DenseBranch, Branch], ...] = (("cls", head.cls), ("bbox", head.bbox))
    branches = []
    for level in LEVELS:
        parts = blocks[f"D{level[1]}"].parts
        for name, branch in kinds:
            tower, predict = parts[f"{name}_tower"].macs, parts[f"{name}_predict"].macs
            units, last = branch.layers(max((each for each in LEVELS if branch.plans[each] is None), default=LEVELS[-1]))
            branches.append(
                LevelBranch(
                    level=level,
                    branch=name,
                    size=sizes[level],
                    depth=_depth(units),
                    outputs=(_convs([last])[-1].out_channels,),
                    kernel=_kernel([last]),
                    macs=tower + predict,
                    predict_macs=predict,
                    is_own=branch.plans[level] is not None,
                )
            )
    return branches


@dataclass(frozen=True, kw_only=True)
class BookedCall:
    """A call of the dense head, and the part of the head that it belongs to.

    Args:
        block: ``D3``, ``D4``, ...
        branch: ``cls``, ``bbox``, or empty if both use it.
        part: ``tower`` or ``predict``.
        call: The call with its MACs.
    """

    block: str
    branch: str
    part: str
    call: Call


def branch_and_part(path: Sequence[str]) -> tuple[str, str]:
    """Branch (``cls``, ``bbox`` or empty) and part (``tower`` or ``predict``), from torchvision's module names on the path."""
    branch = ""
    for name in path:
        if name.startswith("cls") or "classification" in name:
            branch = "cls"
        elif name.startswith("bbox") or "regression" in name:
            branch = "bbox"
        if branch:
            break
    is_prediction = any(name in _PREDICTIONS or "predict" in name for name in path)
    return branch, "predict" if is_prediction else "tower"


def branches_of_calls(calls: Sequence[BookedCall], maps: Mapping[str, Size]) -> list[LevelBranch]:
    """The branches of another library's model, from all calls of its head on maps of these shapes by ``P3``, ``P4``, ..."""
    # If both predictions use one tower, they are one branch.
    is_joint = any(not booked.branch and booked.part == "tower" and isinstance(booked.call.module, nn.Conv2d) for booked in calls)
    kinds: tuple[tuple[DenseBranch, set[str]], ...] = (
        (("rpn", {"", "cls", "bbox"}),) if is_joint else (("cls", {"cls"}), ("bbox", {"bbox"}))
    )
    result = []
    for level, size in maps.items():
        for name, branches in kinds:
            towers, predictions = (
                {each: [b.call for b in calls if b.block == _head_block(each) and b.part == part and b.branch in branches] for each in maps}
                for part in ("tower", "predict")
            )
            layers = {each: tuple(_called_convs(tower)) for each, tower in towers.items()}
            # The tower that most levels use; of several such towers, the coarsest level's.
            shared = max(reversed(layers), key=lambda each: list(layers.values()).count(layers[each]))
            predict_macs = sum(call.macs for call in predictions[level])
            result.append(
                LevelBranch(
                    level=level,
                    branch=name,
                    size=size,
                    depth=_depth(layers[shared]),
                    outputs=tuple(conv.out_channels for conv in _called_convs(predictions[level]) if conv.groups == 1),
                    kernel=_kernel(_called_convs(predictions[shared])),
                    macs=sum(call.macs for call in towers[level]) + predict_macs,
                    predict_macs=predict_macs,
                    is_own=layers[level] != layers[shared],
                )
            )
    return result


def _head_block(level: str) -> str:
    return f"D{level[1:]}"


def _called_convs(calls: Iterable[Call]) -> list[nn.Conv2d]:
    return [call.module for call in calls if isinstance(call.module, nn.Conv2d)]


def _convs(modules: Iterable[nn.Module]) -> list[nn.Conv2d]:
    return list(dict.fromkeys(layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)))


def _depth(tower: Iterable[nn.Module]) -> int:
    """Number of units of a tower; each unit has one convolution that mixes channels."""
    return sum(conv.groups == 1 for conv in _convs(tower))


def _kernel(predictions: Iterable[nn.Module]) -> int:
    return max((conv.kernel_size[0] for conv in _convs(predictions)), default=1)
