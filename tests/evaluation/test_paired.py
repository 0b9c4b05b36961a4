import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lw_retinanet.data.records import Records
from lw_retinanet.errors import ConfigError, DataError, InputError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.evaluation.match_tables import METRICS, match
from lw_retinanet.evaluation.paired import Comparison, Estimate, Interval, class_estimates, compare, drawn_scores

FEW = 100  # draws


def bootstrap(records: Records, detections: DetectionTable | list[DetectionTable], *, seed: int = 0) -> dict[str, Estimate]:
    return drawn_scores(records, detections, draws=FEW, seed=seed).estimates()


@pytest.fixture(scope="module")
def records(box: Any, make_records: Any) -> Records:
    """30 images with one to three boxes, small or medium, of two classes."""
    return scene(box, make_records, 30)


def scene(box: Any, make_records: Any, num_images: int) -> Records:
    rng = np.random.default_rng(0)
    boxes = [
        box(xywh=(60.0 * place, 0.0, side, side), image=image, label=int(rng.integers(2)))
        for image in range(num_images)
        for place, side in enumerate(rng.choice([20.0, 50.0], size=rng.integers(1, 4)).tolist())
    ]
    records: Records = make_records(boxes, image_ids=tuple(range(num_images)), categories=((1, "a"), (2, "b")))
    return records


