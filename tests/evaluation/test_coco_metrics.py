import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.evaluation.drawn_cases import Case, built, cases, pycocotools_evaluation, table

from lw_retinanet.errors import ConfigError, DataError
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable, read_results

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def twelve(metrics: Metrics) -> list[float]:
    return [getattr(metrics, key) for key in KEYS]


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(case=cases(min_rows=1))
def test_equal_to_pycocotools(case: Case, box: Any, make_records: Any, as_coco: Any) -> None:
    records, detections = built(case, box, make_records)
    metrics = evaluate(records, detections)
    reference = pycocotools_evaluation(records, detections, as_coco(records))
    np.testing.assert_allclose(twelve(metrics), reference.stats, rtol=0, atol=1e-9)  # the same sums, in the same order
    np.testing.assert_allclose(metrics.precision50, reference.eval["precision"][0, :, :, 0, 2].T, rtol=0, atol=1e-9)


def test_by_hand(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10)), box(xywh=(50, 50, 10, 10))])
    detections = table((0, 0, (0, 0, 10, 10), 0.9), (0, 0, (100, 100, 10, 10), 0.8), (0, 0, (50, 50, 10, 10), 0.7))
    metrics = evaluate(records, detections)
    # precision 1 up to recall 0.5 (51 of the 101 levels), then 2/3 (50 levels), at every IoU because the hits are exact
    expected = (51 + 50 * 2 / 3) / 101
    assert pytest.approx(expected, abs=1e-12) == metrics.AP
    assert pytest.approx(expected, abs=1e-12) == metrics.AP50
    assert metrics.APs == pytest.approx(expected, abs=1e-12)
    assert (metrics.AR1, metrics.AR10, metrics.APm) == (0.5, 1.0, -1.0)


def test_the_json_contract(box: Any, make_records: Any) -> None:
    records = make_records(
        [box(xywh=(0, 0, 10, 10)), box(xywh=(5, 0, 10, 10)), box(xywh=(9, 9, 9, 9), crowd=True), box(xywh=(0, 0, 5, 5), image=1)],
        image_ids=("a", "b", 7),
        categories=(("f", "fish"), (9, "eel")),
    )
    answer = evaluate(records, table((1, 0, (0, 0, 5, 5), 0.5))).as_dict()
    assert list(answer) == [*KEYS, "per_class", "images"]
    assert json.loads(json.dumps(answer)) == answer
    # one of three boxes found at every IoU: precision 1 at the levels 0, 0.01 .. 0.33
    assert answer["per_class"] == [
        {"name": "fish", "category_id": "f", "AP": pytest.approx(34 / 101), "AP50": pytest.approx(34 / 101), "images": 2, "boxes": 3},
        {"name": "eel", "category_id": 9, "AP": -1.0, "AP50": -1.0, "images": 0, "boxes": 0},
    ]
    assert answer["images"] == 3


@pytest.mark.parametrize("annotation_ids", [(0, 1), (7, 7), (-3, 0)])
def test_annotation_ids_do_not_matter(annotation_ids: tuple[int, int], box: Any, make_records: Any) -> None:
    truth = [box(xywh=(0, 0, 10, 10)), box(xywh=(50, 50, 10, 10))]
    records = make_records(truth, annotation_ids=annotation_ids)
    assert evaluate(records, table((0, 0, (0, 0, 10, 10), 0.9), (0, 0, (50, 50, 10, 10), 0.8))).AP == 1.0


def test_no_detections_score_zero(box: Any, make_records: Any) -> None:
    metrics = evaluate(make_records([box(xywh=(0, 0, 10, 10))]), DetectionTable.empty())
    assert (metrics.AP, metrics.AR100, metrics.APs, metrics.APl, metrics.per_class[0].AP) == (0.0, 0.0, 0.0, -1.0, 0.0)


@pytest.mark.parametrize("image_ids", [(1, 2), ()])
def test_no_ground_truth_scores_minus_one(image_ids: tuple[int, ...], make_records: Any) -> None:
    detections = table((0, 0, (0, 0, 10, 10), 0.9)) if image_ids else DetectionTable.empty()
    metrics = evaluate(make_records([], image_ids=image_ids), detections)
    assert twelve(metrics) == [-1.0] * 12
    assert metrics.mean_precision50.tolist() == [-1.0] * 101
    assert evaluate(make_records([], image_ids=image_ids, categories=()), DetectionTable.empty()).AP == -1.0


