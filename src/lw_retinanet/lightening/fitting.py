"""Fit new towers to the old ones by gradient descent on cached features, which takes minutes on two cores."""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.errors import ConfigError, InputError, TrainingError
from lw_retinanet.lightening.batch_norm import fixed_statistics, settle_new
from lw_retinanet.lightening.feature_cache import CachedFeatures
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.training.distillation import BOX_WEIGHT, box_distillation, class_distillation, distance_distillation
from lw_retinanet.training.optimiser import Optimisation
from lw_retinanet.training.small_loop import small_loop
from lw_retinanet.training.step import autocast

CENTRENESS = "bbox_ctrness"  # torchvision's name for the third output of FCOS
_LOG_EVERY = 50
_OUTPUT_WEIGHT = 10.0  # of a level's map that others read too


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How long and how fast to fit.

    Args:
        steps: Number of optimiser steps; 0 leaves the layers as they are.
        batch_size: Number of feature maps in a step, all of one shape.
        rate: Peak of the one-cycle learning rate. Ten times the default first destroys what the closed form reached; random weights
            need 1e-3.
        weight_decay: Weight decay of AdamW.
        averaging: Decay of the moving average of the weights. The average is the result.
        seed: Seed for the order of the feature maps.
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
    """The course of a fit.

    Args:
        seconds: Its duration.
        steps: The steps at which losses were noted.
        cls: The mean class loss since the step noted before.
        bbox: The mean box loss since the step noted before.
    """

    seconds: float
    steps: tuple[int, ...] = ()
    cls: tuple[float, ...] = ()
    bbox: tuple[float, ...] = ()


def fit(
    level: LevelPair,
    cached: Sequence[CachedFeatures],
    settings: FitSettings = FitSettings(),
    *,
    beside: Sequence[tuple[LevelPair, Sequence[CachedFeatures]]] = (),
    device: torch.device | None = None,
    use_bf16: bool = False,
    progress: Progress | None = None,
) -> FitCurve:
    """Train the new layers of a level, in place, to give the answers of the old ones.

    Batch norms keep their statistics during the fit. Afterwards they are set to the statistics of the cached features.

    Args:
        level: Old and new layers, on ``device``.
        cached: Features with answers (:func:`~lw_retinanet.lightening.feature_cache.with_answers`).
        settings: How long and how fast.
        beside: Other levels that run the same new towers, with their features. A step takes maps of one level.
        device: Device to compute on; None is the CPU.
        use_bf16: Run forward and backward passes under autocast.
        progress: Passes on the steps, for instance to show a bar.

    Raises:
        InputError: without features, or if the level has no new layers.
        TrainingError: if the loss is not finite; the layers then are as they were before.
    """
    levels = [level, *(each for each, _ in beside)]
    samples = [(each, one) for each, given in ((level, cached), *beside) for one in given]
    if not cached:
        raise InputError(f"the fit of {level.level} needs feature maps, got none; give at least one calibration image")
    learned = list(dict.fromkeys(parameter for each in levels for parameter in each.parameters()))
    if not learned:
        raise InputError(f"{level.level} has no layers of its own to fit; name it in the plan")
    started = time.monotonic()
    if not settings.steps:
        return FitCurve(seconds=0.0)
    before = [parameter.detach().clone() for parameter in learned]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_learning(learned, [parameter for each in levels for parameter in each.old_parameters()]))
        for each in levels:
            stack.enter_context(fixed_statistics(each))
        try:
            average, logged = _descend(learned, samples, settings, device or torch.device("cpu"), use_bf16, progress)
        except BaseException:
            _set(learned, before)
            raise
        _set(learned, average)
        settle_new(level, [each.maps for each in cached])
    steps, cls, bbox = zip(*logged, strict=True)
    return FitCurve(seconds=time.monotonic() - started, steps=steps, cls=cls, bbox=bbox)


