"""Contenders in turns: whole calls first, then stage by stage, in rounds of their own, since looking takes time."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.pictures import Pictures
from lw_retinanet.benchmarking.report import Measured
from lw_retinanet.benchmarking.stages import StageClock
from lw_retinanet.counting.rounds import take_turns
from lw_retinanet.devices import waiting_for
from lw_retinanet.progress import Progress

_STAGE_ROUNDS, _STAGE_WARM_UP = 10, 1


def timed(
    contenders: Sequence[Contender],
    pictures: Pictures,
    *,
    rounds: int,
    warm_up: int,
    batch_size: int,
    device: torch.device,
    progress: Progress | None,
) -> list[Measured]:
    """Times of every call and medians of every stage, in milliseconds.

    Args:
        contenders: take turns.
        pictures: each round takes the next ones, the same for all.
        rounds: that count; stages get at most 10.
        warm_up: rounds before them.
        batch_size: pictures a call.
        device: that is waited for.
        progress: wraps the rounds.
    """
    wait = waiting_for(device)
    for number in _first_of_each_shape(pictures, warm_up + rounds, batch_size):
        for one in contenders:
            one.run(pictures.batch(number, batch_size))  # for what is compiled or laid out once a shape
    whole = {one.name: _call(one, pictures, batch_size) for one in contenders}
    times = take_turns(whole, rounds=rounds, warm_up=warm_up, wait=wait, progress=progress)
    stages: dict[str, list[dict[str, float]]] = {one.name: [] for one in contenders}
    stage_rounds, shift = min(_STAGE_ROUNDS, rounds), warm_up - _STAGE_WARM_UP  # the same pictures as in the first rounds of the whole
    by_stage = {
        one.name: _staged(one, pictures, batch_size, shift, wait, stages[one.name]) for one in contenders if one.by_stage is not None
    }
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


def _call(contender: Contender, pictures: Pictures, size: int) -> Callable[[int], object]:
    return lambda number: contender.run(pictures.batch(number, size))


def _first_of_each_shape(pictures: Pictures, rounds: int, size: int) -> list[int]:
    """Rounds in which pictures come whose sizes did not come together before."""
    shapes = [pictures.decoded(place).shape for place in range(len(pictures.files))]
    found: dict[tuple[tuple[int, ...], ...], int] = {}
    for number in range(rounds):
        found.setdefault(tuple(shapes[place % len(shapes)] for place in range(number * size, (number + 1) * size)), number)
    return list(found.values())


def _staged(
    contender: Contender, pictures: Pictures, size: int, shift: int, wait: Callable[[], None], rounds: list[dict[str, float]]
) -> Callable[[int], object]:
    def run(number: int) -> None:
        clock = StageClock(wait)
        assert contender.by_stage is not None
        contender.by_stage(pictures.batch(number + shift, size), clock)
        if number >= _STAGE_WARM_UP:
            rounds.append(clock.milliseconds)

    return run


def _medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in rounds for name in one)
    return {name: float(np.median([one.get(name, 0.0) for one in rounds])) for name in names}
