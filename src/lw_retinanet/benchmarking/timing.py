"""Contenders in turns: first whole calls, then stage by stage in further rounds, since looking at the stages takes time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.images import BenchmarkImages
from lw_retinanet.benchmarking.settings import BenchmarkSettings
from lw_retinanet.benchmarking.stages import StageClock
from lw_retinanet.counting.rounds import take_turns
from lw_retinanet.devices import waiting_for
from lw_retinanet.progress import Progress

Stages = dict[str, float]
_STAGE_ROUNDS, _STAGE_WARM_UP = 10, 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The times of one contender.

    Args:
        contender: The contender.
        times: Milliseconds of the call in every round.
        stages: Median milliseconds of every stage; empty if the stages cannot be seen.
        staged_whole: Median milliseconds of the whole call in the rounds whose images the stages saw.
    """

    contender: Contender
    times: list[float]
    stages: Mapping[str, float]
    staged_whole: float


def timed(
    contenders: Sequence[Contender],
    images: BenchmarkImages,
    settings: BenchmarkSettings,
    *,
    device: torch.device,
    progress: Progress | None,
) -> list[Measured]:
    """Time contenders in turns.

    Args:
        contenders: The contenders.
        images: Every round takes the next ones, the same for all contenders.
        settings: How to measure. Stages get at most 10 rounds.
        device: Device that the clock waits for.
        progress: Wraps the rounds.
    """
    wait, warm_up, size = waiting_for(device), settings.warm_up, settings.batch_size
    for number in _first_of_each_shape(images, warm_up + settings.rounds, size):
        for one in contenders:
            one.run(images.batch(number, size), None)  # compiles and lays out what is made once for every shape
    whole = {one.name: partial(_call, one, images, size) for one in contenders}
    times = take_turns(whole, rounds=settings.rounds, warm_up=warm_up, wait=wait, progress=progress)
    stages: dict[str, list[Stages]] = {one.name: [] for one in contenders}
    stage_rounds, shift = min(_STAGE_ROUNDS, settings.rounds), warm_up - _STAGE_WARM_UP  # the images of the first rounds of the whole
    by_stage = {one.name: partial(_staged_call, one, images, size, shift, wait, stages[one.name]) for one in contenders if one.has_stages}
    take_turns(by_stage, rounds=stage_rounds, warm_up=_STAGE_WARM_UP, wait=wait, progress=progress)
    return [
        Measured(
            contender=one,
            times=times[one.name],
            stages=_medians(stages[one.name]),
            staged_whole=float(np.median(times[one.name][:stage_rounds])),
        )
        for one in contenders
    ]


def _call(contender: Contender, images: BenchmarkImages, size: int, number: int) -> None:
    contender.run(images.batch(number, size), None)


def _first_of_each_shape(images: BenchmarkImages, rounds: int, size: int) -> list[int]:
    """The rounds in which a combination of image sizes comes for the first time."""
    shapes = [images.decoded(place).shape for place in range(len(images.files))]
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for number in range(rounds):
        found.setdefault(tuple(shapes[place % len(shapes)] for place in range(number * size, (number + 1) * size)), number)
    return list(found.values())


def _staged_call(
    contender: Contender, images: BenchmarkImages, size: int, shift: int, wait: Callable[[], None], rounds: list[Stages], number: int
) -> None:
    clock = StageClock(wait)
    contender.run(images.batch(number + shift, size), clock)
    if number >= _STAGE_WARM_UP:
        rounds.append(clock.milliseconds)


def _medians(rounds: Sequence[Stages]) -> Stages:
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: float(np.median([one.get(name, 0.0) for one in rounds])) for name in names}