@contextlib.contextmanager
def _learning(learned: Sequence[nn.Parameter], fixed: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let only ``learned`` receive gradients, and restore the ``requires_grad`` flags afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in (*learned, *fixed)]
    for parameter in learned:
        parameter.requires_grad_(True)
    for parameter in fixed:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
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
    learned: list[nn.Parameter],
    samples: Sequence[tuple[LevelPair, CachedFeatures]],
    settings: FitSettings,
    device: torch.device,
    use_bf16: bool,
    progress: Progress | None,
) -> tuple[list[Tensor], list[tuple[int, float, float]]]:
    """Returns the moving average of the weights, and the step, class loss and box loss at intervals."""
    optimiser = torch.optim.AdamW(learned, lr=settings.rate, weight_decay=settings.weight_decay, fused=True)
    # A warm-up of exactly one step would divide by zero.
    warmup = 0.1 if settings.steps != 10 else 0.2
    schedule = OneCycleLR(optimiser, settings.rate, total_steps=settings.steps, pct_start=warmup)
    holder = nn.ParameterList(learned)
    average = AveragedModel(holder, multi_avg_fn=get_ema_multi_avg_fn(settings.averaging))
    optimisation = Optimisation(holder, optimiser, set_rate=lambda step: schedule.step() if step else None, clip=10.0, average=average)
    batches, name = _batches(samples, settings), samples[0][0].level

    def backward() -> Tensor:
        chosen = [samples[index] for index in next(batches)]
        losses = _losses(chosen[0][0], [each for _, each in chosen], device, use_bf16)
        (losses[0] + BOX_WEIGHT * losses[1]).backward()
        return losses

    logged: list[tuple[int, float, float]] = []
    steps = tracked(range(settings.steps), settings.steps, f"fit {name}", progress)
    for stretch in small_loop(optimisation, backward, steps=steps, total_steps=settings.steps, report_every=_LOG_EVERY):
        cls, bbox = (reduce(torch.add, stretch.losses) / len(stretch.losses)).tolist()
        if not math.isfinite(cls + bbox):
            raise TrainingError(f"the fit of {name} has a loss that is not finite by step {stretch.step}; lower its rate ({settings.rate})")
        logged.append((stretch.step, cls, bbox))
    return list(average.module.parameters()), logged


def _losses(level: LevelPair, cached: Sequence[CachedFeatures], device: torch.device, use_bf16: bool) -> Tensor:
    """(2,) class and box loss of a batch; 0 for a branch that is not new."""
    maps = torch.cat([each.maps for each in cached]).to(device).contiguous(memory_format=torch.channels_last)
    with autocast(device, use_bf16):
        features = level.new_maps(maps if use_bf16 else maps.float())
        answers = _both_branches({pair.branch: pair.student(features) for pair in level.pairs})
    wanted = _both_branches(
        {
            branch: {key: torch.cat([each.answers[branch][key] for each in cached]).to(device) for key in cached[0].answers[branch]}
            for branch in cached[0].answers
        }
    )
    (old_logits,) = wanted["cls"].values()
    old_logits = _rows(old_logits, old_logits.shape[1] // level.num_anchors)
    losses = [torch.zeros((), device=device), torch.zeros((), device=device)]
    if level.output_is_read:
        old = level.old_maps(maps.float())
        losses[0] = _OUTPUT_WEIGHT * F.mse_loss(features.float(), old) / old.var()
    if "cls" in answers:
        (logits,) = answers["cls"].values()
        losses[0] = losses[0] + class_distillation(_rows(logits, old_logits.shape[2]), old_logits)
    if "bbox" in answers:
        for key, value in answers["bbox"].items():
            goal = wanted["bbox"][key]
            if key == CENTRENESS:
                losses[1] = losses[1] + _centreness_distillation(_rows(value, 1)[..., 0], _rows(goal, 1)[..., 0], old_logits)
            else:
                loss = distance_distillation if CENTRENESS in answers["bbox"] else box_distillation
                losses[1] = losses[1] + loss(_rows(value, 4), _rows(goal, 4), old_logits)
    return torch.stack(losses)


def _both_branches(answers: Mapping[DenseBranch, Mapping[str, Tensor]]) -> Mapping[DenseBranch, Mapping[str, Tensor]]:
    """Outputs by branch and prediction; those of a proposal network's one tower are the class branch's and the box branch's."""
    if "rpn" not in answers:
        return answers
    (name, logits), *boxes = answers["rpn"].items()
    return {"cls": {name: logits}, "bbox": dict(boxes)}


def _centreness_distillation(centreness: Tensor, old_centreness: Tensor, old_logits: Tensor) -> Tensor:
    """Cross entropy of (N, A) logits, weighted by the old head's best score for the anchor; divided by the sum of weights (at least 1)."""
    best = old_logits.float().sigmoid().amax(dim=2)
    losses = F.binary_cross_entropy_with_logits(centreness.float(), old_centreness.float().sigmoid(), reduction="none")
    return (best * losses).sum() / best.sum().clamp(min=1)


def _rows(maps: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)


def _batches(samples: Sequence[tuple[LevelPair, CachedFeatures]], settings: FitSettings) -> Iterator[list[int]]:
    """Yield batches of maps of one level and shape without end.

    A round shows every map once, except those left over from the last full batch.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = defaultdict(list)
    for index, (level, each) in enumerate(samples):
        groups[level.level, tuple(each.maps.shape[2:])].append(index)
    generator = np.random.default_rng(settings.seed)
    while True:
        batches: list[list[int]] = []
        for members in groups.values():
            order = generator.permutation(members).tolist()
            size = min(settings.batch_size, len(order))
            batches += [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        for index in generator.permutation(len(batches)):
            yield batches[index]
