"""Timing several calls in turns, so that a machine that slows down slows all of them, and intervals for the times."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.progress import Progress, tracked

DRAWS = 10_000
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class TimeInterval:
    """An estimate and the 95 % interval around it."""

    value: float
    low: float
    high: float

    def as_dict(self, name: str) -> dict[str, float]:
        """``{name, low, high}``."""
        return {name: self.value, "low": self.low, "high": self.high}


def order_of_round(number: int, count: int) -> list[int]:
    """The order of ``count`` calls in round ``number``: every second round is backwards, and the first call changes.

    So no call is always the first, and none always runs after the same other call.
    """
    start = number // 2 % count
    places = [*range(start, count), *range(start)]
    return places[::-1] if number % 2 else places


def take_turns(
    calls: Mapping[Name, Callable[[int], object]],
    *,
    rounds: int,
    warm_up: int,
    wait: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Milliseconds of every call in every round.

    Args:
        calls: Functions by name. They are called with the number of the round.
        rounds: Number of timed rounds.
        warm_up: Rounds before these, which choose kernels and fill caches.
        wait: Waits until the device has finished its work.
        progress: Receives the numbers of the rounds.
        clock: Returns the time in seconds.
    """
    names = list(calls)
    times: dict[Name, list[float]] = {name: [] for name in names}
    for number in tracked(range(warm_up + rounds), warm_up + rounds, "benchmark", progress) if names else ():
        for place in order_of_round(number, len(names)):
            call = calls[names[place]]
            wait()
            started = clock()
            call(number)
            wait()
            if number >= warm_up:
                times[names[place]].append((clock() - started) * 1e3)
    return times


def median_interval(times: list[float], *, draws: int = DRAWS, seed: int = 0) -> TimeInterval:
    """The median with its 95 % bootstrap interval over the rounds."""
    values = np.asarray(times)
    return _interval(float(np.median(values)), np.median(values[_rows(len(values), draws, seed)], axis=1))


def ratio_interval(slow: list[float], fast: list[float], *, draws: int = DRAWS, seed: int = 0) -> TimeInterval:
    """Median of ``slow`` divided by median of ``fast``, with its 95 % bootstrap interval. Both use the same drawn rounds."""
    rows = _rows(len(slow), draws, seed)
    above, below = np.asarray(slow), np.asarray(fast)
    return _interval(float(np.median(above) / np.median(below)), np.median(above[rows], axis=1) / np.median(below[rows], axis=1))


def summary(times: list[float]) -> dict[str, Any]:
    """``median`` with its ``low`` and ``high``, and the 10th and 90th percentile."""
    p10, p90 = np.percentile(times, [10, 90])
    return {**median_interval(times).as_dict("median"), "p10": float(p10), "p90": float(p90)}


def _rows(count: int, draws: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def _interval(value: float, drawn: NDArray[np.float64]) -> TimeInterval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return TimeInterval(value=value, low=float(low), high=float(high))
