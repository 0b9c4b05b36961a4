"""MACs of detectors from other libraries, by pyramid level and branch: torchvision's RetinaNet, FCOS, SSD and R-CNN families.

No picture is put through: backbone, heads and RoI heads run apart on the meta device, so only shapes are computed. Which level a call
belongs to is seen in a first run, on maps of sizes that no two levels share.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from lw_retinanet.analyze.call_trace import Call, Trace, trace
from lw_retinanet.analyze.macs import Cost, Size, count_blocks, meta_copy, pyramid_sizes
from lw_retinanet.conventions import LEVELS
from lw_retinanet.errors import ConfigError
from lw_retinanet.models import retinanet as ours
from lw_retinanet.models.head import Branch

BranchName = Literal["cls", "bbox", "rpn"]

_PROBE_SIDE = 512  # large enough that no two strides give one side
_BLOCK_STRIDE = 3  # a module that divides the side by more than this holds several stages (SSD's last map: 3x3 to 1x1)
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


@dataclass(frozen=True, kw_only=True)
class DetectorCost:
    """What a detector costs for one image.

    Args:
        blocks: C1.. (backbone), P3.. (pyramid), D3.. (head on a map, with parts), then ``box_head``, ``mask_head`` and
            ``keypoint_head`` of R-CNN; ``other`` has parameters that no counted call uses. They add up to the model.
        levels: maps that the head sees, finest first. The number is log2 of the stride, and goes on by one where two would share it.
        branches: of the head, by level, then branch.
        num_classes: as the model counts them; torchvision's count the background.
        remarks: what a reader must know beside the numbers, as sentences.
    """

    blocks: Mapping[str, Cost]
    levels: Mapping[str, Size]
    branches: Sequence[LevelBranch]
    num_classes: int
    remarks: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        return sum(cost.macs for cost in self.blocks.values())


def count_detector(model: nn.Module, size_hw: tuple[int, int]) -> DetectorCost:
    """Count a detector of this package or of torchvision, a subclass of one, or a built user model.

    Args:
        model: on any device; neither run nor changed.
        size_hw: height and width of the network input in pixels, after resizing and padding.

    Raises:
        ConfigError: for other kinds of models, and sizes that are too small for one.
    """
    if min(size_hw) < 1:
        raise ConfigError(f"size_hw must be positive, got {size_hw[0]} x {size_hw[1]}")
    if isinstance(model, ours.RetinaNet):
        return _count_ours(model, size_hw)
    if not isinstance(model, RetinaNet | FCOS | SSD | GeneralizedRCNN):
        raise ConfigError(
            f"cannot count a {type(model).__name__}: it is neither one of this package's models nor one of torchvision's RetinaNet, FCOS, "
            "SSD and R-CNN; give the detector itself, without a wrapper around it"
        )
    return _Count(meta_copy(model), size_hw).result()


def _count_ours(model: ours.RetinaNet, size_hw: tuple[int, int]) -> DetectorCost:
    blocks = count_blocks(model, size_hw)
    sizes = pyramid_sizes(model, size_hw)
    branches = []
    for level in LEVELS:
        parts = blocks[f"D{level[1]}"].parts
        for name, branch in _both_branches(model):
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
    return DetectorCost(blocks=blocks, levels=sizes, branches=branches, num_classes=model.num_classes)


def _both_branches(model: ours.RetinaNet) -> tuple[tuple[Literal["cls"], Branch], tuple[Literal["bbox"], Branch]]:
    return ("cls", model.head.cls), ("bbox", model.head.bbox)


class _Count:
    """The count of one of torchvision's detectors while it is made.

    Args:
        model: on the meta device.
        size_hw: of the input.
    """

    def __init__(self, model: nn.Module, size_hw: tuple[int, int]) -> None:
        self.model: Any = model
        self.size_hw = size_hw
        self.macs: dict[tuple[str, str], int] = {}
        self.params: dict[tuple[str, str], int] = {}
        self.claimed: set[int] = set()
        self.remarks: list[str] = []

    def result(self) -> DetectorCost:
        names, maps = self._backbone()
        levels = {f"P{name}": Size(*each.shape[1:]) for name, each in zip(names, maps, strict=True)}
        if isinstance(self.model, GeneralizedRCNN):
            branches = self._dense_head(self.model.rpn.head, names, maps)
            self._roi_heads(maps[0].shape[1])
        else:
            branches = self._dense_head(self.model.head, names, maps)
        rest = self._claim(self.model.parameters())
        if rest:
            self.params["other", ""] = rest
        return DetectorCost(
            blocks=self._blocks(),
            levels=levels,
            branches=branches,
            num_classes=self._num_classes(),
            remarks=tuple(self.remarks),
        )

    def _backbone(self) -> tuple[list[int], list[Tensor]]:
        """Books the backbone; numbers of the levels, and their maps."""
        probe = trace(self.model.backbone, _images((_PROBE_SIDE, _PROBE_SIDE)))
        real = trace(self.model.backbone, _images(self.size_hw))
        sides = [each.shape[2] for each in _maps(probe)]
        names: list[int] = []
        for side in sides:
            names.append(max([_stage(side), *(number + 1 for number in names[-1:])]))
        number_of_side = dict(zip(reversed(sides), reversed(names), strict=True))  # of two levels with one side, the first
        pyramid = getattr(self.model.backbone, "fpn", None)
        block = f"C{names[0]}"  # of what has no map of its own, until the first call that has one: SSD's scale of its first map
        for call, counted in zip(probe.calls, real.calls, strict=True):
            block = _backbone_block(call, pyramid, names, number_of_side) or block
            self._book(block, "", counted)
        for name in names if pyramid is not None else []:
            self.macs.setdefault((f"P{name}", ""), 0)
        return names, _maps(real)

    def _dense_head(self, head: nn.Module, names: list[int], maps: list[Tensor]) -> list[LevelBranch]:
        # Sides that no two levels share tell the levels' calls apart, which run in the same order at any size.
        sides = {64 + 8 * i: f"D{name}" for i, name in enumerate(names)}
        probe = trace(head, [each.new_empty((1, each.shape[1], side, side)) for each, side in zip(maps, sides, strict=True)])
        real = trace(head, maps)
        place = f"D{names[0]}"
        calls: list[_Booked] = []
        for call, counted in zip(probe.calls, real.calls, strict=True):
            place = sides.get(call.output_side or 0, place)
            branch, part = _branch_and_part(call.path)
            calls.append(_Booked(block=place, branch=branch, part=part, call=counted))
            self._book(place, f"{branch}_{part}" if branch else part, counted)
        return _level_branches(calls, {f"P{name}": Size(*each.shape[1:]) for name, each in zip(names, maps, strict=True)})

    def _roi_heads(self, channels: int) -> None:
        rois = self.model.roi_heads
        proposals, kept = int(self.model.rpn.post_nms_top_n()), int(rois.detections_per_img)
        heads = [("box", rois.box_head, rois.box_predictor, rois.box_roi_pool, proposals)]
        if rois.has_mask():
            heads.append(("mask", rois.mask_head, rois.mask_predictor, rois.mask_roi_pool, kept))
        if rois.has_keypoint():
            heads.append(("keypoint", rois.keypoint_head, rois.keypoint_predictor, rois.keypoint_roi_pool, kept))
        for name, head, predictor, pool, number in heads:
            features = trace(head, torch.empty((number, channels, *pool.output_size), device="meta"))
            predictions = trace(predictor, features.output)
            for call in features.calls:
                self._book(f"{name}_head", "tower", call)
            for call in predictions.calls:
                branch, _ = _branch_and_part(call.path)
                self._book(f"{name}_head", f"{branch}_predict" if branch and name == "box" else "predict", call)
            what = "proposals" if name == "box" else "detections"
            self.remarks.append(f"The {name} head is counted on {number:,} {what}, the most that this model lets it see.")

    def _book(self, block: str, part: str, call: Call) -> None:
        key = (block, part)
        params = self._claim(call.module.parameters(recurse=False))
        if call.macs or params:
            self.macs[key] = self.macs.get(key, 0) + call.macs
            self.params[key] = self.params.get(key, 0) + params

    def _claim(self, parameters: Iterable[nn.Parameter]) -> int:
        new = [parameter for parameter in parameters if id(parameter) not in self.claimed]
        self.claimed.update(map(id, new))
        return sum(parameter.numel() for parameter in new)

    def _blocks(self) -> dict[str, Cost]:
        blocks: dict[str, Cost] = {}
        for block in sorted({block for block, _ in (*self.macs, *self.params)}, key=_reading_order):
            parts = {
                part: Cost(macs=self.macs.get((block, part), 0), params=self.params.get((block, part), 0))
                for part in ("", *_PART_ORDER)
                if (block, part) in self.macs or (block, part) in self.params
            }
            blocks[block] = Cost(
                macs=sum(part.macs for part in parts.values()),
                params=sum(part.params for part in parts.values()),
                parts={} if "" in parts else parts,
            )
        return blocks

    def _num_classes(self) -> int:
        if isinstance(self.model, SSD):
            return int(self.model.head.classification_head.num_columns)
        if isinstance(self.model, GeneralizedRCNN):
            score = getattr(self.model.roi_heads.box_predictor, "cls_score", None)
            if not isinstance(score, nn.Linear):
                raise ConfigError("roi_heads.box_predictor has no linear layer cls_score, so its number of classes cannot be told")
            return score.out_features
        return int(self.model.head.classification_head.num_classes)


@dataclass(frozen=True, kw_only=True)
class _Booked:
    """A call of the dense head and its place."""

    block: str
    branch: str
    part: str
    call: Call


_PART_ORDER = ("tower", "cls_tower", "cls_predict", "bbox_tower", "bbox_predict", "predict")


def _reading_order(block: str) -> tuple[int, int, str]:
    kinds = ("C", "P", "D")
    if block[0] in kinds and block[1:].isdigit():
        return kinds.index(block[0]), int(block[1:]), ""
    others = ("box_head", "mask_head", "keypoint_head", "other")
    return len(kinds), others.index(block), ""


def _images(size_hw: tuple[int, int]) -> Tensor:
    return torch.empty((1, 3, *size_hw), device="meta")


def _maps(traced: Trace) -> list[Tensor]:
    return [traced.output] if isinstance(traced.output, Tensor) else list(traced.output.values())


def _stage(side: int) -> int:
    """1 for stride 1 and 2, 3 for stride 8, at the probe's size."""
    return max(1, round(math.log2(_PROBE_SIDE / side)))


def _backbone_block(call: Call, pyramid: nn.Module | None, names: list[int], number_of_side: Mapping[int, int]) -> str | None:
    """The block that a backbone's call belongs to; None for calls that show no map."""
    chain = call.chain()
    if pyramid is not None and any(outer.module is pyramid for outer in chain):
        for kind, place in zip(call.path, call.path[1:], strict=False):
            if kind in ("inner_blocks", "layer_blocks") and place.isdigit() and int(place) < len(names):
                return f"P{names[int(place)]}"
        return f"P{number_of_side.get(call.output_side, names[-1])}" if call.output_side else None
    # Residual blocks and whole stages belong to where they end: their first convolution often still sees the finer map.
    for outer in chain[1:]:
        if outer.input_side and outer.output_side and outer.input_side <= _BLOCK_STRIDE * outer.output_side:
            return f"C{number_of_side.get(outer.output_side, _stage(outer.output_side))}"
    return f"C{number_of_side.get(call.output_side, _stage(call.output_side))}" if call.output_side and call is not chain[0] else None


def _branch_and_part(path: Sequence[str]) -> tuple[str, str]:
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


def _level_branches(calls: Sequence[_Booked], maps: Mapping[str, Size]) -> list[LevelBranch]:
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
