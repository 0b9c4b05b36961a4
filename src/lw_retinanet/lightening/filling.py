"""Fill new towers from calibration images: cache features, solve in closed form, then fit. The same for our models and torchvision's."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor, nn

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import TrainingPrecision
from lw_retinanet.errors import InputError
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.feature_cache import CachedFeatures, cache_features
from lw_retinanet.lightening.fitting import FitCurve, FitSettings, fit
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.progress import Progress, tracked

DEFAULT_PRESET = "lw-narrow"
MAX_BYTES = 6 << 30  # of cached features
log = logging.getLogger(__name__)

LevelInputs = Callable[[LevelPair, bool], Iterator[Tensor]]
"""Gives, for a level, the (1, C, H, W) map that enters it for each calibration image; of the mirrored images if the flag is set."""


@dataclass(frozen=True, kw_only=True)
class LighteningSettings:
    """How new towers are filled.

    Args:
        fit: Settings of the fit; 0 steps leave it out.
        own_output: Let a P3 whose two branches are new have a convolution of its own that makes its map. It costs no arithmetic.
        max_bytes: Memory limit for cached features. As many images are used as fit in, the mirrored ones last.
        seed: Seed for the choice of cells in the closed form.
        precision: Precision of the features and the fit; ``auto`` is what runs faster on this machine.
    """

    fit: FitSettings = field(default_factory=FitSettings)
    own_output: bool = True
    max_bytes: int = MAX_BYTES
    seed: int = 0
    precision: TrainingPrecision = "auto"


@dataclass(frozen=True, kw_only=True)
class FilledLevel:
    """How well one level could be filled.

    Args:
        level: Name of the level.
        errors: By branch, the share of the old outputs' variance that the closed form misses.
        num_maps: Number of feature maps that were used, mirrored images counted.
        seconds: Time for the features and the closed form.
        curve: Losses of the fit; None if there was none.
    """

    level: str
    errors: dict[DenseBranch, float]
    num_maps: int
    seconds: float
    curve: FitCurve | None


def fill_levels(
    levels: Sequence[LevelPair],
    inputs: LevelInputs,
    num_images: int,
    settings: LighteningSettings,
    *,
    device: torch.device,
    solve_on: torch.device | None = None,
    after_closed_form: Callable[[], object] | None = None,
    progress: Progress | None = None,
) -> list[FilledLevel]:
    """Fill the new towers of each level, in place.

    Args:
        levels: Old and new layers, on ``device``.
        inputs: What enters a level.
        num_images: Number of calibration images; without any, nothing is filled.
        settings: Length of the fit, memory and seeds.
        device: Device of the model.
        solve_on: Device for the closed form; None takes ``device``.
        after_closed_form: Called when the closed form of all levels is done, before the fit.
        progress: Passes on images, feature maps and steps, for instance to show a bar.

    Raises:
        InputError: if the model computes values that are not finite.
        ImageError: for an image that cannot be read.
        TrainingError: if the loss of the fit is not finite.
    """
    works = []
    for group in _groups(levels) if num_images else ():
        started = time.monotonic()
        cached = [
            (level, _cache(level, inputs, num_images, settings, _share(level, levels, settings), device, progress)) for level in group
        ]
        for level in group:
            level.to(solve_on or device)
        (first, maps), *beside = [(level, [each.maps for each in found[:num_images]]) for level, found in cached]
        solved = solve_closed_form(first, maps, beside=beside, seed=settings.seed, progress=progress)
        for level in group:
            level.to(device)
        works.append((cached, solved, time.monotonic() - started))
    if works and after_closed_form is not None:
        after_closed_form()
    filled = []
    for cached, solved, seconds in works:
        curve = None
        if settings.fit.steps:
            (first, found), *others = cached
            curve = fit(first, found, settings.fit, beside=others, device=device, use_bf16=_use_bf16(settings, device), progress=progress)
        name, num_maps = "+".join(level.level for level, _ in cached), sum(len(found) for _, found in cached)
        filled.append(FilledLevel(level=name, errors=solved.errors, num_maps=num_maps, seconds=seconds, curve=curve))
    return filled


def _groups(levels: Sequence[LevelPair]) -> list[list[LevelPair]]:
    """The levels, those that run the same new layers together."""
    groups: list[list[LevelPair]] = []
    for level in levels:
        joined = [group for group in groups if any(_new_layers(level) & _new_layers(each) for each in group)]
        together = [*(each for group in joined for each in group), level]
        apart = [each.level for each in together if _new_layers(each) != _new_layers(level)]
        if apart:
            raise InputError(f"the plan lets {apart[0]} and {level.level} share some of their new layers; let them share all, or none")
        groups = [group for group in groups if group not in joined] + [together]
    return groups


def _new_layers(level: LevelPair) -> set[nn.Module]:
    return {layer for pair in level.pairs for layer in pair.student.layers if not pair.is_shared(layer)}


def _share(level: LevelPair, levels: Sequence[LevelPair], settings: LighteningSettings) -> int:
    """The part of the memory limit for a level: each coarser one has a quarter of the cells."""
    parts = {each.level: 4.0 ** -int(each.level[1:]) for each in levels}
    return int(settings.max_bytes * parts[level.level] / sum(parts.values()))


def checked_steps(fit_steps: int | None, *, has_images: bool) -> int:
    """The number of steps of the fit; None stands for the default if there are images to fit to, and for 0 otherwise.

    Raises:
        InputError: if the number is negative, or there is nothing to fit to.
    """
    if fit_steps is None:
        return FitSettings.steps if has_images else 0
    if not isinstance(fit_steps, int) or fit_steps < 0:
        raise InputError(f"fit_steps must be a whole number, 0 or more, got {fit_steps!r}")
    if fit_steps and not has_images:
        raise InputError(f"fit_steps={fit_steps} needs images to fit to; give images, or leave fit_steps out")
    return fit_steps


def _use_bf16(settings: LighteningSettings, device: torch.device) -> bool:
    return choose_precision(settings.precision, device, "training" if settings.fit.steps else "inference") == "bf16"


def _cache(
    level: LevelPair,
    inputs: LevelInputs,
    num_images: int,
    settings: LighteningSettings,
    max_bytes: int,
    device: torch.device,
    progress: Progress | None,
) -> list[CachedFeatures]:
    """Features of all images; for a fit also those of the mirrored images, and the answers of the old towers."""
    fits = settings.fit.steps > 0
    total = 2 * num_images if fits else num_images
    maps = chain(inputs(level, False), inputs(level, True)) if fits else inputs(level, False)
    shown = tracked(maps, total, f"look at images for {level.level}", progress)
    cached = cache_features(level, shown, needs_answers=fits, use_bf16=_use_bf16(settings, device), max_bytes=max_bytes)
    if len(cached) < total:
        log.info("the features of %d of %d images fit into %.1f GiB", len(cached), total, max_bytes / 2**30)
    return cached
