from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.evaluation.drawn_cases import Case, Row, built, cases, pycocotools_evaluation, table

import lw_retinanet.evaluation.match_tables as match_tables
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.match_tables import METRICS, match


def six(records: Records, detections: DetectionTable) -> list[float]:
    metrics = evaluate(records, detections)
    return [getattr(metrics, name) for name in METRICS]


def weighted(records: Records, detections: DetectionTable, weights: list[int]) -> list[float]:
    return np.nan_to_num(match(records, detections).scores(np.array([weights]))[0], nan=-1.0).tolist()


SLOW = (HealthCheck.too_slow, HealthCheck.data_too_large)


@settings(deadline=None, max_examples=200, suppress_health_check=SLOW)
@given(case=cases(has_difficult=True))
def test_every_image_once_gives_the_metrics(case: Case, box: Any, make_records: Any) -> None:
    records, detections = built(case, box, make_records)
    # The same precisions, averaged in another order.
    np.testing.assert_allclose(weighted(records, detections, [1] * records.num_images), six(records, detections), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=100, suppress_health_check=SLOW)
@given(case=cases(has_difficult=True, tied_scores=False), data=st.data())
def test_weights_are_copies_of_images(case: Case, data: Any, box: Any, make_records: Any) -> None:
    truth, rows, image_ids, category_ids = case
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(image_ids), max_size=len(image_ids)))
    sources = [image for image, weight in enumerate(weights) for _ in range(weight)]
    # Ids that keep the copies of an image together and the images in the order of their ids.
    copied_ids = [image_ids[source] * 100 + copy for copy, source in enumerate(sources)]
    copied = Case(
        [{**entry, "image": image} for image, source in enumerate(sources) for entry in truth if entry["image"] == source],
        [(image, *row[1:]) for image, source in enumerate(sources) for row in rows if row[0] == source],
        copied_ids,
        category_ids,
    )
    records, detections = built(case, box, make_records)
    expected = six(*built(copied, box, make_records)) if sources else [-1.0] * len(METRICS)
    np.testing.assert_allclose(weighted(records, detections, weights), expected, rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=60, suppress_health_check=SLOW)
@given(case=cases(tied_scores=False))
def test_flags_are_those_of_pycocotools(case: Case, box: Any, make_records: Any, as_coco: Callable[[Records], dict[str, Any]]) -> None:
    nothing: Row = (0, 0, (300.0, 0.0, 1.0, 1.0), -1.0)  # pycocotools takes no empty list
    records, detections = built(case._replace(rows=[*case.rows, nothing]), box, make_records)
    evaluation = pycocotools_evaluation(records, detections, as_coco(records))
    ours = match(records, detections)
    for label, category_id in enumerate(case.category_ids):
        for area in range(4):
            entries = [
                entry
                for entry in evaluation.evalImgs
                if entry and entry["category_id"] == category_id and entry["aRng"] == evaluation.params.areaRng[area]
            ]
            order = np.argsort([-score for entry in entries for score in entry["dtScores"]], kind="stable")
            rows_of_class = slice(*ours.detection_starts[label : label + 2])
            assert len(order) == rows_of_class.stop - rows_of_class.start
            if len(order):
                is_matched = np.concatenate([entry["dtMatches"] for entry in entries], axis=1)[:, order].T > 0
                is_ignored = np.concatenate([entry["dtIgnore"] for entry in entries], axis=1)[:, order].T.astype(bool)
                np.testing.assert_array_equal(ours.is_right[rows_of_class, area], is_matched & ~is_ignored)
                np.testing.assert_array_equal(ours.is_ignored[rows_of_class, area], is_ignored)
            boxes = slice(*ours.box_starts[label : label + 2])
            assert ours.is_counted[boxes, area].sum() == sum(int((entry["gtIgnore"] == 0).sum()) for entry in entries)


