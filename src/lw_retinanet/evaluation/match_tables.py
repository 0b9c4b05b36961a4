"""COCO's matching of detections with boxes, computed once, and the metrics of any weighting of the images that follow from it."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import RECALL_LEVELS, check_ground_truth, image_numbers
from lw_retinanet.evaluation.detections import DetectionTable, check_detections

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

IOU_LEVELS: Floats = np.linspace(0.5, 0.95, 10)
"""The ten IoUs that a right detection must reach."""

AREA_RANGES: Floats = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
"""(4, 2) ranges of area in square pixels, both ends included: all, small, medium, large."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""The metrics that ``MatchTable.scores`` gives, in this order, under the names of ``coco_metrics.Metrics``."""

_PAIRS_AT_ONCE = 1 << 22  # pairs of detection and box whose overlaps are computed together; this takes some 300 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """The matches of D detections with the N boxes of a data set, sorted by class.

    Every image and class is matched separately, so the matches do not depend on which images are scored.

    Args:
        num_images: I.
        detection_starts: (K + 1,) the detections of class k are the rows ``detection_starts[k]:detection_starts[k + 1]``.
        detection_image: (D,) row of the image in the ``Records``. Within a class, detections are sorted by falling score, then by image
            id and row.
        detection_score: (D,) score of each detection.
        is_right: (D, 4, 10) bool, by area range and IoU: the detection matches a box to find.
        is_ignored: (D, 4, 10) bool: the detection is neither right nor wrong.
        box_starts: (K + 1,) the boxes of class k are the rows ``box_starts[k]:box_starts[k + 1]``.
        box_image: (N,) row of the image of each box.
        is_counted: (N, 4) bool: the box is one to find in the area range.
    """

    num_images: int
    detection_starts: Ints
    detection_image: Ints
    detection_score: Floats
    is_right: Bools
    is_ignored: Bools
    box_starts: Ints
    box_image: Ints
    is_counted: Bools

    def scores(self, weights: NDArray[np.integer[Any]]) -> Floats:
        """COCO's six average precisions of W data sets. In data set w, image i occurs ``weights[w, i]`` times.

        The copies of a detection rank directly after one another.

        Args:
            weights: (W, I) whole numbers from 0. Ones give the metrics of the data set itself.

        Returns:
            (W, 6) in the order of ``METRICS``, each in 0..1, or NaN where there is nothing to find.
        """
        if weights.ndim != 2 or weights.shape[1] != self.num_images:
            raise ValueError(f"weights must have shape (W, {self.num_images}), got {weights.shape}")
        copies = np.ascontiguousarray(weights, dtype=np.int32)
        sums = np.zeros((len(AREA_RANGES), len(weights), len(IOU_LEVELS)))
        classes = np.zeros((len(AREA_RANGES), len(weights)))
        for curve in self._curves:
            to_find = copies.take(curve.box_image, axis=1).sum(axis=1, dtype=np.int64)
            has_boxes = to_find > 0
            classes[curve.area] += has_boxes
            sums[curve.area] += np.where(has_boxes[:, None], curve.average_precisions(copies, to_find), 0.0)
        with np.errstate(invalid="ignore"):
            means = sums / classes[:, :, None]  # 0 / 0 gives NaN
        over_ious = means.mean(axis=2)
        return np.stack([over_ious[0], means[0, :, 0], means[0, :, 5], *over_ious[1:]], axis=1)

    def class_scores(self, weights: NDArray[np.integer[Any]]) -> Floats:
        """(W, K) average precision of each class; NaN where it has no box to find. The parameter is that of :meth:`scores`."""
        copies = np.ascontiguousarray(weights, dtype=np.int32)
        result = np.full((len(weights), len(self.box_starts) - 1), np.nan)
        for curve in self._curves:
            if curve.area == 0:
                to_find = copies.take(curve.box_image, axis=1).sum(axis=1, dtype=np.int64)
                means = curve.average_precisions(copies, to_find).mean(axis=1)
                result[:, curve.label] = np.where(to_find > 0, means, np.nan)
        return result

    @cached_property
    def _curves(self) -> list["_Curve"]:
        """One curve for each class and area range that has boxes to find."""
        curves = []
        for label in range(len(self.box_starts) - 1):
            boxes = slice(*self.box_starts[label : label + 2])
            rows = slice(*self.detection_starts[label : label + 2])
            for area in range(len(AREA_RANGES)):
                box_image = self.box_image[boxes][self.is_counted[boxes, area]]
                if len(box_image):
                    is_right, is_ignored = self.is_right[rows, area], self.is_ignored[rows, area]
                    curves.append(_curve(label, area, box_image, self.detection_image[rows], is_right, ~is_ignored))
        return curves


class _Points(NamedTuple):
    """The P right detections of one class, area range and IoU. Only at these can the precision rise.

    Args:
        image: (P,) image of each detection, by falling score.
        usual: (P,) how many rows of the curve's ``usual_image`` rank at least as high.
        special_image, special_sign: Detections that count here but not in ``usual_image`` (+1), or the other way round (-1).
        special: (P,) how many of these special detections rank at least as high.
    """

    image: Ints
    usual: Ints
    special_image: Ints
    special_sign: NDArray[np.int32]
    special: Ints


class _Curve(NamedTuple):
    """Precision against recall of one class and area range.

    Args:
        label: The class.
        area: Row of ``AREA_RANGES``.
        box_image: Images of the boxes to find.
        usual_image: Images of the detections, right or wrong, that count at the highest IoU. At the other IoUs almost the same ones
            count, so one running sum serves all ten.
        points: The right detections at each IoU.
    """

    label: int
    area: int
    box_image: Ints
    usual_image: Ints
    points: list[_Points]

    def average_precisions(self, weights: NDArray[np.int32], to_find: Ints) -> Floats:
        """(W, 10) average precision at each IoU; ``to_find`` is the (W,) number of boxes to find."""
        result = np.zeros((len(weights), len(self.points)))
        usual = _running(weights.take(self.usual_image, axis=1))
        levels = _levels_reached(to_find)
        row_starts = (np.arange(len(weights)) * levels.shape[1])[:, None]
        for place, points in enumerate(self.points):
            if not len(points.image):
                continue
            right = np.cumsum(weights.take(points.image, axis=1), axis=1, dtype=np.int32)
            counted = usual.take(points.usual, axis=1)
            if len(points.special_image):
                counted += _running(weights.take(points.special_image, axis=1) * points.special_sign).take(points.special, axis=1)
            precision = right / np.maximum(counted, 1)
            envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            # COCO reads each point at the recall levels that it is the first to reach.
            reached = levels.take(right + row_starts)
            reached[:, 1:] -= reached[:, :-1].copy()
            result[:, place] = np.einsum("ij,ij->i", reached, envelope)
        return result / len(RECALL_LEVELS)


def match(records: Records, detections: DetectionTable, *, max_detections: int = 100) -> MatchTable:
    """Match detections with boxes by the rules of :func:`~lw_retinanet.evaluation.coco_metrics.evaluate`.

    Args:
        max_detections: Number of detections of an image and class that are used, best first.

    Raises:
        DataError: If ``evaluate`` would refuse the records or detections.
    """
    check_ground_truth(records)
    check_detections(detections, records)
    numbers = image_numbers(records) - 1
    num_classes = len(records.categories)

    box_image = records.image_of_box
    box_cell = numbers[box_image] * num_classes + records.labels
    box_order = np.argsort(box_cell, kind="stable")
    cell = numbers[detections.image] * num_classes + detections.labels
    order = np.lexsort((-detections.scores, cell))
    order = order[_rank_in_run(cell[order]) < max_detections]

    boxes = records.boxes_xywh[box_order]
    is_counted = ~records.is_ignored[:, None] & _is_within(records.areas)
    found, found_ignored = _matches(
        cell[order], detections.boxes_xywh[order], box_cell[box_order], boxes, records, box_order, is_counted[box_order]
    )
    is_outside = ~_is_within(detections.boxes_xywh[order, 2] * detections.boxes_xywh[order, 3])
    is_ignored = found_ignored | (is_outside[:, :, None] & ~found)

    by_score = np.lexsort(
        (-detections.scores[order], detections.labels[order])
    )  # stable, so equal scores stay in the order of the image ids
    by_label = np.argsort(records.labels, kind="stable")
    return MatchTable(
        num_images=records.num_images,
        detection_starts=np.searchsorted(detections.labels[order][by_score], np.arange(num_classes + 1)),
        detection_image=detections.image[order][by_score],
        detection_score=detections.scores[order][by_score],
        is_right=found[by_score],
        is_ignored=is_ignored[by_score],
        box_starts=np.searchsorted(records.labels[by_label], np.arange(num_classes + 1)),
        box_image=box_image[by_label],
        is_counted=is_counted[by_label],
    )


def _matches(
    cell: Ints, detections_xywh: Floats, box_cell: Ints, boxes_xywh: Floats, records: Records, box_order: Ints, is_counted: Bools
) -> tuple[Bools, Bools]:
    """Which detections match a box to find, and which match an ignored box: two arrays of (D, 4, 10) bool.

    A cell is one image and class. Detections are sorted by cell and falling score, boxes by cell in the order of ``records``. All cells are
    matched at the same time: first the best detection of each that overlaps a box, then the second best, and so on.
    """
    is_crowd = records.is_crowd[box_order]
    takes_many = records.is_ignored[box_order]
    detection, box, iou = _overlapping(cell, detections_xywh, box_cell, boxes_xywh, is_crowd)
    is_first = np.diff(detection, prepend=-1) > 0
    turn = _rank_in_run(cell[detection[is_first]])[np.cumsum(is_first) - 1]
    order = np.lexsort((box, iou, detection, turn))
    detection, box, iou, turn = detection[order], box[order], iou[order], turn[order]

    shape = (len(AREA_RANGES), len(IOU_LEVELS))
    found, found_ignored = np.zeros((2, len(cell), *shape), dtype=np.bool_)
    is_taken = np.zeros((len(box_cell), *shape), dtype=np.bool_)
    turn_starts = np.searchsorted(turn, np.arange(turn[-1] + 2 if len(turn) else 1))
    for start, stop in pairwise(turn_starts):
        rows = slice(start, stop)
        met = box[rows]
        can_match = (~is_taken[met] | takes_many[met, None, None]) & (iou[rows, None, None] >= IOU_LEVELS)
        counts = is_counted[met, :, None]
        runs = np.flatnonzero(np.diff(detection[rows], prepend=-1))
        place = np.arange(stop - start, dtype=np.int32)[:, None, None]
        # The last place has the best overlap, and of equal overlaps the last box, as in COCO. A box to find wins over an ignored one.
        best = np.maximum.reduceat(np.where(can_match & counts, place, -1), runs, axis=0)
        best_ignored = np.maximum.reduceat(np.where(can_match & ~counts, place, -1), runs, axis=0)
        is_found, is_found_ignored = best >= 0, (best < 0) & (best_ignored >= 0)
        chosen = np.where(is_found, best, best_ignored)
        _, areas, levels = hits = np.nonzero(chosen >= 0)
        is_taken[met[chosen[hits]], areas, levels] = True
        found[detection[rows][runs]] = is_found
        found_ignored[detection[rows][runs]] = is_found_ignored
    return found, found_ignored


def _overlapping(cell: Ints, detections_xywh: Floats, box_cell: Ints, boxes_xywh: Floats, is_crowd: Bools) -> tuple[Ints, Ints, Floats]:
    """All pairs in a cell that reach the lowest IoU level, sorted by detection: rows of the detections, rows of the boxes, IoUs."""
    first = np.searchsorted(box_cell, cell, side="left")
    num_boxes = np.searchsorted(box_cell, cell, side="right") - first
    ends = np.cumsum(num_boxes)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    start = 0
    while start < len(cell):
        done = ends[start] - num_boxes[start]
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        counts = num_boxes[start:stop]
        detection = np.repeat(np.arange(start, stop), counts)
        box = np.arange(counts.sum()) + np.repeat(first[start:stop] - (ends[start:stop] - counts - done), counts)
        iou = _iou(detections_xywh[detection], boxes_xywh[box], is_crowd[box])
        near = iou >= IOU_LEVELS[0]
        parts.append((detection[near], box[near], iou[near]))
        start = stop
    detections, boxes, ious = zip(*parts, strict=True)
    return np.concatenate(detections), np.concatenate(boxes), np.concatenate(ious)


def _iou(detections_xywh: Floats, boxes_xywh: Floats, is_crowd: Bools) -> Floats:
    """IoU of each row; for a crowd, the intersection over the detection's area.

    The operations are those of COCO's own code, so that an IoU exactly on a level gives the same result.
    """
    low = np.maximum(detections_xywh[:, :2], boxes_xywh[:, :2])
    high = np.minimum(detections_xywh[:, :2] + detections_xywh[:, 2:], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    sides = np.maximum(high - low, 0.0)
    intersection = sides[:, 0] * sides[:, 1]
    detection_area = detections_xywh[:, 2] * detections_xywh[:, 3]
    union = np.where(is_crowd, detection_area, detection_area + boxes_xywh[:, 2] * boxes_xywh[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def _is_within(areas: Floats) -> Bools:
    """(M, 4) bool: the area ranges that each of M areas lies in."""
    return (areas[:, None] >= AREA_RANGES[:, 0]) & (areas[:, None] <= AREA_RANGES[:, 1])


def _rank_in_run(values: Ints) -> Ints:
    """0, 1, 2 .. within each run of equal values."""
    rows = np.arange(len(values))
    starts = np.where(np.diff(values, prepend=values[:1] - 1) != 0, rows, 0)
    return rows - np.maximum.accumulate(starts)


def _curve(label: int, area: int, box_image: Ints, image: Ints, is_right: Bools, counts: Bools) -> _Curve:
    """The curve from (D,) ``image`` and (D, 10) ``is_right`` and ``counts`` of the detections of a class, by falling score."""
    last = int(np.flatnonzero(is_right.any(axis=1)).max(initial=-1)) + 1  # detections below the last right one change nothing
    image, is_right, counts = image[:last], is_right[:last], counts[:last]
    is_usual = counts[:, -1]
    num_usual = np.cumsum(is_usual, dtype=np.int64)
    points = []
    for place in range(len(IOU_LEVELS)):
        hits = np.flatnonzero(is_right[:, place])
        special = np.flatnonzero(counts[:, place] != is_usual)
        points.append(
            _Points(
                image=image[hits],
                usual=num_usual[hits],
                special_image=image[special],
                special_sign=np.where(is_usual[special], -1, 1).astype(np.int32),
                special=np.searchsorted(special, hits, side="right"),
            )
        )
    return _Curve(label=label, area=area, box_image=box_image, usual_image=image[is_usual], points=points)


def _running(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """(W, M + 1) sums of the first 0, 1 .. M columns."""
    sums = np.zeros((len(values), values.shape[1] + 1), dtype=np.int32)
    np.cumsum(values, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums


def _levels_reached(to_find: Ints) -> Floats:
    """(W, max + 1) how many of the 101 recall levels are reached if as many boxes as the column says, of ``to_find``, are found."""
    boxes = np.maximum(to_find, 1)[:, None]
    needed = np.ceil(RECALL_LEVELS * boxes - 1e-6).astype(np.int64)
    needed += needed / boxes < RECALL_LEVELS  # in floating point, as COCO compares: 7 of 20 do not reach the level 0.35
    width = int(boxes.max()) + 1
    flat = (np.minimum(needed, width - 1) + np.arange(len(boxes))[:, None] * width).ravel()
    return np.cumsum(np.bincount(flat, minlength=len(boxes) * width).reshape(len(boxes), width), axis=1, dtype=np.float64)
