"""Fill new towers from calibration images: cache features, solve in closed form, then fit. The same for our models and torchvision's."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import Tensor

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import Precision
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
    precision: Precision = "auto"


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
        after_closed_form: Called when the closed form of the last level is done, before its fit.
        progress: Passes on images, feature maps and steps, for instance to show a bar.

    Raises:
        InputError: if the model computes values that are not finite.
        ImageError: for an image that cannot be read.
        TrainingError: if the loss of the fit is not finite.
    """
    filled = []
    for level in levels if num_images else ():
        started = time.monotonic()
        cached = _cache(level, inputs, num_images, settings, device, progress)
        level.to(solve_on or device)
        solved = solve_closed_form(level, [each.maps for each in cached[:num_images]], seed=settings.seed, progress=progress)
        level.to(device)
        seconds = time.monotonic() - started
        if level is levels[-1] and after_closed_form is not None:
            after_closed_form()
        curve = None
        if settings.fit.steps:
            curve = fit(level, cached, settings.fit, device=device, use_bf16=_use_bf16(settings, device), progress=progress)
        filled.append(FilledLevel(level=level.level, errors=solved.errors, num_maps=len(cached), seconds=seconds, curve=curve))
    return filled


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
    level: LevelPair, inputs: LevelInputs, num_images: int, settings: LighteningSettings, device: torch.device, progress: Progress | None
) -> list[CachedFeatures]:
    """Features of all images; for a fit also those of the mirrored images, and the answers of the old towers."""
    fits = settings.fit.steps > 0
    total = 2 * num_images if fits else num_images
    maps = chain(inputs(level, False), inputs(level, True)) if fits else inputs(level, False)
    shown = tracked(maps, total, f"look at images for {level.level}", progress)
    cached = cache_features(level, shown, needs_answers=fits, use_bf16=_use_bf16(settings, device), max_bytes=settings.max_bytes)
    if len(cached) < total:
        log.info("the features of %d of %d images fit into %.1f GiB", len(cached), total, settings.max_bytes / 2**30)
    return cached
