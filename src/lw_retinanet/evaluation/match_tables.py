"""Which detections COCO's matching calls right, wrong or neither: worked out once, then scored for any weights of the images."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import RECALL_LEVELS, check_ground_truth, image_numbers
from lw_retinanet.evaluation.detections import DetectionTable, check_detections

IOU_LEVELS: NDArray[np.float64] = np.linspace(0.5, 0.95, 10)
"""The ten IoUs from which on a detection may be right."""

AREA_RANGES: NDArray[np.float64] = np.array([[0.0, 1e10], [0.0, 32.0**2], [32.0**2, 96.0**2], [96.0**2, 1e10]])
"""(4, 2) square pixels, both ends included: all, small, medium, large."""

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
"""What ``MatchTable.scores`` gives, in this order; the names of ``coco_metrics.Metrics``."""

_PAIRS_AT_ONCE = 1 << 22  # pairs of detection and box whose overlap is computed together: some 300 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchTable:
    """The matches of one table of detections with one data set: D detections, N boxes, the K classes one after the other.

    Matching looks at one image and class at a time, so nothing here depends on which other images are scored.

    Args:
        num_images: I.
        detection_starts: (K + 1,) the detections of class k are the rows ``detection_starts[k]:detection_starts[k + 1]``.
        detection_image: (D,) row of the image in the ``Records``; within a class by falling score, ties by image id and row.
        is_right: (D, 4, 10) bool, by area range and IoU: found a box that counts.
        is_ignored: (D, 4, 10) bool: neither right nor wrong.
        box_starts: (K + 1,) likewise for the boxes.
        box_image: (N,) row of the image of each box.
        is_counted: (N, 4) bool: a box to find in the area range.
    """

    num_images: int
    detection_starts: NDArray[np.int64]
    detection_image: NDArray[np.int64]
    is_right: NDArray[np.bool_]
    is_ignored: NDArray[np.bool_]
    box_starts: NDArray[np.int64]
    box_image: NDArray[np.int64]
    is_counted: NDArray[np.bool_]

    def scores(self, weights: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """COCO's six average precisions of the data set in which image i stands ``weights[:, i]`` times.

        The copies of a detection rank one directly after the other.

        Args:
            weights: (W, I) whole numbers from 0; ones give the metrics of the data set itself.

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
            means = sums / classes[:, :, None]  # 0 / 0: NaN
        over_ious = means.mean(axis=2)
        return np.stack([over_ious[0], means[0, :, 0], means[0, :, 5], *over_ious[1:]], axis=1)

    @cached_property
    def _curves(self) -> tuple["_Curve", ...]:
        """One a class and area range that has boxes to find."""
        return tuple(self._make_curves())

    def _make_curves(self) -> Iterator["_Curve"]:
        for label in range(len(self.box_starts) - 1):
            boxes = slice(*self.box_starts[label : label + 2])
            rows = slice(*self.detection_starts[label : label + 2])
            for area in range(len(AREA_RANGES)):
                box_image = self.box_image[boxes][self.is_counted[boxes, area]]
                if len(box_image):
                    is_right, is_ignored = self.is_right[rows, area], self.is_ignored[rows, area]
                    yield _curve(area, box_image, self.detection_image[rows], is_right, ~is_ignored)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Points:
    """The right detections of one class, area range and IoU: no other point of the curve can raise the precision.

    Args:
        image: (P,) of each, by falling score.
        usual: (P,) how many rows of the curve's ``usual_image`` rank no lower.
        special_image, special_sign: detections that count here and not in ``usual_image`` (+1), or the other way round (-1).
        special: (P,) how many of these rank no lower.
    """

    image: NDArray[np.int64]
    usual: NDArray[np.int64]
    special_image: NDArray[np.int64]
    special_sign: NDArray[np.int32]
    special: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Curve:
    """Precision against recall of one class and area range.

    Args:
        box_image: images of the boxes to find.
        usual_image: images of the detections, right or wrong, that count at the highest IoU: almost the same ones at every IoU, so one
            running sum serves all ten.
    """

    area: int
    box_image: NDArray[np.int64]
    usual_image: NDArray[np.int64]
    points: tuple[_Points, ...]

    def average_precisions(self, weights: NDArray[np.int32], to_find: NDArray[np.int64]) -> NDArray[np.float64]:
        """(W, 10) average precision at each IoU; ``to_find``: (W,) boxes to find."""
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
            # Each point is read at the recall levels that it is the first to reach.
            reached = levels.take(right + row_starts)
            reached[:, 1:] -= reached[:, :-1].copy()
            result[:, place] = np.einsum("ij,ij->i", reached, envelope)
        return result / len(RECALL_LEVELS)


