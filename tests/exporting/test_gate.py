"""The gate: AP before and after, by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.exporting.gate import MAX_DROP, Accuracy, Gate

Objects = list[tuple[float, float, float, float, int]]


def records_of(draw_records: Callable[..., Records], root: Path, number: int) -> Records:
    objects: Objects = [(2, 2, 20, 20, 0)]
    return draw_records(root, [((40, 40), objects)] * number)


def found(records: Records, *, missed: int) -> DetectionTable:
    """The box of every image but the first ``missed``."""
    images = list(range(missed, records.num_images))
    return DetectionTable.from_arrays(images, [[2.0, 2, 20, 20]] * len(images), [0.9] * len(images), [0] * len(images))


def gate_of(records: Records, before: DetectionTable, max_drop: float = MAX_DROP) -> Gate:
    gate: Gate = object.__new__(Gate)
    gate.records, gate.max_drop, gate.progress, gate.before = records, max_drop, None, before
    return gate


def test_a_missed_tenth_costs_a_tenth(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    records = records_of(draw_records, tmp_path, 30)
    gate = gate_of(records, found(records, missed=0))
    accuracy = gate.score(found(records, missed=3))
    # 27 of 30 found, all right: precision 1 at the recall levels 0, 0.01 .. 0.90, which are 91 of 101.
    assert accuracy.before == 1.0
    assert accuracy.after == pytest.approx(91 / 101)
    assert accuracy.difference == pytest.approx(-10 / 101)
    assert accuracy.low is not None
    assert accuracy.high is not None
    assert accuracy.low < accuracy.difference < accuracy.high <= 0
    assert not accuracy.passes
    assert gate_of(records, found(records, missed=0), 0.1).score(found(records, missed=3)).passes
    assert "AP 100.00 -> 90.10, -9.90 (95 % interval" in accuracy.line()


def test_a_change_beyond_chance_is_said_in_either_direction(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    records = records_of(draw_records, tmp_path, 30)
    few, all_but_one, every = (found(records, missed=missed) for missed in (9, 1, 0))
    for before, after, said in ((every, few, "loss"), (few, every, "gain"), (every, all_but_one, None), (every, every, None)):
        accuracy = gate_of(records, before, 1.0).score(after)
        assert accuracy.as_dict()["beyond_chance"] == said
        assert accuracy.line().endswith(f"; this is a {said} beyond chance" if said else "allowed: -100")


def test_a_gain_passes_and_few_images_have_no_interval(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    records = records_of(draw_records, tmp_path, 10)
    accuracy = gate_of(records, found(records, missed=5), 0.0).score(found(records, missed=4))
    assert accuracy.passes
    assert accuracy.low is None
    assert "interval" not in accuracy.line()


@pytest.mark.parametrize(("after", "passes"), [(0.245, True), (0.2449, False), (0.3, True)])
def test_the_limit_itself_passes(after: float, passes: bool) -> None:
    accuracy = Accuracy(before=0.25, after=after, low=None, high=None, images=5, max_drop=0.005)
    assert accuracy.passes is passes
    values: dict[str, Any] = accuracy.as_dict()
    assert values["passes"] is passes
    assert values["difference"] == pytest.approx(after - 0.25)
