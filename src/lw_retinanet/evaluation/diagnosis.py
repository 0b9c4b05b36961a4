"""What kinds of errors a detector makes, where, and which labels of the data set look wrong. All at IoU 0.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import AREA_NAMES, check_ground_truth, coco_evaluator, image_numbers
from lw_retinanet.evaluation.detections import DetectionTable, check_detections
from lw_retinanet.evaluation.match_tables import AREA_RANGES

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

ERROR_KINDS: Mapping[str, str] = {
    "Cls": "class",
    "Loc": "location",
    "Both": "class and location",
    "Dupe": "duplicate",
    "Bkg": "background",
    "Miss": "missed",
}
"""Names of hotcoco, in the order of TIDE, and ours."""

MATCH_IOU = 0.5
NEAR_IOU = 0.1  # less overlap than this counts as none, as in TIDE
_TRUSTED_PRECISION = 0.9  # a detector may doubt labels at scores where so many of its detections are right
_TRUSTED_NUMBER = 10  # and where it has so many


class ErrorKind(NamedTuple):
    """One of TIDE's kinds of errors.

    Args:
        name: A value of ``ERROR_KINDS``.
        number: How often it occurs, detections of all scores counted.
        ap_cost: By how much AP50 would rise, 0..1, if these errors alone were put right.
    """

    name: str
    number: int
    ap_cost: float


class Bin(NamedTuple):
    """Detections whose scores lie in one tenth of 0..1.

    Args:
        number: How many there are.
        score: Their mean score.
        precision: The share of them that is right.
    """

    number: int
    score: float
    precision: float


class SizeRecall(NamedTuple):
    """The boxes of one of COCO's area ranges: how many there are to find, and how many are found."""

    name: str
    boxes: int
    found: int


class Suspect(NamedTuple):
    """A label that may be wrong.

    Args:
        kind: ``no label``: a confident detection where no box of any class is; ``other class``: one on a box of another class that
            nothing else matches; ``never found``: a box that no detection of any class and score comes near.
        image: Row of the image in the ``Records``.
        box_xywh: The place, in pixels of the image.
        label: Class of the detection, or of the box that was never found.
        labelled: Class that the box has; None where there is no box.
        score: Of the detection; None for a box.
    """

    kind: Literal["no label", "other class", "never found"]
    image: int
    box_xywh: tuple[float, float, float, float]
    label: int
    labelled: int | None
    score: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Diagnosis:
    """The errors of a detector on a data set.

    Args:
        score: Detections below this score are left out of the counts below; it gives the best F1 over all classes.
        precision, recall: At this score, over all classes, 0..1.
        errors: TIDE's six kinds of errors, at all scores.
        confusion: (K + 1, K + 1) boxes by class (rows) and class of the detection (columns); the last row has detections without a box,
            the last column boxes without a detection.
        bins: Ten ranges of scores, the lowest first.
        calibration_error: Mean difference of score and precision over the ranges, weighted by their detections.
        by_image: (I, 3) in each image, how many detections are right, how many are wrong, and how many boxes are missed.
        is_right, is_wrong: (D,) bool for each detection; neither for a low score, or for a crowd or difficult box.
        is_missed: (B,) bool for each box.
        sizes: Recall by area.
        suspects: Labels that look wrong: confident detections by falling score, then boxes never found, the largest first.
        trusted_score: Detections of this score can be trusted to doubt a label; None if none can.
    """

    score: float
    precision: float
    recall: float
    errors: tuple[ErrorKind, ...]
    confusion: Ints
    bins: tuple[Bin, ...]
    calibration_error: float
    by_image: Ints
    is_right: Bools
    is_wrong: Bools
    is_missed: Bools
    sizes: tuple[SizeRecall, ...]
    suspects: tuple[Suspect, ...]
    trusted_score: float | None

    @property
    def worst_images(self) -> list[int]:
        """Rows of the images with errors, those with the most first."""
        errors = self.by_image[:, 1:].sum(axis=1)
        order = np.lexsort((self._f1, -errors))
        return [int(image) for image in order if errors[image]]

    @property
    def best_images(self) -> list[int]:
        """Rows of the images where something is right: the largest F1 first, and of equal ones those with the most right detections."""
        order = np.lexsort((-self.by_image[:, 0], -self._f1))
        return [int(image) for image in order if self.by_image[image, 0]]

    @property
    def _f1(self) -> NDArray[np.float64]:
        right, wrong, missed = self.by_image.T
        return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def diagnose(records: Records, detections: DetectionTable) -> Diagnosis:
    """Match detections with boxes at IoU 0.5 and sort what went wrong. Crowd regions and difficult boxes count as neither right nor wrong.

    Raises:
        DataError: See :func:`~lw_retinanet.evaluation.coco_metrics.evaluate`.
    """
    check_ground_truth(records)
    check_detections(detections, records)
    is_open = ~records.is_ignored
    evaluator = coco_evaluator(
        records, detections, boxes=np.arange(records.num_boxes), areas=records.areas, is_crowd=np.asarray(records.is_ignored)
    )
    evaluator.evaluate()
    tide, calibration = evaluator.tide_errors(pos_thr=MATCH_IOU, bg_thr=NEAR_IOU), evaluator.calibration(iou_threshold=MATCH_IOU)
    matches = evaluator.image_diagnostics(iou_thr=MATCH_IOU)
    right, wrong = (_rows(matches["dt_status"], status, len(detections)) for status in ("tp", "fp"))
    score, precision, recall, trusted = _operating_point(detections.scores, right, wrong, int(is_open.sum()))
    is_shown = detections.scores >= score
    is_missed = is_open.copy()
    found = [box - 1 for detection, box in matches["dt_match"].items() if is_shown[detection - 1]]
    is_missed[np.array(found, dtype=np.int64)] = False
    by_image = np.stack(
        [
            np.bincount(images, minlength=records.num_images)
            for images in (detections.image[right & is_shown], detections.image[wrong & is_shown], records.image_of_box[is_missed])
        ],
        axis=1,
    )
    doubts = [] if trusted is None else evaluator.image_diagnostics(iou_thr=MATCH_IOU, score_thr=trusted)["label_errors"]
    return Diagnosis(
        score=score,
        precision=precision,
        recall=recall,
        errors=tuple(ErrorKind(name, tide["counts"][key], tide["delta_ap"][key]) for key, name in ERROR_KINDS.items()),
        confusion=_confusion(records, detections, (right | wrong) & is_shown),
        bins=tuple(Bin(one["count"], one["avg_confidence"], one["avg_accuracy"]) for one in calibration["bins"]),
        calibration_error=float(calibration["ece"]),
        by_image=by_image.astype(np.int64),
        is_right=right & is_shown,
        is_wrong=wrong & is_shown,
        is_missed=is_missed,
        sizes=_sizes(records, is_open, is_missed),
        suspects=(*_doubted(doubts, records, detections), *_never_found(records, detections, is_missed)),
        trusted_score=trusted,
    )


