"""Which anchor answers for which object: batched, and without ever asking the device for a number."""

from typing import NamedTuple

import torch
from torch import Tensor

from lw_retinanet.boxes import coverage, iou
from lw_retinanet.structures import Targets

BACKGROUND = -1
IGNORED = -2
FOREGROUND_IOU = 0.5
BACKGROUND_IOU = 0.4
CROWD_COVERAGE = 0.5


class Matches(NamedTuple):
    """What each anchor should say.

    Args:
        labels: (N, A) int64 class, ``BACKGROUND`` or ``IGNORED``.
        boxes: (N, A, 4) xyxy of the matched object; the anchor itself where there is none.
    """

    labels: Tensor
    boxes: Tensor

    @property
    def is_positive(self) -> Tensor:
        """(N, A) bool."""
        return self.labels >= 0

    @property
    def num_positive(self) -> Tensor:
        """(N,) int64, on the device."""
        return self.is_positive.sum(dim=1)


def match(anchors: Tensor, targets: Targets) -> Matches:
    """Assign objects to anchors.

    An anchor is positive from IoU 0.5 with its best object, background below 0.4 and ignored between. The best anchors of an object are
    positive too, whatever their IoU (ties included), as long as it is not 0. Anchors of which half lies in an ignored region are ignored
    unless positive.

    Args:
        anchors: (A, 4) xyxy.
        targets: padded; rows with label -1 match nothing.

    Source: focal loss paper, section 4; low-quality matches as in torchvision's Matcher, which gives the object that the anchor overlaps
    most, not the one that the anchor is best for.
    """
    # One image at a time bounds memory by A x M; the loop's length is a shape, not a value.
    rows = [
        _match_image(anchors, boxes, labels, is_ignored)
        for boxes, labels, is_ignored in zip(targets.boxes, targets.labels, targets.is_ignored, strict=True)
    ]
    return Matches(torch.stack([labels for labels, _ in rows]), torch.stack([boxes for _, boxes in rows]))


def _match_image(anchors: Tensor, boxes: Tensor, labels: Tensor, is_ignored: Tensor) -> tuple[Tensor, Tensor]:
    is_object = (labels >= 0) & ~is_ignored
    overlaps = torch.where(is_object[None, :], iou(anchors, boxes), -1.0)
    best_overlap, best_object = overlaps.max(dim=1)
    best_of_object = overlaps.amax(dim=0, keepdim=True)
    is_forced = ((overlaps == best_of_object) & (best_of_object > 0)).any(dim=1)
    is_positive = (best_overlap >= FOREGROUND_IOU) | is_forced
    is_between = (best_overlap >= BACKGROUND_IOU) & (best_overlap < FOREGROUND_IOU)
    is_unasked = is_between | in_region(anchors, boxes, is_region=(labels >= 0) & is_ignored)
    result = torch.where(is_positive, labels[best_object], torch.where(is_unasked, IGNORED, BACKGROUND))
    return result, torch.where(is_positive[:, None], boxes[best_object], anchors)


def in_region(anchors: Tensor, boxes: Tensor, *, is_region: Tensor) -> Tensor:
    """(A,) bool: at least half of the anchor lies in one of the (M, 4) ``boxes`` that are regions, (M,) bool, of one image."""
    return ((coverage(anchors, boxes) >= CROWD_COVERAGE) & is_region[None, :]).any(dim=1)


def paired_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(...) intersection over union of each box with the one in its place; both (..., 4) xyxy, broadcast. 0 where both are empty."""
    corner = torch.maximum(boxes_a[..., :2], boxes_b[..., :2])
    width, height = (torch.minimum(boxes_a[..., 2:], boxes_b[..., 2:]) - corner).clamp(min=0).unbind(dim=-1)
    shared = width * height
    area_a, area_b = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (boxes_a, boxes_b))
    return shared / (area_a + area_b - shared).clamp(min=torch.finfo(shared.dtype).tiny)
