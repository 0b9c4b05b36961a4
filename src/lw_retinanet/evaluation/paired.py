"""Is detector B better than detector A? Differences in AP with an interval, from a paired bootstrap over images."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.errors import ConfigError, DataError, InputError
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.match_tables import METRICS, MatchTable, match
from lw_retinanet.progress import Progress, tracked

MIN_IMAGES = 20
"""Fewer images are too few for an interval."""

MIN_DRAWS = 100
"""With fewer draws, two or less would lie beyond either end of the interval."""

Runs = DetectionTable | Sequence[DetectionTable]

_TAIL = 2.5  # per cent beyond either end of a 95 % interval
_DRAWS_AT_ONCE = 64  # small enough for the running sums of most classes to stay in a core's cache
_IMAGES, _RUNS = 0, 1  # two streams of random numbers that share a seed


@dataclass(frozen=True, kw_only=True)
class Interval:
    """One metric of two detectors, in 0..1.

    Args:
        a, b: The metric on all images; the mean over the runs if there are several.
        difference: ``b`` minus ``a``.
        low, high: Ends of the 95 % interval of the difference.
    """

    a: float
    b: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One metric of one detector in 0..1, on all images, with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """The metrics of one detector on all images and in each draw. Any two of these can be compared.

    Args:
        values: (6,) metrics on all images in the order of ``METRICS``; the mean over the runs if there are several. NaN where there is
            nothing to find.
        draws: (D, 6) the same in each draw.
        images: Number of images of the data set.
        seed: Seed of the draws. For the same images and seed, draw d always consists of the same images.
    """

    values: NDArray[np.float64]
    draws: NDArray[np.float64]
    images: int
    seed: int

    def estimates(self) -> dict[str, Estimate]:
        """Value and 95 % interval by name, without the metrics for which there is nothing to find."""
        estimates = {}
        for place, name in enumerate(METRICS):
            if np.isfinite(self.values[place]):
                low, high = _ends(self.draws[:, place])
                estimates[name] = Estimate(value=float(self.values[place]), low=low, high=high)
        return estimates

    def against(self, other: "Drawn") -> dict[str, Interval]:
        """This detector minus ``other``, draw by draw, by name, without the metrics for which there is nothing to find.

        Raises:
            InputError: If the draws do not consist of the same images.
        """
        if (self.images, self.seed, len(self.draws)) != (other.images, other.seed, len(other.draws)):
            raise InputError(
                f"draws of {self.images} images ({len(self.draws)}, seed {self.seed}) do not pair with draws of {other.images} images "
                f"({len(other.draws)}, seed {other.seed}); draw both with the same images, number and seed"
            )
        metrics = {}
        for place, name in enumerate(METRICS):
            a, b = float(other.values[place]), float(self.values[place])
            if np.isfinite(a):
                low, high = _ends(self.draws[:, place] - other.draws[:, place])
                metrics[name] = Interval(a=a, b=b, difference=b - a, low=low, high=high)
        return metrics


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two detectors on the same images.

    Args:
        metrics: AP, AP50, AP75, APs, APm, APl by name, without those for which the data set has nothing to find.
        images: Number of images of the data set.
        draws: How many times the images were drawn.
        runs_a, runs_b: Number of runs of either detector.
    """

    metrics: Mapping[str, Interval]
    images: int
    draws: int
    runs_a: int = 1
    runs_b: int = 1

    @property
    def ap(self) -> Interval:
        """The interval of AP."""
        return self.metrics["AP"]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the numbers of AP, and below ``metrics`` the other metrics, None where there is nothing to find."""
        return {
            "difference": self.ap.difference,
            "low": self.ap.low,
            "high": self.ap.high,
            "draws": self.draws,
            "images": self.images,
            "ap_a": self.ap.a,
            "ap_b": self.ap.b,
            "runs_a": self.runs_a,
            "runs_b": self.runs_b,
            "metrics": {name: dict(vars(self.metrics[name])) if name in self.metrics else None for name in METRICS if name != "AP"},
        }

    def lines(self) -> list[str]:
        """A table for people, with AP in points (0..100), and a line that says what it is based on."""
        rows = [f"{'':<5}{'A':>7}{'B':>7}{'B - A':>8}   95 % interval"]
        for name in METRICS:
            if entry := self.metrics.get(name):
                a, b, difference, low, high = (100 * value for value in (entry.a, entry.b, entry.difference, entry.low, entry.high))
                rows.append(f"{name:<5}{a:>7.2f}{b:>7.2f}{difference:>+8.2f}   {low:+.2f} .. {high:+.2f}")
            else:
                rows.append(f"{name:<5}{'-':>7}{'-':>7}{'-':>8}   nothing to find")
        runs = f", {self.runs_a} runs of A and {self.runs_b} of B" if max(self.runs_a, self.runs_b) > 1 else ""
        return [*rows, f"in points of AP; {self.images:,} images{runs}, the same for A and B, drawn with replacement {self.draws:,} times"]


def compare(
    records: Records,
    detections_a: Runs,
    detections_b: Runs,
    *,
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Metrics of B minus those of A, each with a 95 % interval from the paired percentile bootstrap over images.

    A draw takes as many images as there are, with replacement. The images are the same for A and B, and both are scored by COCO's rules.
    A set of images that is hard for A is mostly hard for B, too, so the interval of the difference is much narrower than the intervals of
    the two detectors. A class without boxes in a draw does not count in that draw; a draw without anything to find is left out.

    If there are several runs of each detector (seeds of one recipe), a draw also takes runs with replacement and averages over them. If A
    and B have equally many, run i of A is paired with run i of B. The interval then describes the recipe. With few runs its part that comes
    from the runs is too narrow, by sqrt(1 - 1 / runs).

    Args:
        detections_a, detections_b: One table of detections, or one for each run.
        draws: Number of draws, at least 100.
        seed: Seed of the draws, 0 or more. The same seed gives the same draws for any detections of the data set.
        progress: Wraps the blocks of draws, for instance to show a bar.

    Raises:
        InputError: If there are fewer than 20 images, or if ``draws`` or ``seed`` is out of range.
        DataError: See :func:`~lw_retinanet.evaluation.coco_metrics.evaluate`; or if the data set has nothing to find.
    """
    runs_a, runs_b = _as_runs(detections_a), _as_runs(detections_b)
    a, b = _drawn(records, [runs_a, runs_b], draws, seed, progress)
    return Comparison(metrics=b.against(a), images=records.num_images, draws=draws, runs_a=len(runs_a), runs_b=len(runs_b))