@pytest.mark.parametrize("bad", [(np.nan,) * 4, (np.nan, 0, 10, 10), (0, 0, np.inf, 10)])
def test_boxes_that_are_not_finite_never_match(bad: Any, box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))])
    with pytest.raises(DataError, match="box is not finite"):
        evaluate(records, table((0, 0, bad, 0.9)))
    with pytest.raises(DataError, match="annotation 5: its box or area is not finite"):
        evaluate(make_records([box(xywh=bad)], annotation_ids=[5]), DetectionTable.empty())


def test_a_difficult_box_is_neither_right_nor_wrong(box: Any, make_records: Any) -> None:
    records = make_records(
        [box(xywh=(0, 0, 10, 10)), box(xywh=(100, 100, 40, 40), difficult=True), box(xywh=(100, 0, 9, 9), difficult=True)]
    )
    found = (0, 0, (0.0, 0.0, 10.0, 10.0), 0.5)
    twice = [(0, 0, (100.0, 100.0, 40.0, 40.0), 0.9), (0, 0, (100.0, 100.0, 40.0, 40.0), 0.8)]
    assert pytest.approx(1.0) == evaluate(records, table(*twice, found)).AP
    # A small detection inside it does not match it by IoU (10 * 10 / 1600): a false positive, which a crowd would have excused.
    assert pytest.approx(0.5) == evaluate(records, table((0, 0, (110, 110, 10, 10), 0.9), found)).AP
    assert evaluate(records, table(found)).per_class[0].boxes == 1
    assert evaluate(make_records([box(xywh=(0, 0, 9, 9), difficult=True)]), table(found)).AP == -1.0


@settings(deadline=None, max_examples=25)
@given(case=cases(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_images_changes_nothing(case: Case, seed: int, box: Any, make_records: Any) -> None:
    expected = evaluate(*built(case, box, make_records))
    # The same images, listed and detected in another order.
    order = np.random.default_rng(seed).permutation(len(case.image_ids)).tolist()
    shuffled = case._replace(
        truth=[{**entry, "image": order.index(entry["image"])} for entry in case.truth],
        rows=sorted(((order.index(row[0]), *row[1:]) for row in case.rows), key=lambda row: row[0]),
        image_ids=[case.image_ids[image] for image in order],
    )
    assert evaluate(*built(shuffled, box, make_records)).as_dict() == expected.as_dict()


def test_another_limit_of_detections(box: Any, make_records: Any) -> None:
    records = make_records([box(xywh=(0, 0, 10, 10))])
    wrong = [(0, 0, (100.0, 100.0, 5.0, 5.0), 0.9)] * 150
    detections = table(*wrong, (0, 0, (0, 0, 10, 10), 0.1))
    assert evaluate(records, detections).AP50 == 0.0
    metrics = evaluate(records, detections, max_detections=(1, 20, 300))
    assert pytest.approx(1 / 151) == metrics.AP50
    assert {"AR1", "AR20", "AR300"} <= set(metrics.as_dict())
    with pytest.raises(ConfigError, match="three increasing"):
        evaluate(records, detections, max_detections=(1, 100, 10))


@pytest.mark.real
@pytest.mark.parametrize(
    ("truth", "results", "published"),
    [
        (
            "coco_val2014_100/instances_val2014_100.json",
            "coco_val2014_100/instances_val2014_fakebbox100_results.json",
            "0.50458 0.69697 0.57298 0.58563 0.51940 0.50140 0.38681 0.59368 0.59535 0.63981 0.56642 0.56429",
        ),
        (
            "coco_review_metrics/gts/sampled_gts_bbox_area.json",
            "coco_review_metrics/dets/sampled_bbox_results.json",
            "0.503647 0.696973 0.571667 0.593252 0.557991 0.489363 0.386813 0.593680 0.595353 0.654764 0.603130 0.553744",
        ),
        ("voc100/ground_truth.json", "voc100/detections.json", "0.347 0.610 0.354"),
    ],
)
def test_published_numbers(truth: str, results: str, published: str, shared: Path) -> None:
    from lw_retinanet.data.formats.coco import FORMAT as COCO

    records = COCO.read(shared / "fixtures" / truth)
    detections = read_results(shared / "fixtures" / results, records)
    metrics = evaluate(records, detections)
    digits = published.split()
    assert [f"{value:.{len(text) - 2}f}" for value, text in zip(twelve(metrics), digits, strict=False)] == digits
    reference = pycocotools_evaluation(records, detections, json.loads((shared / "fixtures" / truth).read_text()))
    np.testing.assert_allclose(twelve(metrics), reference.stats, rtol=0, atol=1e-9)
