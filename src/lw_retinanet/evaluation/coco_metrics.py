"""COCO's twelve numbers, as pycocotools computes them, with checks of the input that pycocotools leaves out."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.errors import ConfigError, DataError
from lw_retinanet.evaluation.detections import DetectionTable, check_detections
from lw_retinanet.evaluation.notes import notes_on

RECALL_LEVELS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""The 101 recall values at which COCO reads the precision."""

IOUS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)

AREA_NAMES = ("all", "small", "medium", "large")
"""Ranges of object area, in the order of hotcoco's axis."""

# COCO ignores boxes outside 0..1e5^2 square pixels in every area range: the way to say "ignore" without "crowd".
_IGNORED_AREA = 1e11


class SummaryNumber(NamedTuple):
    """One of the twelve lines that pycocotools prints. Further numbers go into :class:`Metrics` and its ``as_dict``, not here.

    Args:
        name: Attribute of :class:`Metrics`.
        iou: One of `IOUS`, or None for the mean over all ten.
        area: Position in ``AREA_NAMES``.
        limit: Position in ``max_detections``.
    """

    name: str
    iou: float | None = None
    area: int = 0
    limit: int = 2


SUMMARY = (
    SummaryNumber("AP"),
    SummaryNumber("AP50", iou=0.5),
    SummaryNumber("AP75", iou=0.75),
    SummaryNumber("APs", area=1),
    SummaryNumber("APm", area=2),
    SummaryNumber("APl", area=3),
    SummaryNumber("AR1", limit=0),
    SummaryNumber("AR10", limit=1),
    SummaryNumber("AR100"),
    SummaryNumber("ARs", area=1),
    SummaryNumber("ARm", area=2),
    SummaryNumber("ARl", area=3),
)


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """The numbers of one class. ``AP`` and ``AP50`` are -1 if the class has no box to find.

    Args:
        images: Number of images with at least one box of the class.
        boxes: Number of boxes to find, without the ignored ones.
    """

    name: str
    category_id: int | str
    AP: float
    AP50: float
    images: int
    boxes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """COCO's twelve numbers, each in 0..1, or -1 where there is nothing to find.

    Args:
        AP, AP50, AP75: Average precision over IoU 0.50, 0.55 .. 0.95, and at one IoU.
        APs, APm, APl, ARs, ARm, ARl: For boxes of up to 32^2, up to 96^2, and more square pixels.
        AR1, AR10, AR100: Recall with at most as many detections in an image as ``max_detections`` says.
        max_detections: Limits on the detections of one image and class, best first. All numbers but the first two recalls use the last.
        images: Number of scored images, including those without boxes.
        per_class: One entry for each class, in the order of the data set.
        precision50: (K, 101) precision at IoU 0.5 for each of ``RECALL_LEVELS``; -1 for a class without boxes.
        notes: What the numbers hide, see :func:`lw_retinanet.evaluation.notes.notes_on`.
        best_score: The score threshold to recommend, see :func:`lw_retinanet.evaluation.best_score.best_scores`, where it was asked for.
    """

    AP: float
    AP50: float
    AP75: float
    APs: float
    APm: float
    APl: float
    AR1: float
    AR10: float
    AR100: float
    ARs: float
    ARm: float
    ARl: float
    max_detections: tuple[int, int, int]
    images: int
    per_class: tuple[ClassMetrics, ...]
    precision50: NDArray[np.float64]
    notes: tuple[str, ...] = ()
    best_score: Mapping[str, Any] | None = None

    @cached_property
    def mean_precision50(self) -> NDArray[np.float64]:
        """(101,) mean of ``precision50`` over the classes that have boxes; -1 if no class has any."""
        scored = self.precision50[self.precision50[:, 0] > -1]
        return scored.mean(axis=0) if len(scored) else np.full(len(RECALL_LEVELS), -1.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON. The keys of the recalls name the limits in ``max_detections``: AR1, AR10, AR100."""
        recalls = dict(zip(("AR1", "AR10", "AR100"), self.max_detections, strict=True))
        return {
            **{f"AR{recalls[name]}" if name in recalls else name: getattr(self, name) for name, *_ in SUMMARY},
            "per_class": [dict(vars(entry)) for entry in self.per_class],
            "images": self.images,
        }


def evaluate(records: Records, detections: DetectionTable, *, max_detections: tuple[int, int, int] = (1, 10, 100)) -> Metrics:
    """Score detections against ground truth by COCO's rules. The numbers are those of pycocotools, with these differences:

    - Annotation ids are not used, so ids that are 0 or repeated do no harm.
    - A table without detections scores 0.
    - The APs are correct also if ``max_detections`` does not end with 100.
    - Boxes and scores that are not finite are refused.

    Detections with equal scores rank by image id, then by row, so the result does not depend on the order of the images.

    ``is_crowd`` has COCO's meaning: the overlap is the intersection divided by the area of the detection. ``is_difficult`` has VOC's
    meaning: a detection whose best match (by ordinary IoU) is a difficult box counts as neither right nor wrong, and so do further
    detections of that box.

    Args:
        max_detections: Three increasing limits on the detections of an image and class.

    Raises:
        DataError: If a box or score is not finite, or if the image or label of a detection is not in ``records``.
        ConfigError: If ``max_detections`` is not three increasing positive numbers.
    """
    if len(max_detections) != 3 or not 0 < max_detections[0] < max_detections[1] < max_detections[2]:
        raise ConfigError(f"max_detections must be three increasing positive numbers such as (1, 10, 100), got {max_detections}")
    check_ground_truth(records)
    check_detections(detections, records)
    precision, recall = _precision_and_recall(records, detections, max_detections)
    numbers: dict[str, Any] = {}
    for name, iou, area, limit in SUMMARY:
        values = precision if name.startswith("AP") else recall
        numbers[name] = _mean(values[slice(None) if iou is None else IOUS.index(iou), ..., area, limit])
    return Metrics(
        **numbers,
        max_detections=max_detections,
        images=records.num_images,
        per_class=_per_class(records, precision[..., 0, 2]),
        precision50=precision[0, :, :, 0, 2].T.copy(),
        notes=notes_on(records, detections, max_detections[2]),
    )


def check_ground_truth(records: Records) -> None:
    """Refuse annotations that cannot be scored correctly.

    Raises:
        DataError: For a box or area that is not finite; the message names its annotation.
    """
    finite = np.isfinite(records.boxes_xywh).all(axis=1) & np.isfinite(records.areas)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(
            f"annotation {records.annotation_ids[row]}: its box or area is not finite; correct or remove it in the annotation file"
        )


def _precision_and_recall(
    records: Records, detections: DetectionTable, max_detections: tuple[int, int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision (10 IoUs, 101 recalls, K, 4 areas, 3 limits) and recall (10, K, 4, 3); -1 where there is nothing to find."""
    image_of_box = records.image_of_box
    voc_ignored = records.is_difficult & ~records.is_crowd
    # In COCO an ignored box that is no crowd can match one detection, in VOC any number. So each of VOC's ignored boxes is repeated, once
    # for every detection of its image and class.
    copies = np.ones(records.num_boxes, dtype=np.int64)
    if voc_ignored.any():
        cells = np.sort(detections.image * len(records.categories) + detections.labels)
        cell = image_of_box[voc_ignored] * len(records.categories) + records.labels[voc_ignored]
        num_detections = np.searchsorted(cells, cell, side="right") - np.searchsorted(cells, cell)
        copies[voc_ignored] = np.minimum(num_detections, max_detections[2])
    rows = np.repeat(np.arange(records.num_boxes), copies)
    areas = np.where(voc_ignored, _IGNORED_AREA, records.areas)
    evaluator = coco_evaluator(records, detections, boxes=rows, areas=areas, is_crowd=records.is_crowd)
    evaluator.params.max_dets = list(max_detections)
    evaluator.evaluate()
    evaluator.accumulate()
    accumulated = evaluator.eval
    assert accumulated is not None
    return np.asarray(accumulated["precision"]), np.asarray(accumulated["recall"])


def coco_evaluator(
    records: Records, detections: DetectionTable, *, boxes: NDArray[np.int64], areas: NDArray[np.float64], is_crowd: NDArray[np.bool_]
) -> Any:
    """A ``hotcoco.COCOeval``. Images have the ids of :func:`image_numbers`, class k has the id k + 1, row i of ``boxes`` and of
    ``detections`` the id i + 1.

    Args:
        boxes: Rows of the boxes of ``records`` to use; a row may occur several times.
        areas: (B,) areas of the boxes of ``records``.
        is_crowd: (B,) bool.
    """
    import hotcoco

    numbers = image_numbers(records)
    ground_truth = hotcoco.COCO.from_arrays(
        [{"id": number} for number in range(1, records.num_images + 1)],
        [{"id": label + 1, "name": str(label)} for label in range(len(records.categories))],
        numbers[records.image_of_box[boxes]],
        records.labels[boxes].astype(np.int64) + 1,
        records.boxes_xywh[boxes],
        area=areas[boxes],
        iscrowd=is_crowd[boxes],
    )
    columns = np.column_stack(
        [numbers[detections.image], detections.boxes_xywh, detections.scores, detections.labels.astype(np.float64) + 1]
    )
    return hotcoco.COCOeval(ground_truth, ground_truth.load_res(columns), "bbox")


def image_numbers(records: Records) -> NDArray[np.int64]:
    """(I,) numbers 1..I in the order of the image ids. pycocotools orders equal scores of different images in this way."""
    ids = records.image_ids
    order = sorted(range(records.num_images), key=lambda row: (isinstance(ids[row], str), ids[row]))
    numbers = np.empty(records.num_images, dtype=np.int64)
    numbers[order] = np.arange(1, records.num_images + 1)
    return numbers


def _per_class(records: Records, precision: NDArray[np.float64]) -> tuple[ClassMetrics, ...]:
    """The numbers of every class; ``precision`` is (10 IoUs, 101 recalls, K)."""
    num_classes = len(records.categories)
    counted = ~records.is_ignored
    image_of_box = records.image_of_box
    boxes = np.bincount(records.labels[counted], minlength=num_classes)
    pairs = np.unique(image_of_box[counted] * num_classes + records.labels[counted])
    images = np.bincount(pairs % max(num_classes, 1), minlength=num_classes)
    return tuple(
        ClassMetrics(
            name=category.name,
            category_id=category.id,
            AP=_mean(precision[:, :, label]),
            AP50=_mean(precision[0, :, label]),
            images=int(images[label]),
            boxes=int(boxes[label]),
        )
        for label, category in enumerate(records.categories)
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over the entries that are not -1 (nothing to find), or -1 if all are."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else -1.0
