"""COCO's twelve numbers: what pycocotools computes, after the checks that it leaves out."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.errors import ConfigError, DataError
from lw_retinanet.evaluation.detections import DetectionTable, check_detections

RECALL_LEVELS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""The 101 recall values at which COCO reads the precision."""

_IOU_50, _IOU_75 = 0, 5  # positions in 0.50, 0.55 .. 0.95
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)
# COCO ignores boxes outside 0..1e5^2 square pixels in every area range: the way to say "ignore" without "crowd".
_IGNORED_AREA = 1e11


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """The numbers of one class; ``AP`` and ``AP50`` are -1 where it has no box to find.

    Args:
        images: images with at least one box of the class.
        boxes: boxes to find, ignored ones not counted.
    """

    name: str
    category_id: int | str
    AP: float
    AP50: float
    images: int
    boxes: int

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True, eq=False)
class Metrics:
    """COCO's twelve numbers in 0..1, or -1 where there is nothing to find.

    Args:
        AP, AP50, AP75: average precision over IoU 0.50, 0.55 .. 0.95, and at one IoU.
        APs, APm, APl, ARs, ARm, ARl: of boxes of up to 32^2, up to 96^2, and more square pixels.
        AR1, AR10, AR100: recall with as many detections an image as ``max_detections`` says.
        max_detections: detections kept an image and class, best first; the largest holds for all but the first two recalls.
        images: images scored, those without boxes included.
        per_class: one entry a class, in the data set's order.
        precision50: (K, 101) precision at IoU 0.5 at each of ``RECALL_LEVELS``; -1 for a class without boxes.
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

    @cached_property
    def mean_precision50(self) -> NDArray[np.float64]:
        """(101,) mean of ``precision50`` over the classes that have boxes; -1 if none has."""
        scored = self.precision50[self.precision50[:, 0] > -1]
        return scored.mean(axis=0) if len(scored) else np.full(len(RECALL_LEVELS), -1.0)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: the twelve numbers, ``per_class``, ``images``. The recalls are named by ``max_detections``: AR1, AR10, AR100."""
        few, some, many = (f"AR{limit}" for limit in self.max_detections)
        return {
            **{key: getattr(self, key) for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")},
            few: self.AR1,
            some: self.AR10,
            many: self.AR100,
            **{key: getattr(self, key) for key in ("ARs", "ARm", "ARl")},
            "per_class": [entry.as_dict() for entry in self.per_class],
            "images": self.images,
        }


def evaluate(records: Records, detections: DetectionTable, *, max_detections: tuple[int, int, int] = (1, 10, 100)) -> Metrics:
    """Score detections against ground truth by COCO's rules, to pycocotools' numbers.

    Unlike pycocotools: annotation ids play no part, so 0 and repeats do no harm; no detections score 0; a ``max_detections`` that
    ends elsewhere than at 100 gives real APs; boxes or scores that are not finite are refused, never matched.

    Equal scores rank by image id, then by row, so the order in which images were scored changes nothing.

    ``is_crowd`` means COCO's crowd (overlap is intersection over the detection's area). ``is_difficult`` means VOC's rule: a detection
    whose best match is a difficult box, by plain IoU, is neither right nor wrong, and neither are further detections of the same box.

    Args:
        max_detections: three increasing limits on the detections of an image and class.

    Raises:
        DataError: if a box or score is not finite or a detection's image or label is not one of ``records``.
        ConfigError: if ``max_detections`` is not three increasing positive numbers.
    """
    if len(max_detections) != 3 or not 0 < max_detections[0] < max_detections[1] < max_detections[2]:
        raise ConfigError(f"max_detections must be three increasing positive numbers such as (1, 10, 100), got {max_detections}")
    check_ground_truth(records)
    check_detections(detections, records)
    precision, recall = _precision_and_recall(records, detections, max_detections)
    return Metrics(
        AP=_mean(precision[:, :, :, _ALL, 2]),
        AP50=_mean(precision[_IOU_50, :, :, _ALL, 2]),
        AP75=_mean(precision[_IOU_75, :, :, _ALL, 2]),
        APs=_mean(precision[:, :, :, _SMALL, 2]),
        APm=_mean(precision[:, :, :, _MEDIUM, 2]),
        APl=_mean(precision[:, :, :, _LARGE, 2]),
        AR1=_mean(recall[:, :, _ALL, 0]),
        AR10=_mean(recall[:, :, _ALL, 1]),
        AR100=_mean(recall[:, :, _ALL, 2]),
        ARs=_mean(recall[:, :, _SMALL, 2]),
        ARm=_mean(recall[:, :, _MEDIUM, 2]),
        ARl=_mean(recall[:, :, _LARGE, 2]),
        max_detections=max_detections,
        images=records.num_images,
        per_class=_per_class(records, precision[..., _ALL, 2]),
        precision50=precision[_IOU_50, :, :, _ALL, 2].T.copy(),
    )


def check_ground_truth(records: Records) -> None:
    """Refuse what would be scored without a word.

    Raises:
        DataError: for a box or area that is not finite, naming its annotation.
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
    import hotcoco

    numbers = image_numbers(records)
    image_of_box = records.image_of_box
    voc_ignored = records.is_difficult & ~records.is_crowd
    # An ignored box that is no crowd takes one detection; VOC's takes any number, so it is repeated once a detection it could meet.
    copies = np.ones(records.num_boxes, dtype=np.int64)
    if voc_ignored.any():
        met = _detections_beside(image_of_box[voc_ignored], records.labels[voc_ignored], detections, len(records.categories))
        copies[voc_ignored] = np.minimum(met, max_detections[2])
    rows = np.repeat(np.arange(records.num_boxes), copies)
    ground_truth = hotcoco.COCO.from_arrays(
        [{"id": number} for number in range(1, records.num_images + 1)],
        [{"id": label + 1, "name": str(label)} for label in range(len(records.categories))],
        numbers[image_of_box[rows]],
        records.labels[rows].astype(np.int64) + 1,
        records.boxes_xywh[rows],
        area=np.where(voc_ignored, _IGNORED_AREA, records.areas)[rows],
        iscrowd=records.is_crowd[rows],
    )
    columns = np.column_stack(
        [numbers[detections.image], detections.boxes_xywh, detections.scores, detections.labels.astype(np.float64) + 1]
    )
    evaluator = hotcoco.COCOeval(ground_truth, ground_truth.load_res(columns), "bbox")
    evaluator.params.max_dets = list(max_detections)
    evaluator.evaluate()
    evaluator.accumulate()
    accumulated = evaluator.eval
    assert accumulated is not None
    return np.asarray(accumulated["precision"]), np.asarray(accumulated["recall"])


def image_numbers(records: Records) -> NDArray[np.int64]:
    """(I,) 1..I in the order of the data set's image ids, which settles ties between images as pycocotools does."""
    ids = records.image_ids
    order = sorted(range(records.num_images), key=lambda row: (isinstance(ids[row], str), ids[row]))
    numbers = np.empty(records.num_images, dtype=np.int64)
    numbers[order] = np.arange(1, records.num_images + 1)
    return numbers


def _detections_beside(
    image: NDArray[np.int64], labels: NDArray[np.int32], detections: DetectionTable, num_classes: int
) -> NDArray[np.int64]:
    """For each box, how many detections share its image and class."""
    keys, counts = np.unique(detections.image * num_classes + detections.labels, return_counts=True)
    wanted = image * num_classes + labels
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)


def _per_class(records: Records, precision: NDArray[np.float64]) -> tuple[ClassMetrics, ...]:
    """``precision``: (10 IoUs, 101 recalls, K)."""
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
            AP50=_mean(precision[_IOU_50, :, label]),
            images=int(images[label]),
            boxes=int(boxes[label]),
        )
        for label, category in enumerate(records.categories)
    )


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over the entries that have something to find, -1 if none has."""
    valid = values[values > -1]
    return float(np.mean(valid)) if valid.size else -1.0
