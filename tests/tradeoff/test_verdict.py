import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.paired import Drawn, Interval
from lw_retinanet.tradeoff.rows import ExperimentRow
from lw_retinanet.tradeoff.verdict import Initialisation, Pair, against_line, verdict, why_not

Points = Callable[..., Interval]


def drawn(value: float, *, noise: float = 0.0, seed: int = 0, images: int = 30, common: float = 0.02) -> Drawn:
    """Scores whose draws share what is common to the images, with noise of their own."""
    shift = common * np.random.default_rng(99).standard_normal((200, 6)) + noise * np.random.default_rng(seed).standard_normal((200, 6))
    return Drawn(values=np.full(6, value), draws=value + shift, images=images, seed=0)


def test_the_line_is_straight_in_macs_within_every_draw() -> None:
    # A quarter of the way from 100 to 200: 0.75 * 0.20 + 0.25 * 0.24 = 0.21. What is common to the images cancels in every draw.
    line = [(200, drawn(0.24)), (300, drawn(0.25)), (100, drawn(0.20))]
    interval = against_line(drawn(0.23), 125, line)
    assert interval is not None
    expected = [0.21, 0.23, 0.02, 0.02, 0.02]
    np.testing.assert_allclose([interval.a, interval.b, interval.difference, interval.low, interval.high], expected, atol=1e-12)


def test_noise_of_the_neighbours_counts_by_their_share() -> None:
    # Standard deviation of w * noise for a line at w from its noisy end.
    line = [(0, drawn(0.2)), (100, drawn(0.2, noise=0.1, seed=5))]
    widths = []
    for macs in (0, 25, 100):
        interval = against_line(drawn(0.2), macs, line)
        assert interval is not None
        widths.append(interval.high - interval.low)
    assert widths[0] == pytest.approx(0, abs=1e-12)
    assert widths[1] == pytest.approx(0.25 * widths[2])


@settings(deadline=None, max_examples=30)
@given(place=st.integers(0, 3), macs=st.lists(st.integers(1, 10**12), min_size=4, max_size=4, unique=True))
def test_the_line_goes_through_its_points(place: int, macs: list[int]) -> None:
    line = [(cost, drawn(0.1 + 0.01 * number, noise=0.01, seed=number)) for number, cost in enumerate(macs)]
    interval = against_line(line[place][1], macs[place], line)
    assert interval is not None
    np.testing.assert_allclose([interval.difference, interval.low, interval.high], 0, atol=1e-12)


def test_sizes_with_the_same_macs_count_as_one() -> None:
    line = [(100, drawn(0.20)), (100, drawn(0.22)), (200, drawn(0.31))]
    at_both, between = against_line(drawn(0.25), 100, line), against_line(drawn(0.25), 150, line)
    assert at_both is not None
    assert between is not None
    np.testing.assert_allclose([at_both.a, between.a], [0.21, 0.26])
    alone = against_line(drawn(0.25), 100, line[:2])
    assert alone is not None
    assert alone.a == pytest.approx(0.21)


@pytest.mark.parametrize(("macs", "reason"), [(99, "below .* smallest size"), (201, "above .* largest size")])
def test_no_extrapolation(macs: int, reason: str) -> None:
    line = [(200 * 10**9, drawn(0.24)), (100 * 10**9, drawn(0.2))]
    assert against_line(drawn(0.2), macs * 10**9, line) is None
    said = why_not(macs * 10**9, [cost for cost, _ in line])
    assert said is not None
    assert re.search(rf"its {macs} GMACs lie {reason}", said)


def test_a_line_that_cannot_be_compared_with() -> None:
    assert against_line(drawn(0.2), 100, []) is None
    with pytest.raises(InputError, match="do not pair"):
        against_line(drawn(0.2), 100, [(50, drawn(0.2)), (150, drawn(0.2, images=31))])


@pytest.fixture
def light(make_row: Callable[..., ExperimentRow], points: Points) -> Callable[..., list[ExperimentRow]]:
    """A table: two sizes, and a light head for each interval (difference, low, high) given in points, None for out of range."""

    def make(*intervals: tuple[float, float, float] | None, regime: str = "head") -> list[ExperimentRow]:
        rows = [
            make_row(macs=10_000_000_000),
            make_row(role="scaling", scale=256, macs=4_000_000_000, against_baseline=points(17, -3, -4, -2)),
        ]
        for number, interval in enumerate(intervals):
            rows.append(
                make_row(
                    line="blocks",
                    role="light",
                    regime=regime,
                    variant=f"head-{number}",
                    preset=f"head-{number}",
                    macs=5_000_000_000 if interval else 2_000_000_000,
                    against_scaling=points(15, *interval) if interval else None,
                    against_baseline=points(17, -0.5, -1.25, 0.25),
                )
            )
        return rows

    return make


