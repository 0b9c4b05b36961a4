"""Fit new towers to the old ones by gradient descent on cached feature maps: minutes on two cores."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lw_retinanet.errors import ConfigError, InputError, TrainingError
from lw_retinanet.lightening.batch_norm import fixed_statistics, settle_new
from lw_retinanet.lightening.feature_cache import CachedFeatures
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.training.distillation import BOX_WEIGHT, box_distillation, class_distillation, distance_distillation
from lw_retinanet.training.step import autocast

CENTRENESS = "bbox_ctrness"  # torchvision's name of FCOS's third output
_LOG_EVERY = 50


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Args:
    steps: optimiser steps; 0 leave everything as it is.
    batch_size: feature maps a step, of one shape.
    rate: peak of a one-cycle schedule. Ten times more undoes a closed form before it improves on it; random weights need 1e-3.
    weight_decay: AdamW's.
    averaging: decay of the moving average of the weights, which is what remains.
    seed: of the order.
    """

    steps: int = 1500
    batch_size: int = 8
    rate: float = 3e-5
    weight_decay: float = 0.01
    averaging: float = 0.99
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "steps": self.steps < 0,
            "batch_size": self.batch_size < 1,
            "rate": not 0 < self.rate < math.inf,
            "weight_decay": not 0 <= self.weight_decay < math.inf,
            "averaging": not 0 <= self.averaging < 1,
        }
        for name, is_wrong in wrong.items():
            if is_wrong:
                raise ConfigError(f"{name} of the fit cannot be {getattr(self, name)}; leave it out for {getattr(FitSettings, name)}")


@dataclass(frozen=True, kw_only=True)
class FitCurve:
    """How it went: seconds, and every so many steps the step and the mean class and box loss since the entry before."""

    seconds: float
    steps: tuple[int, ...] = ()
    cls: tuple[float, ...] = ()
    bbox: tuple[float, ...] = ()


def fit(
    level: LevelPair,
    examples: Sequence[CachedFeatures],
    settings: FitSettings = FitSettings(),
    *,
    device: torch.device | None = None,
    use_bf16: bool = False,
    progress: Progress | None = None,
) -> FitCurve:
    """Train the new layers of a level, in place, until they say what the old ones say.

    Batch norms keep their statistics meanwhile, and get those of the examples in the end.

    Args:
        level: old and new layers, on ``device``.
        examples: views of images, see :func:`~lw_retinanet.lightening.feature_cache.teach`.
        settings: how long and how fast.
        device: to compute on; None is the CPU.
        use_bf16: forward and backward passes under autocast.
        progress: wraps the steps, for instance to show a bar; gets their number.

    Raises:
        InputError: without examples, or if nothing of the level is new.
        TrainingError: if the loss is not finite; the layers are then as they were before.
    """
    if not examples:
        raise InputError(f"the fit of {level.level} needs examples, got none; give at least one calibration image")
    learned = level.parameters()
    if not learned:
        raise InputError(f"{level.level} has no layers of its own to fit; name it in the plan")
    started = time.monotonic()
    if not settings.steps:
        return FitCurve(seconds=0.0)
    before = [parameter.detach().clone() for parameter in learned]
    with _learning(learned, level.old_parameters()), fixed_statistics(level):
        try:
            average, logged = _descend(level, learned, examples, settings, device or torch.device("cpu"), use_bf16, progress)
        except BaseException:
            _set(learned, before)
            raise
        _set(learned, average)
        settle_new(level, [example.maps for example in examples])
    return FitCurve(
        seconds=time.monotonic() - started,
        steps=tuple(entry[0] for entry in logged),
        cls=tuple(entry[1] for entry in logged),
        bbox=tuple(entry[2] for entry in logged),
    )