def _rows(status: Mapping[int, str], wanted: str, count: int) -> Bools:
    rows = np.zeros(count, dtype=np.bool_)
    rows[[number - 1 for number, one in status.items() if one == wanted]] = True
    return rows


def _operating_point(scores: NDArray[np.float64], right: Bools, wrong: Bools, boxes: int) -> tuple[float, float, float, float | None]:
    """The score of the best F1 with its precision and recall, and the least score from which on detections are trusted."""
    order = np.lexsort((~right, -scores))
    order = order[(right | wrong)[order]]
    if not right.any() or not boxes:
        return 0.5, 0.0, 0.0, None
    numbers, hits = np.arange(1, len(order) + 1), np.cumsum(right[order])
    is_last = np.append(np.diff(scores[order]) != 0, True)  # a score takes all detections of the same score with it
    f1 = np.where(is_last, 2 * hits / (numbers + boxes), 0.0)
    best = int(f1.argmax())
    trusted = np.flatnonzero(is_last & (hits >= _TRUSTED_PRECISION * numbers) & (numbers >= _TRUSTED_NUMBER))
    least = float(scores[order[trusted[-1]]]) if len(trusted) else None
    return float(scores[order[best]]), float(hits[best] / numbers[best]), float(hits[best] / boxes), least


def _confusion(records: Records, detections: DetectionTable, is_used: Bools) -> Ints:
    kept = DetectionTable(**{name: column[is_used] for name, column in vars(detections).items()})
    evaluator = coco_evaluator(
        records,
        kept,
        boxes=np.flatnonzero(~records.is_ignored),
        areas=records.areas,
        is_crowd=np.zeros(records.num_boxes, dtype=np.bool_),
    )
    return np.asarray(evaluator.confusion_matrix(iou_thr=MATCH_IOU)["matrix"]).astype(np.int64)


def _sizes(records: Records, is_open: Bools, is_missed: Bools) -> tuple[SizeRecall, ...]:
    sizes = []
    for name, (low, high) in zip(AREA_NAMES[1:], AREA_RANGES[1:], strict=True):
        inside = is_open & (records.areas >= low) & (records.areas <= high)
        sizes.append(SizeRecall(name, int(inside.sum()), int((inside & ~is_missed).sum())))
    return tuple(sizes)


def _doubted(candidates: list[dict[str, Any]], records: Records, detections: DetectionTable) -> list[Suspect]:
    row_of_image = np.argsort(image_numbers(records))
    suspects = []
    for one in sorted(candidates, key=lambda one: -one["dt_score"]):
        row, labelled = one["dt_id"] - 1, one["gt_category_id"]
        suspects.append(
            Suspect(
                kind="no label" if labelled is None else "other class",
                image=int(row_of_image[one["image_id"] - 1]),
                box_xywh=_as_tuple(detections.boxes_xywh[row]),
                label=int(detections.labels[row]),
                labelled=None if labelled is None else labelled - 1,
                score=float(one["dt_score"]),
            )
        )
    return suspects


def _never_found(records: Records, detections: DetectionTable, is_missed: Bools) -> list[Suspect]:
    """The missed boxes that no detection comes near, the largest first."""
    order = np.argsort(detections.image, kind="stable")
    starts = np.searchsorted(detections.image[order], np.arange(records.num_images + 1))
    image_of_box = records.image_of_box
    rows = []
    for row in np.flatnonzero(is_missed):
        image = image_of_box[row]
        if _overlap(records.boxes_xywh[row], detections.boxes_xywh[order[starts[image] : starts[image + 1]]]) < NEAR_IOU:
            rows.append(int(row))
    rows.sort(key=lambda row: -records.areas[row])
    return [
        Suspect(
            kind="never found",
            image=int(image_of_box[row]),
            box_xywh=_as_tuple(records.boxes_xywh[row]),
            label=int(records.labels[row]),
            labelled=int(records.labels[row]),
            score=None,
        )
        for row in rows
    ]


def _overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """The largest IoU of a box with others, all as x, y, width, height."""
    sides = np.minimum(box[:2] + box[2:], others[:, :2] + others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.maximum(sides, 0).prod(axis=1)
    union = box[2:].prod() + others[:, 2:].prod(axis=1) - shared
    return float((shared / np.maximum(union, 1e-9)).max(initial=0.0))


def _as_tuple(box: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x, y, width, height = box.tolist()
    return x, y, width, height