@pytest.mark.parametrize(
    ("intervals", "first"),
    [
        ([(1.5, 0.5, 2.5), (2, 0.1, 4)], "Yes. At equal MACs 2 of 2 light heads beat shrinking the image (head-0 @ 416; head-1 @ 416)."),
        ([(-1.5, -2.5, -0.5)], "No. At equal MACs head-0 @ 416 loses to shrinking the image."),
        (
            [(0.5, -0.5, 1.5)],
            "Undecided. At equal MACs head-0 @ 416 cannot be told apart from shrinking the image on 190 images.",
        ),
        (
            [(1, 0.5, 2), (-1, -2, -0.5), (0, 0, 0), None],
            "It depends on the head. At equal MACs 1 of 3 light heads beats shrinking the image (head-0 @ 416), 1 of 3 light heads loses "
            "to shrinking the image (head-1 @ 416), 1 of 3 light heads cannot be told apart from shrinking the image on 190 images "
            "(head-2 @ 416).",
        ),
        (
            [(1, 0.5, 2), (0.2, 0, 0.5)],
            "For some heads. At equal MACs 1 of 2 light heads beats shrinking the image (head-0 @ 416), 1 of 2 light heads cannot be told "
            "apart from shrinking the image on 190 images (head-1 @ 416).",
        ),
        (
            [(-1, -2, -0.5), (0.2, -0.1, 0.5)],
            "For some heads not. At equal MACs 1 of 2 light heads loses to shrinking the image (head-0 @ 416), 1 of 2 light heads cannot "
            "be told apart from shrinking the image on 190 images (head-1 @ 416).",
        ),
        ([None], "Not answered: no light head has MACs within the measured range of the scaling line."),
        ([], "Not answered: no light head has MACs within the measured range of the scaling line."),
    ],
)
def test_the_answer_over_all(
    light: Callable[..., list[ExperimentRow]], intervals: list[tuple[float, float, float] | None], first: str
) -> None:
    sentences = verdict(light(*intervals), images=190)
    assert sentences[0] == first
    assert len(sentences) == 1 + len(intervals)


def test_without_the_scaling_line_nothing_is_claimed(light: Callable[..., list[ExperimentRow]]) -> None:
    (row,) = light(None)[2:]
    answer, sentence = verdict([replace(row, against_baseline=None)], images=190)
    assert answer.startswith("Not answered")
    assert sentence == "head-0 @ 416 cannot be compared with shrinking the image: no size of the scaling line was run."


AGAINST = " Against retinanet @ 416: -0.50 points (-1.25 to +0.25) at 2.00x fewer MACs."


@pytest.mark.parametrize(
    ("interval", "sentence"),
    [
        ((1.5, 0.5, 2.5), "head-0 @ 416 beats shrinking the image at equal MACs by 1.50 points (0.50 to 2.50)." + AGAINST),
        ((-1.5, -2.5, -0.5), "head-0 @ 416 loses to shrinking the image at equal MACs by 1.50 points (0.50 to 2.50)." + AGAINST),
        (
            (0.5, -0.5, 1.5),
            "head-0 @ 416 cannot be told apart from shrinking the image at equal MACs: +0.50 points (-0.50 to +1.50) on 190 images and "
            "3 seeds." + AGAINST,
        ),
        (
            None,
            "head-0 @ 416 cannot be compared with shrinking the image: its 2 GMACs lie below the scaling line's smallest size (4). "
            "Against retinanet @ 416: -0.50 points (-1.25 to +0.25) at 5.00x fewer MACs.",
        ),
    ],
)
def test_a_row_in_words(light: Callable[..., list[ExperimentRow]], interval: tuple[float, float, float] | None, sentence: str) -> None:
    assert verdict(light(interval), images=190)[1] == sentence


def test_another_regime_than_the_line_is_said(light: Callable[..., list[ExperimentRow]]) -> None:
    assert "though the two came about differently (lighten and head)" in verdict(light((1, 0.5, 2), regime="lighten"), images=190)[1]


@pytest.mark.parametrize(
    ("ends", "sentence"),
    [
        (
            (1.5, 0.5, 2.5),
            "Initialisation of head-0: confirmed that the paper's holds it back; fan-in minus the paper's is +1.50 points "
            "(+0.50 to +2.50).",
        ),
        (
            (-1.0, -2.0, -0.25),
            "Initialisation of head-0: refuted; it does better with the paper's, fan-in minus the paper's is -1.00 points "
            "(-2.00 to -0.25).",
        ),
        (
            (0.25, -0.5, 0.75),
            "Initialisation of head-0: undecided on 190 images and 3 seeds; fan-in minus the paper's is +0.25 points (-0.50 to +0.75), "
            "so the paper's costs it at most 0.75 points.",
        ),
    ],
)
def test_the_initialisation_whichever_way(
    light: Callable[..., list[ExperimentRow]], points: Points, ends: tuple[float, float, float], sentence: str
) -> None:
    test = Initialisation(preset="head-0", interval=points(15, *ends))
    assert verdict(light((1, 0.5, 2)), images=190, initialisation=[test])[-1] == sentence


@pytest.mark.parametrize(
    ("interval", "said"),
    [
        (Interval(a=0.17, b=0.19, difference=0.02, low=0.01, high=0.03), "b finds more than a: +2.00 points (+1.00 to +3.00)."),
        (Interval(a=0.17, b=0.15, difference=-0.02, low=-0.03, high=-0.01), "b finds less than a: -2.00 points (-3.00 to -1.00)."),
        (
            Interval(a=0.17, b=0.18, difference=0.01, low=-0.01, high=0.03),
            "b and a cannot be told apart on 30 images: +1.00 points (-1.00 to +3.00).",
        ),
    ],
)
def test_a_pair_is_judged_by_its_own_interval(make_row: Callable[..., ExperimentRow], interval: Interval, said: str) -> None:
    assert verdict([make_row()], images=30, pairs=[Pair(name_a="a", name_b="b", interval=interval)])[-1] == said
