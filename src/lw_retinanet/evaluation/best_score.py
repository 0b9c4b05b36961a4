"""The score threshold to recommend: the one with the largest F1."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.match_tables import MatchTable, match


def score_metrics(records: Records, detections: DetectionTable, *, max_detections: tuple[int, int, int] = (1, 10, 100)) -> Metrics:
    """What :func:`~lw_retinanet.evaluation.coco_metrics.evaluate` gives, with the recommended thresholds."""
    metrics = evaluate(records, detections, max_detections=max_detections)
    return replace(metrics, best_score=best_scores(records, detections, max_detections=max_detections[2]))


def best_scores(records: Records, detections: DetectionTable, *, max_detections: int = 100) -> dict[str, Any] | None:
    """The threshold with the largest F1 over all classes, and that of every class, as plain values.

    F1 is twice the number of right detections with a greater score, divided by the number of all such detections plus that of the boxes
    to find, at IoU 0.5. Ignored boxes and what matches them count neither way, as in COCO's metrics.

    Returns:
        ``{"score", "F1", "per_class": [{"name", "score", "F1"}, ...]}`` in the order of the classes. Score and F1 of a class are None if
        no detection of it is right; without any right detection there is no recommendation, and None is returned.

    Raises:
        DataError: As ``evaluate``.
    """
    table = match(records, detections, max_detections=max_detections)
    classes = [_best(table, [label]) for label in range(len(records.categories))]
    overall = _best(table, range(len(records.categories)))
    if overall is None:
        return None
    none = {"score": None, "F1": None}
    per_class = [{"name": category.name, **(best or none)} for category, best in zip(records.categories, classes, strict=True)]
    return {**overall, "per_class": per_class}


def _best(table: MatchTable, labels: Sequence[int]) -> dict[str, float] | None:
    """The threshold of some classes together."""
    rows = np.concatenate([np.arange(*table.detection_starts[label : label + 2]) for label in labels] or [np.zeros(0, np.int64)])
    rows = rows[~table.is_ignored[rows, 0, 0]]
    num_boxes = sum(int(table.is_counted[slice(*table.box_starts[label : label + 2]), 0].sum()) for label in labels)
    return _largest_f1(table.detection_score[rows], table.is_right[rows, 0, 0], num_boxes)


def _largest_f1(scores: NDArray[np.float64], is_right: NDArray[np.bool_], num_boxes: int) -> dict[str, float] | None:
    """The best threshold for (D,) detections; half way between the last score above it and the first one below."""
    if not is_right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], np.cumsum(is_right[order])
    f1 = 2 * right / (np.arange(1, len(scores) + 1) + num_boxes)
    # Detections of equal score are shown together. Below the last one nothing is known, so the threshold stays just under it.
    following = np.append(scores[1:], np.nextafter(np.float32(scores[-1]), np.float32(0)))
    f1[following == scores] = 0
    last = int(f1.argmax())
    return {"score": float((scores[last] + following[last]) / 2), "F1": float(f1[last])}