def match(records: Records, detections: DetectionTable, *, max_detections: int = 100) -> MatchTable:
    """Match detections with boxes by COCO's rules, and VOC's for difficult boxes, as ``coco_metrics.evaluate`` does.

    Args:
        max_detections: kept an image and class, best first.

    Raises:
        DataError: as ``coco_metrics.evaluate``.
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

    by_score = np.lexsort((-detections.scores[order], detections.labels[order]))  # the order so far is by image id
    by_label = np.argsort(records.labels, kind="stable")
    return MatchTable(
        num_images=records.num_images,
        detection_starts=np.searchsorted(detections.labels[order][by_score], np.arange(num_classes + 1)),
        detection_image=detections.image[order][by_score],
        is_right=found[by_score],
        is_ignored=is_ignored[by_score],
        box_starts=np.searchsorted(records.labels[by_label], np.arange(num_classes + 1)),
        box_image=box_image[by_label],
        is_counted=is_counted[by_label],
    )


def _matches(
    cell: NDArray[np.int64],
    detections_xywh: NDArray[np.float64],
    box_cell: NDArray[np.int64],
    boxes_xywh: NDArray[np.float64],
    records: Records,
    box_order: NDArray[np.int64],
    is_counted: NDArray[np.bool_],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which detections find a box that counts, and which an ignored one: two of (D, 4, 10) bool.

    A cell is one image and class. Detections come by cell and falling score, boxes by cell in the order of ``records``. All cells are
    matched side by side: first the best detection of each that overlaps any box, then the second best, and so on.
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
        # The last place is the best overlap, and among equal ones the last box, as in COCO; a box that counts goes before an ignored one.
        best = np.maximum.reduceat(np.where(can_match & counts, place, -1), runs, axis=0)
        best_ignored = np.maximum.reduceat(np.where(can_match & ~counts, place, -1), runs, axis=0)
        is_found, is_found_ignored = best >= 0, (best < 0) & (best_ignored >= 0)
        chosen = np.where(is_found, best, best_ignored)
        _, areas, levels = hits = np.nonzero(chosen >= 0)
        is_taken[met[chosen[hits]], areas, levels] = True
        found[detection[rows][runs]] = is_found
        found_ignored[detection[rows][runs]] = is_found_ignored
    return found, found_ignored


def _overlapping(
    cell: NDArray[np.int64],
    detections_xywh: NDArray[np.float64],
    box_cell: NDArray[np.int64],
    boxes_xywh: NDArray[np.float64],
    is_crowd: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every pair of one cell that overlaps by the lowest IoU level or more: rows of detection and box, and the IoU; by detection."""
    first = np.searchsorted(box_cell, cell, side="left")
    num_boxes = np.searchsorted(box_cell, cell, side="right") - first
    ends = np.cumsum(num_boxes)
    parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
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
    if not parts:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)
    detections, boxes, ious = zip(*parts, strict=True)
    return np.concatenate(detections), np.concatenate(boxes), np.concatenate(ious)


def _iou(detections_xywh: NDArray[np.float64], boxes_xywh: NDArray[np.float64], is_crowd: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Row by row, by the operations of COCO's own code, so that a level met exactly is met here too; a crowd's is over the detection."""
    low = np.maximum(detections_xywh[:, :2], boxes_xywh[:, :2])
    high = np.minimum(detections_xywh[:, :2] + detections_xywh[:, 2:], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
    sides = np.maximum(high - low, 0.0)
    intersection = sides[:, 0] * sides[:, 1]
    detection_area = detections_xywh[:, 2] * detections_xywh[:, 3]
    union = np.where(is_crowd, detection_area, detection_area + boxes_xywh[:, 2] * boxes_xywh[:, 3] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)


def _is_within(areas: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(M, 4) bool: in which area ranges each of M areas lies."""
    return (areas[:, None] >= AREA_RANGES[:, 0]) & (areas[:, None] <= AREA_RANGES[:, 1])


def _rank_in_run(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, 2 .. within each run of equal values."""
    rows = np.arange(len(values))
    starts = np.where(np.diff(values, prepend=values[:1] - 1) != 0, rows, 0)
    return rows - np.maximum.accumulate(starts)


def _curve(
    area: int, box_image: NDArray[np.int64], image: NDArray[np.int64], is_right: NDArray[np.bool_], counts: NDArray[np.bool_]
) -> _Curve:
    """``image``: (D,), ``is_right`` and ``counts``: (D, 10), of the class's detections by falling score."""
    last = int(np.flatnonzero(is_right.any(axis=1)).max(initial=-1)) + 1  # what ranks below the last right one changes nothing
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
    return _Curve(area=area, box_image=box_image, usual_image=image[is_usual], points=tuple(points))


def _running(values: NDArray[np.int32]) -> NDArray[np.int32]:
    """(W, M + 1): sums of the first 0, 1 .. M columns."""
    sums = np.zeros((len(values), values.shape[1] + 1), dtype=np.int32)
    np.cumsum(values, axis=1, dtype=np.int32, out=sums[:, 1:])
    return sums


def _levels_reached(to_find: NDArray[np.int64]) -> NDArray[np.float64]:
    """(W, max + 1): how many of the 101 recall levels are reached when so many boxes (the column) of ``to_find`` are found."""
    boxes = np.maximum(to_find, 1)[:, None]
    needed = np.ceil(RECALL_LEVELS * boxes - 1e-6).astype(np.int64)
    needed += needed / boxes < RECALL_LEVELS  # in floating point, as COCO compares: 7 of 20 do not reach the level 0.35
    width = int(boxes.max()) + 1
    flat = (np.minimum(needed, width - 1) + np.arange(len(boxes))[:, None] * width).ravel()
    return np.cumsum(np.bincount(flat, minlength=len(boxes) * width).reshape(len(boxes), width), axis=1, dtype=np.float64)