def detector(records: Records, seed: int, *, recall: float = 0.7, false: int = 20) -> DetectionTable:
    """Finds each box with a chance of ``recall``, none exactly, and says ``false`` things more."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(records.num_boxes) < recall)
    image_of_box = records.image_of_box
    found = records.boxes_xywh[rows].copy()
    found[:, 0] += rng.uniform(0, 6, len(rows))
    wrong = np.tile([500.0, 500.0, 20.0, 20.0], (false, 1))
    return DetectionTable.from_arrays(
        np.concatenate([image_of_box[rows], rng.integers(records.num_images, size=false)]),
        np.concatenate([found, wrong]),
        np.concatenate([rng.random(len(rows)) ** 0.5, rng.random(false)]),
        np.concatenate([records.labels[rows], rng.integers(2, size=false)]),
    )


def test_point_values_are_those_of_the_evaluation(records: Records) -> None:
    a, b = detector(records, 1), detector(records, 2)
    comparison = compare(records, a, b, draws=FEW)
    metrics_a, metrics_b = evaluate(records, a), evaluate(records, b)
    assert list(comparison.metrics) == ["AP", "AP50", "AP75", "APs", "APm"]  # no large boxes
    for name, interval in comparison.metrics.items():
        assert interval.a == pytest.approx(getattr(metrics_a, name), abs=1e-9)
        assert interval.b == pytest.approx(getattr(metrics_b, name), abs=1e-9)
        assert interval.difference == interval.b - interval.a
        assert interval.low <= interval.difference <= interval.high


def test_a_file_against_itself_is_exactly_nothing(records: Records) -> None:
    detections = detector(records, 1)
    again = detector(records, 1)
    for interval in compare(records, detections, again, draws=FEW).metrics.values():
        assert (interval.difference, interval.low, interval.high) == (0.0, 0.0, 0.0)
    runs = [detections, detector(records, 2)]
    assert compare(records, runs, list(runs), draws=FEW).ap.high == 0.0


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seeds=st.tuples(*[st.integers(0, 1000)] * 3), num_runs=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_swapping_flips_the_signs_exactly(records: Records, seeds: tuple[int, int, int], num_runs: tuple[int, int]) -> None:
    a = [detector(records, seeds[0] + run) for run in range(num_runs[0])]
    b = [detector(records, seeds[1] + run, recall=0.8) for run in range(num_runs[1])]
    there = compare(records, a, b, draws=FEW, seed=seeds[2])
    back = compare(records, b, a, draws=FEW, seed=seeds[2])
    for name, interval in there.metrics.items():
        swapped = Interval(a=interval.b, b=interval.a, difference=-interval.difference, low=-interval.high, high=-interval.low)
        assert back.metrics[name] == swapped


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), count=st.integers(1, 30))
def test_more_false_positives_never_help(records: Records, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    b = detector(records, seed)
    extra = DetectionTable.from_arrays(
        rng.integers(records.num_images, size=count),
        np.tile([300.0, 300.0, 30.0, 30.0], (count, 1)),
        rng.random(count),
        rng.integers(2, size=count),
    )
    before = compare(records, detector(records, 1), b, draws=FEW)
    after = compare(records, detector(records, 1), concatenate([b, extra]), draws=FEW)
    for name, interval in after.metrics.items():
        assert interval.b <= before.metrics[name].b
        assert interval.low <= before.metrics[name].low  # in every draw, so at both ends too
        assert interval.high <= before.metrics[name].high


def test_draws_depend_on_the_seed_alone(records: Records) -> None:
    a, b = detector(records, 1), detector(records, 2)
    first = compare(records, a, b, draws=150, seed=3)
    assert compare(records, a, b, draws=150, seed=3) == first
    assert compare(records, a, b, draws=150, seed=4).ap != first.ap


def test_the_interval_is_that_of_other_draws(records: Records) -> None:
    # Against draws made and scored apart, so equal within the noise of the draws.
    a, b = detector(records, 1), detector(records, 2, recall=0.9)
    interval = compare(records, a, b, draws=2000).ap
    rng = np.random.default_rng(12345)
    weights = np.array([np.bincount(rng.choice(records.num_images, records.num_images), minlength=records.num_images) for _ in range(2000)])
    differences = match(records, b).scores(weights)[:, 0] - match(records, a).scores(weights)[:, 0]
    spread = differences.std()
    assert spread > 0.01
    # The noise of a 2.5 % quantile of 2,000 draws is about 0.06 of their spread.
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(differences, [0.025, 0.975]), rtol=0, atol=0.25 * spread)


def test_pairing_pays(records: Records) -> None:
    # B is A with ten more false positives: whatever else differs between images is the same for both.
    a = detector(records, 1)
    b = concatenate([a, detector(records, 5, recall=0.0, false=10)])
    paired = compare(records, a, b, draws=FEW).ap
    alone = bootstrap(records, a)["AP"]
    assert alone.low < alone.value < alone.high
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)


def test_the_estimate_of_one_is_that_of_the_comparison(records: Records) -> None:
    # Against nothing found at all, the difference is the AP itself.
    a = detector(records, 1)
    estimates = bootstrap(records, a, seed=7)
    against_none = compare(records, DetectionTable.empty(), a, draws=FEW, seed=7)
    assert list(estimates) == list(against_none.metrics)
    for name, estimate in estimates.items():
        interval = against_none.metrics[name]
        assert (estimate.value, estimate.low, estimate.high) == (interval.difference, interval.low, interval.high)


def test_runs_widen_the_interval_and_average_the_values(records: Records) -> None:
    good, bad = detector(records, 1, recall=1.0, false=0), detector(records, 2, recall=0.2)
    single = bootstrap(records, good)["AP"], bootstrap(records, bad)["AP"]
    both = bootstrap(records, [good, bad])["AP"]
    assert both.value == pytest.approx((single[0].value + single[1].value) / 2, abs=1e-12)
    # A draw is the good run twice with a chance of a quarter, and so the bad one: the ends reach into the two runs' own intervals.
    assert both.low <= single[1].high
    assert both.high >= single[0].low
    comparison = compare(records, [good, bad], [good, bad, bad], draws=FEW)
    assert (comparison.runs_a, comparison.runs_b) == (2, 3)
    assert "2 runs of A and 3 of B" in comparison.lines()[-1]


def test_the_interval_covers_the_truth(box: Any, make_records: Any) -> None:
    # A finds each box with a chance of 0.6, B with 0.7, nothing wrong, one box an image: AP is the number of recall levels reached,
    # so the true difference is 0.1 up to a level. 80 data sets of 60 images: at 95 % some 76 intervals hold it, fewer than 68 would be
    # four standard deviations off.
    records = make_records([box(xywh=(0, 0, 40, 40), image=image) for image in range(60)], image_ids=tuple(range(60)))
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(80):
        found = [np.flatnonzero(rng.random(60) < chance) for chance in (0.6, 0.7)]
        a, b = (
            DetectionTable.from_arrays(rows, np.tile([0.0, 0.0, 40.0, 40.0], (len(rows), 1)), np.ones(len(rows)), np.zeros(len(rows)))
            for rows in found
        )
        interval = compare(records, a, b, draws=200, seed=trial).ap
        covered += interval.low <= 0.1 <= interval.high
    assert 68 <= covered <= 80


def test_metrics_that_only_some_draws_have(box: Any, make_records: Any) -> None:
    # The one large box is in about 63 % of the draws; the others say nothing of APl and are left out, and nothing is NaN.
    boxes = [box(xywh=(0, 0, 20, 20), image=image) for image in range(20)] + [box(xywh=(50, 0, 100, 100), image=3)]
    records = make_records(boxes, image_ids=tuple(range(20)))
    b = DetectionTable.from_arrays([3], [[50.0, 0.0, 100.0, 100.0]], [0.5], [0])
    interval = compare(records, DetectionTable.empty(), b, draws=FEW).metrics["APl"]
    assert (interval.difference, interval.low, interval.high) == (1.0, 1.0, 1.0)


def test_as_dict_and_lines(records: Records) -> None:
    comparison = compare(records, detector(records, 1), detector(records, 2), draws=FEW)
    answer = comparison.as_dict()
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    ap = comparison.ap
    assert (answer["difference"], answer["low"], answer["high"]) == (ap.difference, ap.low, ap.high)
    assert (answer["ap_a"], answer["ap_b"], answer["images"], answer["draws"]) == (ap.a, ap.b, 30, FEW)
    assert list(answer["metrics"]) == list(METRICS[1:])
    assert answer["metrics"]["APl"] is None
    assert answer["metrics"]["APs"] == vars(comparison.metrics["APs"])


def test_lines_by_hand() -> None:
    ap = Interval(a=0.3125, b=0.3, difference=-0.0125, low=-0.02, high=0.001)
    lines = Comparison(metrics={"AP": ap}, images=1448, draws=1000).lines()
    assert lines[1].split() == ["AP", "31.25", "30.00", "-1.25", "-2.00", "..", "+0.10"]
    assert lines[6].split() == ["APl", "-", "-", "-", "nothing", "to", "find"]
    assert "1,448 images, the same for A and B" in lines[-1]


def test_progress_sees_every_block(records: Records) -> None:
    seen: list[int] = []

    def progress(blocks: Iterable[Any], total: int, _: str) -> Iterable[Any]:
        for block in blocks:
            seen.append(total)
            yield block

    a, b = detector(records, 1), detector(records, 2)
    assert compare(records, a, b, draws=150, progress=progress) == compare(records, a, b, draws=150)
    assert seen == [3, 3, 3]


def test_bad_input(box: Any, make_records: Any, records: Records) -> None:
    few = scene(box, make_records, 19)
    empty = DetectionTable.empty()
    with pytest.raises(InputError, match="19 images are too few: an interval needs 20 or more"):
        compare(few, empty, empty)
    with pytest.raises(InputError, match="19 images are too few"):
        bootstrap(few, empty)
    with pytest.raises(ConfigError, match="draws must be 100 or more for a 95 % interval, got 99"):
        compare(records, empty, empty, draws=99)
    with pytest.raises(ConfigError, match="seed must be 0 or more, got -1"):
        compare(records, empty, empty, seed=-1)
    with pytest.raises(InputError, match="no detections to compare"):
        compare(records, [], empty)
    ignored = make_records([box(xywh=(0, 0, 9, 9), crowd=True)], image_ids=tuple(range(20)))
    with pytest.raises(DataError, match="no box to find"):
        compare(ignored, empty, empty)


def test_scores_drawn_once_pair_as_the_comparison_does(records: Records) -> None:
    good, bad, third = detector(records, 1, recall=0.9), detector(records, 2, recall=0.4), detector(records, 3)
    a = drawn_scores(records, [good, bad], draws=FEW, seed=5)
    b = drawn_scores(records, [third, good], draws=FEW, seed=5)
    assert b.against(a) == compare(records, [good, bad], [third, good], draws=FEW, seed=5).metrics
    assert a.estimates() == bootstrap(records, [good, bad], seed=5)
    assert a.draws.shape == (FEW, 6)


@pytest.mark.parametrize(("draws", "seed"), [(FEW + 1, 0), (FEW, 1)])
def test_other_draws_do_not_pair(records: Records, draws: int, seed: int) -> None:
    a = drawn_scores(records, detector(records, 1), draws=FEW)
    b = drawn_scores(records, detector(records, 1), draws=draws, seed=seed)
    with pytest.raises(InputError, match="do not pair"):
        b.against(a)


def test_the_ap_of_each_class_has_an_interval(records: Records, box: Any, make_records: Any) -> None:
    found = detector(records, 1)
    a, b = class_estimates(records, found, draws=FEW)
    assert a
    assert b
    assert [a.value, b.value] == pytest.approx([entry.AP for entry in evaluate(records, found).per_class])
    assert a.low < a.value < a.high
    one = make_records([box(xywh=(0, 0, 20, 20), image=image) for image in range(20)], image_ids=range(20), categories=((1, "a"), (2, "b")))
    some = DetectionTable.from_arrays(range(0, 20, 2), [(0, 0, 20, 20)] * 10, [0.5] * 10, [0] * 10)
    estimate, nothing = class_estimates(one, some, draws=FEW)
    assert estimate == bootstrap(one, some)["AP"]  # of one class, the interval of the class is that of all
    assert nothing is None
