"""MACs by pyramid level and branch, for our models and for torchvision's RetinaNet, FCOS, SSD and R-CNN.

Backbone, head and RoI heads of torchvision's models run separately on the meta device, so only shapes are computed. A first run, on maps
whose sizes differ from level to level, shows which level a call belongs to.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from lw_retinanet.counting.call_trace import Call, Trace, trace
from lw_retinanet.counting.dense_head import BookedCall, LevelBranch, branch_and_part, branches_of_calls, branches_of_head
from lw_retinanet.counting.macs import Cost, Size, count_blocks, pyramid_sizes
from lw_retinanet.errors import ConfigError
from lw_retinanet.models import retinanet as ours
from lw_retinanet.models.build import meta_copy

_PROBE_SIDE = 512  # large enough that the maps of two strides never have the same side
_BLOCK_STRIDE = 3  # a module that divides the side by more than this has several stages inside (SSD's last map: 3x3 to 1x1)


@dataclass(frozen=True, kw_only=True)
class DetectorCost:
    """What a detector costs for one image.

    Args:
        blocks: Costs of C1, ... (backbone), P3, ... (pyramid) and D3, ... (head, with parts), then of ``box_head``, ``mask_head`` and
            ``keypoint_head`` of R-CNN. ``other`` has parameters that no counted call uses. The blocks add up to the model.
        levels: Shapes of the maps that the head reads, finest first. A level's number is log2 of its stride, or one more than the number
            before it if two levels have the same stride.
        branches: Branches of the head, ordered by level, then branch.
        num_classes: Number of classes as the model counts them; torchvision counts the background.
        output_macs: MACs of the last convolution that makes the finest map, which torchvision's pyramids have; else 0.
        remarks: Sentences that a reader must know to understand the numbers.
    """

    blocks: Mapping[str, Cost]
    levels: Mapping[str, Size]
    branches: Sequence[LevelBranch]
    num_classes: int
    output_macs: int = 0
    remarks: tuple[str, ...] = ()

    @property
    def macs(self) -> int:
        """MACs of all blocks."""
        return sum(cost.macs for cost in self.blocks.values())


def count_detector(model: nn.Module, size_hw: tuple[int, int]) -> DetectorCost:
    """Count a detector of this package or of torchvision, or of a subclass of one.

    Args:
        model: The detector, on any device. It is neither run nor changed.
        size_hw: Height and width of the network input in pixels, after resizing and padding.

    Raises:
        ConfigError: For other kinds of models, and for sizes that are too small for the model.
    """
    if min(size_hw) < 1:
        raise ConfigError(f"size_hw must be positive, got {size_hw[0]} x {size_hw[1]}")
    if isinstance(model, ours.RetinaNet):
        blocks, sizes = count_blocks(model, size_hw), pyramid_sizes(model, size_hw)
        return DetectorCost(
            blocks=blocks, levels=sizes, branches=branches_of_head(model.head, blocks, sizes), num_classes=model.num_classes
        )
    if not isinstance(model, RetinaNet | FCOS | SSD | GeneralizedRCNN):
        raise ConfigError(
            f"cannot count a {type(model).__name__}: it is neither one of this package's models nor one of torchvision's RetinaNet, FCOS, "
            "SSD and R-CNN; give the detector itself, without a wrapper around it"
        )
    return _Count(meta_copy(model), size_hw).result()


class _Count:
    """The state of counting one of torchvision's detectors.

    Args:
        model: The detector on the meta device.
        size_hw: Height and width of the input.
    """

    def __init__(self, model: nn.Module, size_hw: tuple[int, int]) -> None:
        self.model: Any = model
        self.size_hw = size_hw
        self.macs: dict[tuple[str, str], int] = {}
        self.params: dict[tuple[str, str], int] = {}
        self.claimed: set[int] = set()
        self.output_macs = 0
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
            output_macs=self.output_macs,
            remarks=tuple(self.remarks),
        )

    def _backbone(self) -> tuple[list[int], list[Tensor]]:
        """Count the backbone; return the numbers of the levels and their maps."""
        probe = trace(self.model.backbone, _images((_PROBE_SIDE, _PROBE_SIDE)))
        real = trace(self.model.backbone, _images(self.size_hw))
        sides = [each.shape[2] for each in _maps(probe)]
        names: list[int] = []
        for side in sides:
            names.append(max([_stage(side), *(number + 1 for number in names[-1:])]))
        number_of_side = dict(zip(reversed(sides), reversed(names), strict=True))  # of two levels with the same side, the first
        pyramid = getattr(self.model.backbone, "fpn", None)
        block = f"C{names[0]}"  # block of calls without a map before the first call with one: SSD's scale of its first map
        for call, counted in zip(probe.calls, real.calls, strict=True):
            block = _backbone_block(call, pyramid, names, number_of_side) or block
            self._book(block, "", counted)
            if pyramid is not None and ("layer_blocks", "0") in pairwise(call.path):
                self.output_macs += counted.macs
        for name in names if pyramid is not None else []:
            self.macs.setdefault((f"P{name}", ""), 0)
        return names, _maps(real)

    def _dense_head(self, head: nn.Module, names: list[int], maps: list[Tensor]) -> list[LevelBranch]:
        # Each level gets another side, which tells the levels' calls apart. The calls run in the same order at any size.
        sides = {64 + 8 * i: f"D{name}" for i, name in enumerate(names)}
        probe = trace(head, [each.new_empty((1, each.shape[1], side, side)) for each, side in zip(maps, sides, strict=True)])
        real = trace(head, maps)
        place = f"D{names[0]}"
        calls: list[BookedCall] = []
        for call, counted in zip(probe.calls, real.calls, strict=True):
            place = sides.get(call.output_side or 0, place)
            branch, part = branch_and_part(call.path)
            calls.append(BookedCall(block=place, branch=branch, part=part, call=counted))
            self._book(place, f"{branch}_{part}" if branch else part, counted)
        return branches_of_calls(calls, {f"P{name}": Size(*each.shape[1:]) for name, each in zip(names, maps, strict=True)})

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
                branch, _ = branch_and_part(call.path)
                self._book(f"{name}_head", f"{branch}_predict" if branch and name == "box" else "predict", call)
            what = "proposals" if name == "box" else "detections"
            self.remarks.append(f"The {name} head is counted on {number:,} {what}, the largest number that this model gives it.")

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
    """The stage of a map with this side at the probe's size: 1 for strides 1 and 2, 3 for stride 8."""
    return max(1, round(math.log2(_PROBE_SIDE / side)))


def _backbone_block(call: Call, pyramid: nn.Module | None, names: list[int], number_of_side: Mapping[int, int]) -> str | None:
    """The block that a call of the backbone belongs to; None for calls without a map."""
    chain = call.chain()
    if pyramid is not None and any(outer.module is pyramid for outer in chain):
        for kind, place in zip(call.path, call.path[1:], strict=False):
            if kind in ("inner_blocks", "layer_blocks") and place.isdigit() and int(place) < len(names):
                return f"P{names[int(place)]}"
        return f"P{number_of_side.get(call.output_side, names[-1])}" if call.output_side else None
    # A residual block or a stage belongs to the stage of its output; its first convolution often still reads the finer map.
    for outer in chain[1:]:
        if outer.input_side and outer.output_side and outer.input_side <= _BLOCK_STRIDE * outer.output_side:
            return f"C{number_of_side.get(outer.output_side, _stage(outer.output_side))}"
    return f"C{number_of_side.get(call.output_side, _stage(call.output_side))}" if call.output_side and call is not chain[0] else None