@contextlib.contextmanager
def _learning(learned: Sequence[nn.Parameter], fixed: Sequence[nn.Parameter]) -> Iterator[None]:
    """Gradients for what is learned alone, whatever the parameters' flags; they are put back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in (*learned, *fixed)]
    for parameter in learned:
        parameter.requires_grad_(True)
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.grad = None
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@torch.no_grad()
def _set(parameters: Sequence[nn.Parameter], values: Iterable[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _descend(
    level: LevelPair,
    learned: list[nn.Parameter],
    examples: Sequence[CachedFeatures],
    settings: FitSettings,
    device: torch.device,
    use_bf16: bool,
    progress: Progress | None,
) -> tuple[list[Tensor], list[tuple[int, float, float]]]:
    """The moving average of the weights, and step, class and box loss from time to time."""
    optimiser = torch.optim.AdamW(learned, lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    # A warm-up of exactly one step would divide by zero.
    warmup = 0.1 if settings.steps != 10 else 0.2
    schedule = OneCycleLR(optimiser, settings.rate, total_steps=settings.steps, pct_start=warmup)
    holder = nn.ParameterList(learned)
    average = AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))
    batches = _batches(examples, settings)
    logged: list[tuple[int, float, float]] = []
    sums, since = torch.zeros(2, device=device), 0
    steps = range(1, settings.steps + 1)
    for step in tracked(steps, settings.steps, f"fit {level.level}", progress):
        losses = _losses(level, [examples[index] for index in next(batches)], device, use_bf16)
        optimiser.zero_grad(set_to_none=True)
        (losses[0] + BOX_WEIGHT * losses[1]).backward()
        nn.utils.clip_grad_norm_(learned, 10.0)
        optimiser.step()
        schedule.step()
        average.update_parameters(holder)
        sums, since = sums + losses.detach(), since + 1
        if step % _LOG_EVERY == 0 or step == settings.steps:
            cls, bbox = (sums / since).tolist()
            if not math.isfinite(cls + bbox):
                raise TrainingError(
                    f"the fit of {level.level} has a loss that is not finite by step {step}; lower its rate ({settings.rate})"
                )
            logged.append((step, cls, bbox))
            sums, since = torch.zeros_like(sums), 0
    return list(average.module.parameters()), logged


def _losses(level: LevelPair, examples: Sequence[CachedFeatures], device: torch.device, use_bf16: bool) -> Tensor:
    """(2,) class and box loss of a batch; 0 for a branch that is not new."""
    maps = torch.cat([example.maps for example in examples]).to(device).contiguous(memory_format=torch.channels_last)
    with autocast(device, use_bf16):
        features = level.new_maps(maps if use_bf16 else maps.float())
        said = {pair.branch: pair.student(features) for pair in level.pairs}
    taught = {
        branch: {key: torch.cat([example.taught[branch][key] for example in examples]).to(device) for key in examples[0].taught[branch]}
        for branch in examples[0].taught
    }
    (taught_logits,) = taught["cls"].values()
    taught_logits = _rows(taught_logits, taught_logits.shape[1] // level.num_anchors)
    losses = [torch.zeros((), device=device), torch.zeros((), device=device)]
    if "cls" in said:
        (logits,) = said["cls"].values()
        losses[0] = class_distillation(_rows(logits, taught_logits.shape[2]), taught_logits)
    if "bbox" in said:
        for key, value in said["bbox"].items():
            goal = taught["bbox"][key]
            if key == CENTRENESS:
                losses[1] = losses[1] + _centreness_distillation(_rows(value, 1)[..., 0], _rows(goal, 1)[..., 0], taught_logits)
            else:
                loss = distance_distillation if CENTRENESS in said["bbox"] else box_distillation
                losses[1] = losses[1] + loss(_rows(value, 4), _rows(goal, 4), taught_logits)
    return torch.stack(losses)


def _centreness_distillation(centreness: Tensor, taught: Tensor, taught_logits: Tensor) -> Tensor:
    """Cross entropy of (N, A) logits, weighted by the teacher's best score for the place and divided by their sum (at least 1)."""
    best = taught_logits.float().sigmoid().amax(dim=2)
    losses = F.binary_cross_entropy_with_logits(centreness.float(), taught.float().sigmoid(), reduction="none")
    return (best * losses).sum() / best.sum().clamp(min=1)


def _rows(maps: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)


def _batches(examples: Sequence[CachedFeatures], settings: FitSettings) -> Iterator[list[int]]:
    """Endless batches of maps of one shape, every example once a round but for what does not fill a batch."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, example in enumerate(examples):
        groups[tuple(example.maps.shape[2:])].append(index)
    generator = np.random.default_rng(settings.seed)
    while True:
        batches: list[list[int]] = []
        for members in groups.values():
            order = generator.permutation(members).tolist()
            size = min(settings.batch_size, len(order))
            batches += [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        for index in generator.permutation(len(batches)):
            yield batches[index]
