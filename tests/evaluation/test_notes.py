import re
from typing import Any

import pytest

from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable


def found(rows: list[tuple[int, tuple[float, ...], float, int]]) -> DetectionTable:
    return DetectionTable.from_arrays(*zip(*rows, strict=True))


def test_a_limit_that_caps_ap_is_said_and_raising_it_helps(make_records: Any, box: Any) -> None:
    # 120 boxes of one class, all found: with 100 detections recall is 100/120, so 84 of the 101 recall levels are reached.
    places = [(10.0 * (n % 20), 10.0 * (n // 20), 8.0, 8.0) for n in range(120)]
    records = make_records([box(xywh=place) for place in places])
    detections = found([(0, place, 0.9 - n / 1000 * 7, 0) for n, place in enumerate(places)])
    capped = evaluate(records, detections)
    assert pytest.approx(84 / 101) == capped.AP
    said = "1 of 1 images have more than 100 boxes of one class, up to 120; .*raise max_detections to 120"
    assert any(re.match(said, note) for note in capped.notes)
    raised = evaluate(records, detections, max_detections=(1, 10, 120))
    assert pytest.approx(1.0) == raised.AP
    assert raised.notes == ()
    assert "AR120" in raised.as_dict()


def test_classes_without_boxes_to_find_are_named_with_their_detections(make_records: Any, box: Any) -> None:
    records = make_records(
        [box(xywh=(0, 0, 50, 50)), box(xywh=(60, 60, 50, 50), label=1, crowd=True)], categories=((1, "fish"), (2, "shoal"), (3, "ray"))
    )
    metrics = evaluate(records, found([(0, (0, 0, 50, 50), 0.9, 0), (0, (60, 60, 50, 50), 0.05, 1), (0, (0, 0, 9, 9), 0.9, 2)]))
    assert [entry.AP for entry in metrics.per_class] == [pytest.approx(1.0), -1.0, -1.0]
    assert metrics.AP == metrics.per_class[0].AP
    assert metrics.notes == ("2 classes have no box to find (shoal, ray): they have no AP, and their 2 detections count nowhere",)


def test_boxes_and_scores_that_spoil_the_numbers_are_said(make_records: Any, box: Any) -> None:
    records = make_records([box(xywh=(0, 0, 50, 50))])
    turned = evaluate(records, found([(0, (50, 50, -50, -50), 0.9, 0), (0, (0, 0, 50, 50), 0.05, 0)]))
    assert [note.split(" and match")[0] for note in turned.notes] == ["1 of 2 detections have a negative width or height"]
    assert pytest.approx(0.5) == turned.AP
    assert "no detection has a score below 0.5" in evaluate(records, found([(0, (0, 0, 50, 50), 0.5, 0)])).notes[0]
