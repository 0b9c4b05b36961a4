import numpy as np
import pytest

from lw_retinanet.counting.rounds import median_interval, order_of_round, ratio_interval, summary, take_turns


def test_everyone_is_in_every_place_and_behind_everyone() -> None:
    orders = [order_of_round(number, 3) for number in range(6)]
    assert orders == [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]]
    for place in range(3):
        assert sorted(order[place] for order in orders) == [0, 0, 1, 1, 2, 2]
    behind = {(order[place], order[place + 1]) for order in orders for place in range(2)}
    assert len(behind) == 6  # every ordered pair of three


def test_times_are_of_the_call_alone_and_warm_up_is_left_out() -> None:
    now = 0.0
    rounds: dict[str, list[int]] = {"a": [], "b": []}

    def call(name: str, seconds: float) -> object:
        def run(number: int) -> None:
            nonlocal now
            now += seconds * (100 if number < 2 else 1)  # warming up is slow
            rounds[name].append(number)

        return run

    def wait() -> None:
        nonlocal now
        now += 0.5

    calls = {"a": call("a", 0.25), "b": call("b", 1.0)}
    times = take_turns(calls, rounds=3, warm_up=2, wait=wait, clock=lambda: now)  # type: ignore[arg-type]
    # Waiting for the device before the start is not its time, waiting at the end is.
    assert times == {"a": [750.0] * 3, "b": [1500.0] * 3}
    assert rounds == {"a": [0, 1, 2, 3, 4], "b": [0, 1, 2, 3, 4]}


def test_a_ratio_is_paired_by_round() -> None:
    # The machine is 1 to 3 times as slow from round to round, for both alike: apart they say little, together everything.
    disturbance = np.random.default_rng(0).uniform(1, 3, 30)
    ratio = ratio_interval(list(20 * disturbance), list(10 * disturbance))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))
    alone = median_interval(list(20 * disturbance))
    assert alone.high / alone.low > 1.1


def test_interval_of_a_median_by_hand() -> None:
    # Of two rounds, a quarter of the draws is twice the first, a quarter twice the second, half has both: quantiles 2.5 and 97.5 are these.
    interval = median_interval([1.0, 3.0])
    assert (interval.value, interval.low, interval.high) == (2.0, 1.0, 3.0)
    assert interval.as_dict("median") == {"median": 2.0, "low": 1.0, "high": 3.0}


def test_more_rounds_make_the_interval_narrower() -> None:
    values = np.random.default_rng(1).normal(100, 10, 1000)
    few, many = median_interval(list(values[:10])), median_interval(list(values))
    assert many.high - many.low < (few.high - few.low) / 3
    assert many.low < 100 < many.high


def test_summary_holds_percentiles() -> None:
    found = summary([float(value) for value in range(1, 12)])
    assert (found["median"], found["p10"], found["p90"]) == (6.0, 2.0, 10.0)


def test_nothing_to_time_takes_no_time() -> None:
    assert take_turns({}, rounds=3, warm_up=1) == {}
