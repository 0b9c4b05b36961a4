"""Which detections of two lists are the same ones."""

from typing import NamedTuple

from torch import Tensor
from torchvision.ops import box_iou

MIN_SHARE = 0.5  # of the detections that a rounded network shares with the exact one, where only boxes can be compared


class Detected(NamedTuple):
    """The detections of one picture, the best first. D of them.

    Args:
        boxes: (D, 4) xyxy.
        scores: (D,).
        labels: (D,).
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Partners(NamedTuple):
    """Args:
    missing: detections of either that the other does not have.
    box: largest difference of corners, of those that both have.
    score: largest difference of scores, likewise.
    """

    missing: int
    box: float
    score: float


def partners(wanted: Detected, given: Detected, *, most: int, box: float, score: float, threshold: float = 0.0) -> Partners:
    """Compare two lists.

    A list of ``most`` ends where the next candidate would be, and a hair more or less of its score decides about the last ones. So behind
    the end of a full list, and as near as ``score`` to it or to the threshold, nothing is missed. A list that is not full excuses nothing.

    Args:
        wanted: what should be there.
        given: what is.
        most: that a list may hold.
        box: pixels that a corner may be off.
        score: that a score may be off.
        threshold: of scores.
    """
    same = (wanted.labels[:, None] == given.labels) & ((wanted.scores[:, None] - given.scores).abs() <= score)
    distances = (wanted.boxes[:, None] - given.boxes).abs().amax(dim=2).masked_fill(~same, float("inf"))
    near = distances <= box
    lowest = max([threshold, *(float(each.scores[-1]) for each in (wanted, given) if len(each.scores) >= max(1, most))])
    missing = 0
    for scores, has_partner in ((wanted.scores, near.any(dim=1)), (given.scores, near.any(dim=0))):
        missing += int((~has_partner & (scores > lowest + score)).sum())
    if not near.any():
        return Partners(missing, 0.0, 0.0)
    rows, columns = near.nonzero(as_tuple=True)
    nearest = distances.where(near, float("inf")).amin(dim=1)
    largest = float((wanted.scores[rows] - given.scores[columns]).abs().max())
    return Partners(missing, float(nearest[nearest.isfinite()].max()), largest)


def shared(wanted: Detected, given: Detected) -> float:
    """Of the wanted detections, the share for which there is one of the same class that overlaps by half; 1 where there are none."""
    if not len(wanted.labels):
        return 1.0
    if not len(given.labels):
        return 0.0
    same = (wanted.labels[:, None] == given.labels) & (box_iou(wanted.boxes, given.boxes) >= 0.5)
    return float(same.any(dim=1).float().mean())
