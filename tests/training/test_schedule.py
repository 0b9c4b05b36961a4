import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.optim import SGD

from lw_retinanet.config import TrainConfig, parse_config
from lw_retinanet.training.optimiser import scheduled_rate
from lw_retinanet.training.schedule import (
    WARMUP_START,
    average_decay,
    linear_rate,
    paper_iterations,
    rate_factor,
    run_length,
    step_positions,
)


def length(steps_per_epoch: int, images_per_step: int, macs_reduction: float, **train: Any) -> int:
    config = parse_config({"train": train}).train
    return run_length(config, steps_per_epoch=steps_per_epoch, images_per_step=images_per_step, macs_reduction=macs_reduction)


def test_length_of_a_run() -> None:
    assert length(10, 4, 1.0, epochs=3) == 30
    assert length(10, 4, 2.0, epochs=3, steps=7) == 7
    # 90 steps of 16 images: 4 times as many of 4, and twice that for a model of half the arithmetic; epochs no longer count.
    assert length(10, 4, 2.0, epochs=3, schedule="paper", base_steps=90) == 90 * 4 * 2
    assert length(10, 4, 2.0, epochs=3, schedule="steps") == 30
    # Only the paper's schedule trains a lighter model longer.
    assert length(10, 4, 1.63, epochs=3, schedule="paper") == 49


def test_the_papers_numbers() -> None:
    # Eight GPUs with two images each: 90k iterations at 0.01, steps at 60k and 80k.
    assert paper_iterations(90_000, images_per_step=16, macs_reduction=1.0) == 90_000
    assert (linear_rate(16), step_positions(90_000)) == (0.01, (60_000, 80_000))
    # Four GPUs: half the rate, twice as long (section 4.1).
    assert paper_iterations(90_000, images_per_step=8, macs_reduction=1.0) == 180_000
    assert (linear_rate(8), step_positions(180_000)) == (0.005, (120_000, 160_000))


def test_a_lighter_model_trains_longer() -> None:
    # LW-RetinaNet-v3 costs 149.19 / 91.77 = 1.6257 times less: 180k x 1.6257 = 292.6k.
    assert paper_iterations(90_000, images_per_step=8, macs_reduction=149.19 / 91.77) == 292_625
    assert paper_iterations(90_000, images_per_step=8, macs_reduction=1.63) == 293_400


def test_the_released_code_is_one_and_a_half_schedules_long() -> None:
    # 4 GPUs: 180k x 1.5 = 270k, falling at 2/3 and 8/9: 180k and 240k. The reduction of its model is 1.63, so this was rounded.
    assert paper_iterations(90_000, images_per_step=8, macs_reduction=1.5) == 270_000
    assert step_positions(270_000) == (180_000, 240_000)


@pytest.mark.parametrize(("gpus", "iterations"), [(8, 146_319), (4, 292_638), (1, 1_170_553)])
def test_light_models_see_as_many_images_on_any_number_of_gpus(gpus: int, iterations: int) -> None:
    # 90,000 x 16 images x 1.625767 = 2,341,105 images, two a GPU and step.
    found = paper_iterations(90_000, images_per_step=2 * gpus, macs_reduction=149_194_714_112 / 91_768_794_112)
    assert found == iterations
    assert found * 2 * gpus == pytest.approx(2_341_105, abs=2 * gpus)


@pytest.mark.parametrize(("images", "reduction"), [(0, 1.0), (16, 0.9)])
def test_nonsense_is_refused(images: int, reduction: float) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        paper_iterations(90_000, images_per_step=images, macs_reduction=reduction)


def test_rate_falls_to_a_tenth_at_two_thirds_and_eight_ninths() -> None:
    factors = [rate_factor(step, total_steps=90, warmup_steps=0, schedule="steps") for step in range(90)]
    assert step_positions(90) == (60, 80)
    assert factors == pytest.approx([1.0] * 60 + [0.1] * 20 + [0.01] * 10)
    assert factors == [rate_factor(step, total_steps=90, warmup_steps=0, schedule="paper") for step in range(90)]


def test_cosine_starts_at_one_halves_in_the_middle_and_ends_near_zero() -> None:
    factors = [rate_factor(step, total_steps=200, warmup_steps=0, schedule="cosine") for step in range(200)]
    assert factors[0] == 1
    assert factors[100] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 199 / 200)))
    assert 0 < factors[-1] < 1e-4  # the last step still moves the weights
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_warm_up_is_linear_and_joins_the_schedule_without_a_jump(schedule: str) -> None:
    def factor(step: int, warmup: int) -> float:
        return rate_factor(step, total_steps=10_000, warmup_steps=warmup, schedule=schedule)  # type: ignore[arg-type]

    assert factor(0, 500) == pytest.approx(WARMUP_START)
    assert factor(250, 500) == pytest.approx(0.5005)  # half way from 0.001 to 1
    assert factor(500, 500) == 1
    steps = [factor(step, 500) for step in range(501)]
    assert max(b - a for a, b in pairwise(steps)) < 0.0021


def rates_of(total_steps: int, **train: Any) -> list[float]:
    """Shares of the peak rate that the optimiser of such a run is given."""
    optimiser = SGD([{"params": [torch.zeros(1)], "peak_rate": 1.0}], lr=1.0)
    set_rate = scheduled_rate(optimiser, parse_config({"train": train}).resolved().train, total_steps)
    rates = []
    for step in range(total_steps):
        set_rate(step)
        rates.append(float(optimiser.param_groups[0]["lr"]))
    return rates


@pytest.mark.parametrize("train", [{}, {"schedule": "steps"}, {"recipe": "paper"}])
@pytest.mark.parametrize("total_steps", [1, 20, 200, 2000])
def test_the_whole_rate_is_reached_in_runs_of_any_length(total_steps: int, train: dict[str, Any]) -> None:
    rates = rates_of(total_steps, **train)
    assert max(rates) == 1
    assert rates.index(1) == min(500 if "recipe" in train else 100, total_steps // 4)  # a warm-up is at most a quarter of the run
    assert min(rates) > 0


def test_the_cosine_starts_where_the_warm_up_ends() -> None:
    rates = rates_of(500, warmup_steps=100)
    assert rates[:2] == pytest.approx([0.001, 0.001 + 0.999 / 100])
    assert rates[300] == pytest.approx(0.5)  # half way from step 100 to 500


def test_the_steps_of_the_paper_count_from_the_start_of_the_run() -> None:
    rates = rates_of(900, recipe="paper", warmup_steps=225)
    assert [rates[step] for step in (225, 599, 600, 799, 800)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_version_1_trains_as_0_1_0_did() -> None:
    rates = rates_of(200, schedule_version=1)
    # Warm-up times cosine, both from step 0: half way through the warm-up 0.5005 x (1 + cos(pi/4)) / 2.
    assert rates[50] == pytest.approx(0.5005 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert max(rates) < 0.53
    assert average_decay(TrainConfig(schedule_version=1, ema=0.998), 200) == 0.998


def test_the_average_fits_into_the_run() -> None:
    # The last tenth of 896 steps is 89.6 of them, a decay of 1 - 1/89.6.
    assert average_decay(TrainConfig(ema=0.998), 896) == pytest.approx(1 - 1 / 89.6)
    assert average_decay(TrainConfig(ema=0.998), 90_000) == 0.998
    assert average_decay(TrainConfig(ema=0.998), 3) == 0  # the last weights
