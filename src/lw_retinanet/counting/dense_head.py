"""The dense head of a detector: every branch on every level, and what a replacement would have to do."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.call_trace import Call
from lw_retinanet.counting.macs import Cost, Size
from lw_retinanet.models.head import Branch, Head

BranchName = Literal["cls", "bbox", "rpn"]

_PREDICTIONS = {"cls_logits", "bbox_reg", "bbox_ctrness", "bbox_pred", "module_list", "cls_score"}


@dataclass(frozen=True, kw_only=True)
class LevelBranch:
    """One branch of the dense head on one map, with what a replacement would have to do.

    Args:
        level: ``P3`` has stride 8.
        branch: ``rpn`` where one tower serves both branches, as in R-CNN's proposal network.
        size: of the map.
        depth: units of the shared tower (of the coarsest map's, where none is shared); 0 where predictions stand on the map itself.
        outputs: channels of each prediction.
        kernel: of that tower's prediction.
        macs: tower and predictions as they are now.
        predict_macs: predictions alone.
        is_own: the tower is not the shared one.
    """

    level: str
    branch: BranchName
    size: Size
    depth: int
    outputs: tuple[int, ...]
    kernel: int
    macs: int
    predict_macs: int
    is_own: bool


def branches_of_head(head: Head, blocks: Mapping[str, Cost], sizes: Mapping[str, Size]) -> list[LevelBranch]:
    """Of a model of this package.

    Args:
        head: its head.
        blocks: at least ``D3``..``D7``, with parts, see :func:`~lw_retinanet.counting.macs.count_blocks`.
        sizes: of the maps by ``P3``..``P7``.
    """
    kinds: tuple[tuple[BranchName, Branch], ...] = (("cls", head.cls), ("bbox", head.bbox))
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
    """A call of the dense head and its place.

    Args:
        block: ``D3`` and the like.
        branch: ``cls``, ``bbox``, or empty where both stand on it.
        part: ``tower`` or ``predict``.
        call: with its MACs.
    """

    block: str
    branch: str
    part: str
    call: Call


def branch_and_part(path: Sequence[str]) -> tuple[str, str]:
    """('cls' | 'bbox' | '', 'tower' | 'predict') by the names that torchvision gives to the modules on the way."""
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
    """Of a model from elsewhere, by the calls that its head made on maps of these sizes by ``P3``, ``P4``, ...; none left out."""
    # A tower that both predictions stand on makes them one branch.
    is_joint = any(not booked.branch and booked.part == "tower" and isinstance(booked.call.module, nn.Conv2d) for booked in calls)
    kinds: tuple[tuple[BranchName, set[str]], ...] = (("rpn", {"", "cls", "bbox"}),) if is_joint else (("cls", {"cls"}), ("bbox", {"bbox"}))
    result = []
    for level, size in maps.items():
        for name, branches in kinds:
            towers, predictions = (
                {each: [b.call for b in calls if b.block == _head_block(each) and b.part == part and b.branch in branches] for each in maps}
                for part in ("tower", "predict")
            )
            layers = {each: tuple(_called_convs(tower)) for each, tower in towers.items()}
            # The tower that most levels run, of the coarsest of them.
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
    """Units of a tower, each with one convolution that mixes channels."""
    return sum(conv.groups == 1 for conv in _convs(tower))


def _kernel(predictions: Iterable[nn.Module]) -> int:
    return max((conv.kernel_size[0] for conv in _convs(predictions)), default=1)
