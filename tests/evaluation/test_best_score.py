from typing import Any

import numpy as np
import pytest

from lw_retinanet.evaluation.best_score import best_scores, score_metrics
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.report import class_table


def found(rows: list[tuple[int, float, int, float]]) -> DetectionTable:
    """Detections of 10 x 10 pixels as image, x, label and score; y is 0."""
    image, x, label, score = (np.array(column) for column in zip(*rows, strict=True))
    zeros = np.zeros(len(rows))
    return DetectionTable.from_arrays(image, np.stack([x, zeros, zeros + 10, zeros + 10], axis=1), score, label)


def test_by_hand(box: Any, make_records: Any) -> None:
    truth = [box(xywh=(0, 0, 10, 10), label=0), box(xywh=(50, 0, 10, 10), label=0), box(xywh=(0, 0, 10, 10), label=1)]
    records = make_records(truth, categories=[(7, "a"), (3, "b"), (5, "none")])
    detections = found([(0, 0, 0, 0.9), (0, 200, 0, 0.8), (0, 50, 0, 0.6), (0, 300, 0, 0.5), (0, 0, 1, 0.3), (0, 400, 2, 0.2)])
    best = best_scores(records, detections)
    assert best is not None
    # a: 2/3 with one detection, 2/4 with two, 4/5 with three, 4/6 with four. b: its only detection is right, and nothing is known below it.
    one, other, none = best["per_class"]
    assert one == {"name": "a", "score": pytest.approx(0.55), "F1": pytest.approx(0.8)}
    assert other["F1"] == 1
    assert np.float32(other["score"]) < np.float32(0.3) < other["score"] + 1e-6
    assert none == {"name": "none", "score": None, "F1": None}
    # Together: 2/4, 2/5, 4/6, 4/7, 6/8, 6/9 with three boxes to find.
    assert (best["score"], best["F1"]) == (pytest.approx(0.25), pytest.approx(0.75))
    table = class_table(score_metrics(records, detections)).splitlines()
    assert table[0].split() == ["class", "images", "boxes", "AP", "AP50", "best", "score", "F1"]
    assert table[1].split()[-2:] == ["0.550", "0.800"]
    assert table[3].split()[-2:] == ["-", "-"]
    assert table[4] == "best score for all classes: 0.250, with an F1 of 0.750 at IoU 0.5"


def test_detections_of_one_score_are_shown_together(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))])
    best = best_scores(records, found([(0, 0, 0, 0.5), (0, 100, 0, 0.5), (0, 200, 0, 0.4)]))
    assert best is not None
    # One right of two, not the right one alone, as no threshold parts them.
    assert (best["score"], best["F1"]) == (pytest.approx(0.45), pytest.approx(2 / 3))


def test_what_is_ignored_counts_neither_way(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10)), box(xywh=(100, 0, 10, 10), crowd=True)])
    best = best_scores(records, found([(0, 100, 0, 0.9), (0, 0, 0, 0.5)]))
    assert best is not None
    assert best["F1"] == 1


def test_without_a_right_detection_there_is_no_recommendation(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))])
    assert best_scores(records, DetectionTable.empty()) is None
    assert best_scores(records, found([(0, 100, 0, 0.9)])) is None
    metrics = score_metrics(records, DetectionTable.empty())
    assert metrics.best_score is None
    assert len(class_table(metrics).splitlines()) == 2


def test_no_other_threshold_is_better(box: Any, make_records: Any) -> None:
    dice = np.random.default_rng(0)
    truth = [box(xywh=(float(50 * x), 0, 10, 10), label=int(dice.integers(3))) for x in range(30)]
    records = make_records(truth, categories=[(1, "a"), (2, "b"), (3, "c")])
    rows = [(0, 50.0 * int(dice.integers(45)), int(dice.integers(3)), round(float(dice.uniform(0.05, 1)), 2)) for _ in range(80)]
    detections = found(rows)
    best = best_scores(records, detections)
    assert best is not None

    def f1(threshold: float) -> float:
        right = {(x, label) for _, x, label, score in rows if score > threshold} & {(50.0 * x, one.label) for x, one in enumerate(truth)}
        return 2 * len(right) / (sum(score > threshold for *_, score in rows) + len(truth))

    assert best["F1"] == pytest.approx(f1(best["score"]))
    assert best["F1"] == pytest.approx(max(f1(threshold) for threshold in np.arange(0.005, 1, 0.01)))