def test_by_hand(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10)), box(xywh=(0, 0, 50, 50), image=1)], image_ids=(1, 2))
    # Right in image 0, wrong in image 1 with a higher score.
    detections = table((0, 0, (0.0, 0.0, 10.0, 10.0), 0.5), (1, 0, (100.0, 100.0, 9.0, 9.0), 0.9))
    # Weights 3, 1: 3 of 4 boxes found, recall levels 0 .. 0.75 are 76, precision there 3 / (3 + 1); for small boxes 3 of 3, and the
    # wrong one, small too, counts: 3 / 4 at all levels; the one medium box is not found, and a small detection is ignored there.
    expected = 0.75 * 76 / 101
    assert weighted(records, detections, [3, 1]) == pytest.approx([expected, expected, expected, 0.75, 0.0, -1.0], abs=1e-12)
    # Without image 0 nothing is found, and without either nothing is to be found.
    assert weighted(records, detections, [0, 2]) == [0.0, 0.0, 0.0, -1.0, 0.0, -1.0]
    assert weighted(records, detections, [0, 0]) == [-1.0] * 6


def test_a_level_that_floating_point_just_misses(box: Any, make_records: Any) -> None:
    # 7 of 20 is the recall 0.35, but NumPy's level is 0.35000000000000003: 35 levels, not 36, as COCO has it.
    records = make_records([box(xywh=(20.0 * place, 0, 10, 10)) for place in range(20)])
    detections = table(*((0, 0, (20.0 * place, 0.0, 10.0, 10.0), 0.5) for place in range(7)))
    assert weighted(records, detections, [1])[0] == pytest.approx(35 / 101, abs=1e-12)


def test_a_class_without_boxes_in_a_draw_drops_out(box: Any, make_records: Any) -> None:
    records = make_records(
        [box(xywh=(0, 0, 10, 10)), box(xywh=(0, 0, 10, 10), image=1, label=1)], image_ids=(1, 2), categories=[(1, "a"), (2, "b")]
    )
    detections = table((0, 0, (0.0, 0.0, 10.0, 10.0), 0.5), (0, 1, (0.0, 0.0, 10.0, 10.0), 0.5))
    scores_of_draws = match(records, detections).scores(np.array([[1, 0], [0, 1], [1, 1]]))[:, 0]
    assert scores_of_draws.tolist() == pytest.approx([1.0, 0.0, 0.5], abs=1e-12)


def test_blocks_of_pairs_change_nothing(box: Any, make_records: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    truth: list[dict[str, Any]] = [
        {"image": int(image), "label": int(label), "xywh": (float(x), 0.0, 20.0, 20.0)}
        for image, label, x in zip(rng.integers(6, size=60), rng.integers(2, size=60), rng.integers(100, size=60), strict=True)
    ]
    rows: list[Row] = [
        (entry["image"], entry["label"], (entry["xywh"][0] + float(shift), 0.0, 20.0, 20.0), float(score))
        for entry in truth
        for shift, score in zip(rng.integers(-6, 6, size=3), rng.random(3), strict=True)
    ]
    records, detections = built(Case(truth, rows, [*range(6)], [0, 1]), box, make_records)
    whole = match(records, detections)
    monkeypatch.setattr(match_tables, "_PAIRS_AT_ONCE", 5)
    parts = match(records, detections)
    assert whole.is_right.any()
    np.testing.assert_array_equal(parts.is_right, whole.is_right)
    np.testing.assert_array_equal(parts.is_ignored, whole.is_ignored)


def test_detections_of_other_data_are_refused(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))])
    with pytest.raises(DataError, match="image row 1 is not one of the data set's 1"):
        match(records, table((1, 0, (0.0, 0.0, 1.0, 1.0), 0.5)))
    with pytest.raises(ValueError, match=r"weights must have shape \(W, 1\)"):
        match(records, DetectionTable.empty()).scores(np.ones((1, 2), dtype=np.int64))
