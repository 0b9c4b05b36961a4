from typing import Any

import numpy as np
import pytest

from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.diagnosis import Suspect, diagnose


def table(*rows: tuple[int, tuple[float, float, float, float], float, int]) -> DetectionTable:
    image, boxes, scores, labels = zip(*rows, strict=True)
    return DetectionTable.from_arrays(image, np.array(boxes, float).reshape(-1, 4), scores, labels)


def test_every_kind_of_error_by_hand(box: Any, make_records: Any) -> None:
    truth = [
        box(xywh=(0, 0, 10, 10)),
        box(xywh=(50, 50, 20, 20), label=1),
        box(xywh=(100, 0, 40, 40)),
        box(xywh=(0, 0, 10, 10), image=1),
        box(xywh=(30, 30, 50, 50), image=1, crowd=True),
        box(xywh=(100, 100, 50, 50), image=1, difficult=True),
        box(xywh=(150, 10, 30, 30), image=1, label=1),
    ]
    # Image ids fall, so that rows and numbers of images differ.
    records = make_records(truth, image_ids=(9, 5), categories=((1, "fish"), (2, "ray")))
    found = table(
        (0, (0, 0, 10, 10), 0.9, 0),  # right
        (0, (0, 0, 10, 10), 0.8, 0),  # duplicate
        (0, (50, 50, 20, 20), 0.7, 0),  # class
        (0, (115, 0, 40, 40), 0.6, 0),  # location: 25 / 55
        (1, (0, 0, 10, 10), 0.9, 0),  # right
        (1, (35, 35, 10, 10), 0.95, 0),  # in the crowd
        (1, (100, 100, 50, 50), 0.95, 0),  # difficult
        (1, (180, 180, 10, 10), 0.85, 1),  # background
        (1, (0, 100, 10, 10), 0.01, 1),  # background, at a low score
    )
    said = diagnose(records, found)
    assert {kind.name: kind.number for kind in said.errors} == {
        "class": 1,
        "location": 1,
        "class and location": 0,
        "duplicate": 1,
        "background": 2,
        "missed": 1,
    }
    # F1 over all classes is best at 0.9: 2 of 2 right, 2 of 5 boxes found.
    assert (said.score, said.precision, said.recall) == (0.9, 1.0, 0.4)
    assert said.by_image.tolist() == [[1, 0, 2], [1, 0, 1]]
    assert said.is_missed.tolist() == [False, True, True, False, False, False, True]
    assert np.flatnonzero(said.is_right).tolist() == [0, 4]
    assert not said.is_wrong.any()
    assert said.confusion.tolist() == [[2, 0, 1], [0, 0, 2], [0, 0, 0]]
    assert [tuple(size) for size in said.sizes] == [("small", 4, 2), ("medium", 1, 0), ("large", 0, 0)]
    assert said.trusted_score is None  # two detections are too few to doubt labels
    assert [(one.kind, one.image, one.label) for one in said.suspects] == [("never found", 1, 1)]
    assert said.worst_images == [0, 1]
    assert said.best_images == [1, 0]
    # Nine tenths to one: 0.9 twice; the one in the crowd and the difficult one do not count.
    assert said.bins[9].number == 2
    assert said.bins[9].precision == 1.0


def test_confident_detections_doubt_labels(box: Any, make_records: Any) -> None:
    places = [(20.0 * column, 0.0, 15.0, 15.0) for column in range(10)]
    truth = [*(box(xywh=place) for place in places), box(xywh=(0, 100, 30, 30), label=1), box(xywh=(150, 150, 9, 9))]
    records = make_records(truth, categories=((1, "fish"), (2, "ray")))
    right = [(0, place, 0.95, 0) for place in places] + [(0, (190.0, 100.0, 5.0, 5.0), 0.4, 0)]
    said = diagnose(records, table(*right, (0, (0, 100, 30, 30), 0.9, 0)))
    assert said.trusted_score == 0.9  # 10 of 11 are right
    assert said.suspects == (
        Suspect("other class", 0, (0, 100, 30, 30), 0, 1, 0.9),
        Suspect("never found", 0, (150, 150, 9, 9), 0, 0, None),
    )
    said = diagnose(records, table(*right, (0, (100, 100, 30, 30), 0.9, 0)))
    assert said.suspects[0] == Suspect("no label", 0, (100, 100, 30, 30), 0, None, 0.9)
    assert [one.kind for one in said.suspects] == ["no label", "never found", "never found"]
    assert said.suspects[1].box_xywh == (0, 100, 30, 30)  # the largest first


@pytest.mark.parametrize("boxes", [0, 1])
def test_nothing_found_or_nothing_to_find(boxes: int, box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))] * boxes)
    for detections in (DetectionTable.empty(), table((0, (50, 50, 5, 5), 0.3, 0))):
        said = diagnose(records, detections)
        assert (said.precision, said.recall, said.trusted_score) == (0.0, 0.0, None)
        assert said.is_missed.sum() == boxes
        assert said.best_images == []
