"""Learning rates over a run, and the paper's rule for rate and length."""

import math
from dataclasses import dataclass
from typing import Literal

BASE_RATE = 0.01
BASE_IMAGES = 16
BASE_ITERATIONS = 90_000
WARMUP_START = 0.001


def linear_rate(images_per_step: int) -> float:
    """The linear scaling rule: 0.01 for 16 images a step (focal loss paper, section 4.1)."""
    return BASE_RATE * images_per_step / BASE_IMAGES


@dataclass(frozen=True, kw_only=True)
class PaperSchedule:
    """What the paper's section 4.1 comes to.

    Args:
        rate: peak learning rate.
        iterations: optimiser steps.
        steps: iterations at which the rate falls to a tenth.
    """

    rate: float
    iterations: int
    steps: tuple[int, int]


def paper_schedule(*, images_per_step: int, macs_reduction: float = 1.0, base_iterations: int = BASE_ITERATIONS) -> PaperSchedule:
    """Rate, length and steps for a batch size and a lightened model.

    With fewer images a step the rate falls and the number of iterations rises in proportion, so epochs stay; then epochs are multiplied by
    the reduction of the arithmetic ("2x longer for half the GPUs, and then by the FLOPs reduction").

    Args:
        images_per_step: over all GPUs, 16 in the original.
        macs_reduction: MACs of the full model over those of this one, at least 1.
        base_iterations: of the original at 16 images.

    Raises:
        ValueError: for a reduction below 1 or no images.
    """
    if macs_reduction < 1 or images_per_step < 1:
        raise ValueError(f"expected at least 1 image a step and a reduction of at least 1, got {images_per_step} and {macs_reduction}")
    iterations = round(base_iterations * BASE_IMAGES / images_per_step * macs_reduction)
    return PaperSchedule(rate=linear_rate(images_per_step), iterations=iterations, steps=step_positions(iterations))


def step_positions(total_steps: int) -> tuple[int, int]:
    """Where the rate falls: 2/3 and 8/9 of the run (60k and 80k of 90k)."""
    return round(total_steps * 2 / 3), round(total_steps * 8 / 9)


def rate_factor(step: int, *, total_steps: int, warmup_steps: int, schedule: Literal["cosine", "steps", "paper"]) -> float:
    """Share of the peak rate at a step (0-based), warm-up included."""
    warmup = 1.0
    if step < warmup_steps:
        warmup = WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    if schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * step / total_steps))
    return warmup * float(0.1 ** sum(step >= position for position in step_positions(total_steps)))