def drawn_scores(records: Records, detections: Runs, *, draws: int = 1000, seed: int = 0, progress: Progress | None = None) -> Drawn:
    """Score one detector on all images and in every draw, for any number of comparisons: ``b.against(a)`` is ``compare(a, b)``.

    The parameters and errors are those of :func:`compare`.
    """
    return _drawn(records, [_as_runs(detections)], draws, seed, progress)[0]


def class_estimates(records: Records, detections: DetectionTable, *, draws: int = 1000, seed: int = 0) -> list[Estimate | None]:
    """AP of each class with its interval, in the order of the classes; None for a class without boxes to find.

    The draws are those of :func:`drawn_scores`. A draw without boxes of a class is left out for that class.

    Raises:
        InputError: If there are fewer than 20 images, or if ``draws`` or ``seed`` is out of range.
        DataError: See :func:`~lw_retinanet.evaluation.coco_metrics.evaluate`.
    """
    _require_enough(records, draws, seed)
    table = match(records, detections)
    [values] = table.class_scores(np.ones((1, records.num_images), dtype=np.int64))
    blocks = (range(start, min(start + _DRAWS_AT_ONCE, draws)) for start in range(0, draws, _DRAWS_AT_ONCE))
    drawn = np.concatenate([table.class_scores(_image_weights(records.num_images, block, seed)) for block in blocks])
    estimates: list[Estimate | None] = []
    for value, column in zip(values, drawn.T, strict=True):
        low, high = _ends(column) if np.isfinite(value) else (0.0, 0.0)
        estimates.append(Estimate(value=float(value), low=low, high=high) if np.isfinite(value) else None)
    return estimates


