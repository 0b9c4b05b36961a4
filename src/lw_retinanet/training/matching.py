"""Matching of anchors with objects by fixed overlaps, for a whole batch. The host never waits for the device."""

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


class AnchorMatches(NamedTuple):
    """What each anchor should predict.

    Args:
        labels: (N, A) int64 class, ``BACKGROUND`` or ``IGNORED``.
        boxes: (N, A, 4) xyxy of the matched object; the anchor itself if it has no object.
    """

    labels: Tensor
    boxes: Tensor

    @property
    def is_positive(self) -> Tensor:
        """(N, A) bool, whether an anchor has an object."""
        return self.labels >= 0

    @property
    def num_positive(self) -> Tensor:
        """(N,) int64 number of positive anchors of each image, on the device."""
        return self.is_positive.sum(dim=1)


def match(anchors: Tensor, targets: Targets) -> AnchorMatches:
    """Assign objects to anchors.

    An anchor is positive from IoU 0.5 with its best object, background below 0.4, and ignored in between. The best anchors of an object
    (all of them, if tied) are positive at any IoU above 0. An anchor of which half lies in an ignored region is ignored unless it is
    positive.

    Args:
        anchors: (A, 4) xyxy.
        targets: Padded objects; rows with label -1 match nothing.

    Source: focal loss paper, section 4. Low-quality matches are those of torchvision's Matcher: such an anchor gets the object that it
    overlaps most, which may not be the object that it is the best anchor of.
    """
    # One image at a time bounds the memory by A x M. The number of rounds is a shape, not a value, so the device is not waited for.
    rows = [
        _match_image(anchors, boxes, labels, is_ignored)
        for boxes, labels, is_ignored in zip(targets.boxes, targets.labels, targets.is_ignored, strict=True)
    ]
    return AnchorMatches(torch.stack([labels for labels, _ in rows]), torch.stack([boxes for _, boxes in rows]))


def _match_image(anchors: Tensor, boxes: Tensor, labels: Tensor, is_ignored: Tensor) -> tuple[Tensor, Tensor]:
    is_object = (labels >= 0) & ~is_ignored
    overlaps = torch.where(is_object[None, :], iou(anchors, boxes), -1.0)
    best_overlap, best_object = overlaps.max(dim=1)
    best_of_object = overlaps.amax(dim=0, keepdim=True)
    is_forced = ((overlaps == best_of_object) & (best_of_object > 0)).any(dim=1)
    is_positive = (best_overlap >= FOREGROUND_IOU) | is_forced
    is_between = (best_overlap >= BACKGROUND_IOU) & (best_overlap < FOREGROUND_IOU)
    is_excused = is_between | in_region(anchors, boxes, is_region=(labels >= 0) & is_ignored)
    result = torch.where(is_positive, labels[best_object], torch.where(is_excused, IGNORED, BACKGROUND))
    return result, torch.where(is_positive[:, None], boxes[best_object], anchors)


def in_region(anchors: Tensor, boxes: Tensor, *, is_region: Tensor) -> Tensor:
    """(A,) bool: whether at least half of an anchor lies in one of the (M, 4) ``boxes`` of an image that are regions ((M,) bool)."""
    return ((coverage(anchors, boxes) >= CROWD_COVERAGE) & is_region[None, :]).any(dim=1)


def paired_iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(...) IoU of each box in ``boxes_a`` with the one in the same place of ``boxes_b``; (..., 4) xyxy, broadcast. 0 for empty boxes."""
    corner = torch.maximum(boxes_a[..., :2], boxes_b[..., :2])
    width, height = (torch.minimum(boxes_a[..., 2:], boxes_b[..., 2:]) - corner).clamp(min=0).unbind(dim=-1)
    shared = width * height
    area_a, area_b = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]) for boxes in (boxes_a, boxes_b))
    return shared / (area_a + area_b - shared).clamp(min=torch.finfo(shared.dtype).tiny)
