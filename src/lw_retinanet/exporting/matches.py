"""Which detections of two lists are the same."""

from typing import NamedTuple, Self

from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.structures import Detections

IOU_ERROR = 1e-4  # of two boxes in fp32, whose corners are off by thousandths of a pixel
MIN_SHARE = 0.5  # of the detections that a rounded network shares with the exact one, where only boxes can be compared


class Detected(NamedTuple):
    """The detections of one image, the best first. D of them.

    Args:
        boxes: (D, 4) xyxy.
        scores: (D,).
        labels: (D,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def of_row(cls, detections: Detections, row: int) -> Self:
        """One image of a batch, without padding."""
        count = int(detections.counts[row])
        return cls(detections.boxes[row, :count], detections.scores[row, :count], detections.labels[row, :count])


class ListDistance(NamedTuple):
    """How far two lists are apart.

    Args:
        missing: Detections of either list without a match in the other.
        box: Largest difference of corners between matches, pixels.
        score: Largest difference of scores between matches.
    """

    missing: int
    box: float
    score: float


def match_lists(
    wanted: Detected, given: Detected, *, most: int, box: float, score: float, threshold: float = 0.0, nms_iou: float | None = None
) -> ListDistance:
    """Compare two lists.

    The last detections of a full list may be there or not by a tiny difference in score. So detections whose score is within ``score`` of
    the end of a full list, or of the threshold, are not missed. In a list that is not full, every detection counts.

    Args:
        wanted: What should be there.
        given: What is there.
        most: Detections that a list may hold.
        box: Pixels that a corner may be off.
        score: How much a score may be off.
        threshold: Smallest score of a detection.
        nms_iou: The IoU of NMS. A detection whose IoU with a better one of its class is this one, except for rounding, may be there or not.
            None: it must be there.
    """
    same = (wanted.labels[:, None] == given.labels) & ((wanted.scores[:, None] - given.scores).abs() <= score)
    distances = (wanted.boxes[:, None] - given.boxes).abs().amax(dim=2).masked_fill(~same, float("inf"))
    near = distances <= box
    lowest = max([threshold, *(float(each.scores[-1]) for each in (wanted, given) if len(each.scores) >= max(1, most))])
    missing = 0
    for each, has_match in ((wanted, near.any(dim=1)), (given, near.any(dim=0))):
        is_certain = ~has_match & (each.scores > lowest + score)
        missing += int((is_certain if nms_iou is None else is_certain & ~_at_border(each, nms_iou)).sum())
    if not near.any():
        return ListDistance(missing, 0.0, 0.0)
    rows, columns = near.nonzero(as_tuple=True)
    nearest = distances.where(near, float("inf")).amin(dim=1)
    largest = float((wanted.scores[rows] - given.scores[columns]).abs().max())
    return ListDistance(missing, float(nearest[nearest.isfinite()].max()), largest)


def _at_border(each: Detected, nms_iou: float) -> Tensor:
    """Whether the IoU with a better detection of the class is that of NMS."""
    is_better = (each.scores > each.scores[:, None]) & (each.labels == each.labels[:, None])
    return (is_better & ((box_iou(each.boxes, each.boxes) - nms_iou).abs() < IOU_ERROR)).any(dim=1)


def share_found(wanted: Detected, given: Detected) -> float:
    """The share of the wanted detections for which there is one of the same class with an IoU of at least 0.5; 1 if none are wanted."""
    if not len(wanted.labels):
        return 1.0
    if not len(given.labels):
        return 0.0
    same = (wanted.labels[:, None] == given.labels) & (box_iou(wanted.boxes, given.boxes) >= 0.5)
    return float(same.any(dim=1).float().mean())