def _as_runs(detections: Runs) -> list[DetectionTable]:
    runs = [detections] if isinstance(detections, DetectionTable) else list(detections)
    if not runs:
        raise InputError("no detections to compare; give at least one table of detections")
    return runs


def _drawn(
    records: Records, detectors: Sequence[Sequence[DetectionTable]], draws: int, seed: int, progress: Progress | None
) -> list[Drawn]:
    """The draws of several detectors, each with its runs. The images of a draw are drawn once for all."""
    full, drawn = _scores(records, [run for runs in detectors for run in runs], draws, seed, progress)
    ends = np.cumsum([len(runs) for runs in detectors])[:-1]
    return [
        Drawn(values=values.mean(axis=0), draws=_mean_of_runs(scores, seed), images=records.num_images, seed=seed)
        for values, scores in zip(np.split(full, ends), np.split(drawn, ends), strict=True)
    ]


def _scores(
    records: Records, runs: Sequence[DetectionTable], draws: int, seed: int, progress: Progress | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, 6) metrics of each run on all images, and (R, draws, 6) in each draw."""
    _require_enough(records, draws, seed)
    tables = [match(records, run) for run in runs]
    full = _score_all(tables, np.ones((1, records.num_images), dtype=np.int64))[:, 0]
    if not np.isfinite(full[0, METRICS.index("AP")]):
        raise DataError("the data set has no box to find, only ignored ones or none; compare on data with boxes")

    def block(start: int) -> NDArray[np.float64]:
        return _score_all(tables, _image_weights(records.num_images, range(start, min(start + _DRAWS_AT_ONCE, draws)), seed))

    starts = range(0, draws, _DRAWS_AT_ONCE)
    with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:  # NumPy computes outside the interpreter's lock
        blocks = pool.map(block, starts)
        drawn = list(tracked(blocks, len(starts), "draw", progress))
    return full, np.concatenate(drawn, axis=1)


def _require_enough(records: Records, draws: int, seed: int) -> None:
    if draws < MIN_DRAWS:
        raise ConfigError(f"draws must be {MIN_DRAWS} or more for a 95 % interval, got {draws}")
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more, got {seed}")
    if records.num_images < MIN_IMAGES:
        raise InputError(f"{records.num_images} images are too few: an interval needs {MIN_IMAGES} or more; compare on more images")


def _score_all(tables: Sequence[MatchTable], weights: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.stack([table.scores(weights) for table in tables])


def _image_weights(num_images: int, draws: range, seed: int) -> NDArray[np.int64]:
    """(W, I) how often each image is in each draw. A draw depends only on its number and the seed."""
    chosen = (np.random.default_rng((seed, _IMAGES, draw)).integers(num_images, size=num_images) for draw in draws)
    return np.stack([np.bincount(images, minlength=num_images) for images in chosen]).astype(np.int64, copy=False)


def _mean_of_runs(drawn: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """(draws, 6) from (R, draws, 6): in each draw, the mean over R runs taken with replacement. R and the seed decide the choice."""
    num_runs, draws = drawn.shape[:2]
    chosen = np.random.default_rng((seed, _RUNS, num_runs)).integers(num_runs, size=(num_runs, draws))
    return np.take_along_axis(drawn, chosen[:, :, None], axis=0).mean(axis=0)


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """Both ends of the interval, by one rule, so that changing all signs swaps them exactly."""
    finite = values[np.isfinite(values)]
    return float(np.percentile(finite, _TAIL)), -float(np.percentile(-finite, _TAIL))
