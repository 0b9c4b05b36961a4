from collections.abc import Callable

import pytest
import torch
from tests.benchmarking.networks import images, network

from lw_retinanet.benchmarking.contender import detector_run, torchvision_run
from lw_retinanet.benchmarking.stages import STAGES, StageClock, in_order
from lw_retinanet.detection.detector import Detector
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_twin


def ticking() -> Callable[[], float]:
    """A clock on which a millisecond goes by between any two looks."""
    looks = iter(range(1_000_000))
    return lambda: next(looks) / 1000


def test_a_moment_belongs_to_the_innermost_stage() -> None:
    now = 0.0
    clock = StageClock(clock=lambda: now)
    with clock.stage("outer"):
        now += 1
        with clock.stage("inner"):
            now += 2
        now += 4
    now += 8  # of no stage
    with clock.stage("inner"):
        now += 16
    assert clock.milliseconds == {"outer": 5000.0, "inner": 18000.0}


def test_a_stage_ends_with_an_error() -> None:
    now = 0.0
    clock = StageClock(clock=lambda: now)

    def broken() -> None:
        nonlocal now
        with clock.stage("broken"):
            now += 1
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        broken()
    now += 1
    with clock.stage("next"):
        now += 1
    assert clock.milliseconds == {"broken": 1000.0, "next": 1000.0}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_part_of_our_network_is_seen_in_the_copy_that_runs(precision: str) -> None:
    detector = Detector.of_model(network("lw-v3"), (), precision=precision)  # type: ignore[arg-type]
    detector.predict_arrays([images().decoded(0)])  # the first run compares the fused copy with the plain one
    clock = StageClock(clock=ticking())
    detector_run(detector)(images().batch(0, 1), clock)
    assert list(in_order(clock.milliseconds)) == [stage for stage in STAGES if stage != "anchors"]
    # Two branches run on every level, and a tick ends each.
    assert [clock.milliseconds[f"D{level}"] for level in range(3, 8)] == pytest.approx([2] * 5)
    assert [clock.milliseconds["backbone"], clock.milliseconds["FPN"]] == pytest.approx([1, 1])


def test_watching_leaves_nothing_behind() -> None:
    detector = Detector.of_model(network(), ())
    clock = StageClock(clock=ticking())
    with clock.watching():
        pass
    detector.network(torch.zeros(1, 3, 64, 64))
    assert clock.milliseconds == {}


def test_levels_of_torchvisions_head_are_told_by_turn() -> None:
    twin = torchvision_twin(network())
    for _ in range(2):  # the turn begins anew
        clock = StageClock(clock=ticking())
        torchvision_run(twin)(images().batch(0, 1), clock)
        assert list(in_order(clock.milliseconds)) == list(STAGES)
        # Two towers and two predictions run on every level.
        assert [clock.milliseconds[f"D{level}"] for level in range(3, 8)] == pytest.approx([4] * 5)
