"""What a reader of the COCO numbers should know about how they came about."""

from collections.abc import Iterator

import numpy as np

from lw_retinanet.data.records import Records
from lw_retinanet.errors import shown
from lw_retinanet.evaluation.detections import DetectionTable

_LOW_SCORE = 0.1  # a precision-recall curve needs the detections below the score that people look at


def notes_on(records: Records, detections: DetectionTable, most: int) -> tuple[str, ...]:
    """Say where the rules of COCO hide something: limits that cap the numbers, classes that do not count, boxes that match nothing.

    Args:
        records: Ground truth.
        detections: What was scored.
        most: Largest number of detections of an image and class that is scored.
    """
    return tuple(_notes(records, detections, most))


def _notes(records: Records, detections: DetectionTable, most: int) -> Iterator[str]:
    num_classes = max(1, len(records.categories))
    counted = ~records.is_ignored
    cells = records.image_of_box[counted] * num_classes + records.labels[counted]
    crowded, counts = np.unique(cells, return_counts=True)
    crowded, counts = crowded[counts > most], counts[counts > most]
    if len(crowded):
        images, largest = len(np.unique(crowded // num_classes)), counts.max()
        yield (
            f"{images:,} of {records.num_images:,} images have more than {most} boxes of one class, up to {largest:,}; only the {most} "
            f"best detections of an image and class are scored, which caps AP and recall: raise max_detections to {largest:,}"
        )
    to_find = np.bincount(records.labels[counted], minlength=num_classes)
    found = np.bincount(detections.labels, minlength=num_classes)
    lost = np.flatnonzero((to_find == 0) & (found > 0))
    if len(lost):
        names = ", ".join(shown(records.categories[label].name) for label in lost[:3]) + (", ..." if len(lost) > 3 else "")
        yield (
            f"{len(lost)} classes have no box to find ({names}): they have no AP, and their {found[lost].sum():,} detections count nowhere"
        )
    reversed_ = int((detections.boxes_xywh[:, 2:] < 0).any(axis=1).sum())
    if reversed_:
        yield f"{reversed_:,} of {len(detections):,} detections have a negative width or height and match no box: write x, y, width, height"
    if len(detections) and detections.scores.min() >= _LOW_SCORE:
        yield (
            f"no detection has a score below {detections.scores.min():.2g}; AP counts those of low scores, too: "
            "let the detector give all down to 0.05"
        )
