"""How long a run is, and its learning rate at each step; both by the settings or by the paper's rules."""

import math
from typing import Literal

from lw_retinanet.config import TrainConfig

BASE_RATE = 0.01
BASE_IMAGES = 16
WARMUP_START = 0.001  # share of the peak rate at step 0


def linear_rate(images_per_step: int) -> float:
    """The linear scaling rule: 0.01 for 16 images a step (focal loss paper, section 4.1)."""
    return BASE_RATE * images_per_step / BASE_IMAGES


def paper_iterations(base_iterations: int, *, images_per_step: int, macs_reduction: float) -> int:
    """Length of a run by the paper's section 4.1, in optimiser steps.

    With fewer images a step the number of iterations rises in proportion, so the number of epochs stays. A lighter model then trains for
    more epochs, in proportion to the reduction of its arithmetic ("2x longer for half the GPUs, and then by the FLOPs reduction").

    Args:
        base_iterations: Iterations of the full model at 16 images a step; the paper has 90,000.
        images_per_step: Images of one step over all processes.
        macs_reduction: MACs of the full model over those of this one, at least 1.

    Raises:
        ValueError: for a reduction below 1 or no images.
    """
    if macs_reduction < 1 or images_per_step < 1:
        raise ValueError(f"expected at least 1 image a step and a reduction of at least 1, got {images_per_step} and {macs_reduction}")
    return round(base_iterations * BASE_IMAGES / images_per_step * macs_reduction)


def run_length(config: TrainConfig, *, steps_per_epoch: int, images_per_step: int, macs_reduction: float) -> int:
    """Length of a run by its settings, in optimiser steps.

    ``schedule: paper`` multiplies the epochs by the MACs reduction, and counts ``base_steps`` by :func:`paper_iterations`.
    """
    if config.steps is not None:
        return config.steps
    if config.base_steps is not None:
        return paper_iterations(config.base_steps, images_per_step=images_per_step, macs_reduction=macs_reduction)
    steps = config.epochs * steps_per_epoch
    if config.schedule == "paper":
        # At equal epochs the number of iterations already follows the batch size; only the reduction remains to be applied.
        return paper_iterations(steps, images_per_step=BASE_IMAGES, macs_reduction=macs_reduction)
    return steps


def step_positions(total_steps: int) -> tuple[int, int]:
    """The steps at which the rate falls to a tenth and to a hundredth: 2/3 and 8/9 of the run (60k and 80k of 90k)."""
    return round(total_steps * 2 / 3), round(total_steps * 8 / 9)


def warmup_length(config: TrainConfig, total_steps: int) -> int:
    """Steps of the warm-up in a run of this length: those of the settings, but at most a quarter of the run."""
    asked = config.warmup_steps or 0
    return asked if config.schedule_version == 1 else min(asked, total_steps // 4)


def average_decay(config: TrainConfig, total_steps: int) -> float:
    """Decay of the moving average in a run of this length; 0 keeps no average.

    An average over n steps has a decay of 1 - 1/n. It gets at most a tenth of the run, because weights from before the rate fell are worse.
    """
    decay = config.ema or 0.0
    return decay if config.schedule_version == 1 else min(decay, max(0.0, 1 - 10 / total_steps))


def rate_factor(
    step: int, *, total_steps: int, warmup_steps: int, schedule: Literal["cosine", "steps", "paper"], cosine_from: int | None = None
) -> float:
    """Share of the peak rate at a step (from 0), warm-up included.

    Args:
        step: The step.
        total_steps: Length of the run.
        warmup_steps: Steps of the warm-up.
        schedule: How the rate falls.
        cosine_from: The step at which the cosine begins to fall; None is the end of the warm-up.
    """
    warmup = 1.0
    if step < warmup_steps:
        warmup = WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if schedule == "cosine":
        first = warmup_steps if cosine_from is None else cosine_from
        return warmup * 0.5 * (1 + math.cos(math.pi * max(0, step - first) / (total_steps - first)))
    return warmup * float(0.1 ** sum(step >= position for position in step_positions(total_steps)))
