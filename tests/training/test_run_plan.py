from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lw_retinanet.config import Config, parse_config
from lw_retinanet.conventions import InputRule
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.data.loader import StepPlan
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.run_plan import input_sizes, macs_reduction, plan_run
from lw_retinanet.training.step import Teacher
from lw_retinanet.weights.create import create_model

SQUARES = np.tile(np.array([64, 64], np.int32), (40, 1))


def settings(data: dict[str, Any] | None = None, preset: str = "lw-v3", **train: Any) -> Config:
    model = {"backbone": "resnet18", "head_width": 32, "preset": preset, "norm": "frozen"}
    return parse_config({"model": model, "data": {"image_size": 64, **(data or {})}, "train": {"batch_size": 2, **train}}).resolved()


def made(config: Config) -> RetinaNet:
    data = config.data
    assert data.image_size is not None
    with torch.device("meta"):
        return create_model(config.model, num_classes=3, image_size=data.image_size, resize=data.resize, max_size=data.max_size)


@pytest.mark.parametrize(
    ("train", "processes", "steps", "rate"),
    [
        # 40 images, 4 a step: 10 steps an epoch, 12 epochs.
        ({"recipe": "default"}, 2, 120, 2e-4),
        ({"recipe": "paper"}, 2, 120, 0.01 * 4 / 16),
        ({"recipe": "paper", "accumulate": 2}, 1, 120, 0.01 * 4 / 16),
        ({"recipe": "paper", "steps": 7}, 1, 7, 0.01 * 2 / 16),
        # 60 steps of 16 images are 240 of 4; the full model is not lighter than itself.
        ({"recipe": "paper", "schedule": "paper", "base_steps": 60}, 2, 240, 0.01 * 4 / 16),
    ],
)
def test_length_and_rate_by_hand(train: dict[str, Any], processes: int, steps: int, rate: float) -> None:
    config = settings(preset="retinanet", **train)
    plan = plan_run(config, made(config), SQUARES, name="retinanet", processes=processes)
    assert plan.steps == steps
    assert plan.rate == pytest.approx(rate)
    assert plan.images_per_step == 2 * processes * train.get("accumulate", 1)
    assert plan.epochs == steps / plan.steps_per_epoch
    assert plan.rate_falls_at == (() if train["recipe"] == "default" else (round(steps * 2 / 3), round(steps * 8 / 9)))
    assert plan.total_macs == plan.training_macs_per_image * plan.images_per_step * steps
    # 3 of every process' images a second, each process trains on its own share.
    assert plan.hours_at(3.0) == pytest.approx(steps * plan.images_per_step / processes / 3 / 3600)


def test_a_lighter_model_runs_longer_by_its_reduction() -> None:
    config = settings(recipe="paper", schedule="paper", base_steps=900)
    model = made(config)
    full = sum(cost.macs for cost in count_blocks(made(settings(preset="retinanet")), (64, 64)).values())
    light = sum(cost.macs for cost in count_blocks(model, (64, 64)).values())
    plan = plan_run(config, model, SQUARES, name="lw-v3")
    assert plan.macs_reduction == macs_reduction(model) == full / light > 1.02
    assert plan.steps == round(900 * 16 / 2 * full / light)
    assert plan.macs == light


@pytest.mark.parametrize("augment", ["flip", "jitter"])
@pytest.mark.parametrize("resize", ["long_side", "short_side"])
def test_inputs_are_padded_as_in_the_run(augment: str, resize: str) -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(30, 200, (37, 2)).astype(np.int32)
    config = settings(data={"augment": augment})
    rule = InputRule(resize=resize, size=250, max_size=400)  # type: ignore[arg-type]
    plan = StepPlan(sizes_hw=sizes, config=config.data, rule=rule, seed=5, batch_size=2, accumulate=2, processes=2, end_step=0)
    expected = [plan.keys(0, row)[0].size_hw for row in plan.order(0)]
    assert input_sizes(plan).tolist() == [list(size) for size in expected]
    assert len(set(expected)) > 1


def test_the_rule_of_three_passes_against_a_counted_step() -> None:
    # At 128 pixels C2 is 32 x 32 x 64. Frozen up to there, the first convolutions of C3 need no gradient of their input:
    # 3x3 and 1x1, both 64 -> 128 with stride 2, on 16 x 16. All else is forward and two gradients.
    config = settings(data={"image_size": 128}, recipe="paper", freeze=2)
    model = made(config)
    plan = plan_run(config, model, SQUARES, name="lw-v3")
    assert plan.size_hw == (128, 128)
    model.backbone.freeze(2)
    with FlopCounterMode(display=False) as counter:
        predictions = model.train()(torch.empty(1, 3, 128, 128, device="meta"))
        (predictions.logits.sum() + predictions.deltas.sum()).backward()
    not_needed = 16 * 16 * 128 * 64 * (9 + 1)
    assert counter.get_total_flops() == 2 * (plan.training_macs_per_image - not_needed)


def test_mean_commonest_and_largest_input() -> None:
    # Three images of 64 x 64 and one of 32 x 64, one a step: the mean cost is that of the epoch, not that of the commonest.
    sizes = np.array([[64, 64], [64, 64], [32, 64], [64, 64]], np.int32)
    config = settings(recipe="paper", batch_size=1)
    model = made(config)
    plan = plan_run(config, model, sizes, name="lw-v3")
    square, flat = (sum(cost.macs for cost in count_blocks(model, size).values()) for size in ((64, 64), (32, 64)))
    assert (plan.size_hw, plan.largest_hw) == ((64, 64), (64, 64))
    assert plan.macs_per_image == (3 * square + flat) / 4
    assert plan.training_macs_per_image == 3 * plan.macs_per_image


def test_a_teacher_costs_one_forward_pass() -> None:
    config = settings(recipe="paper")
    model, teacher = made(config), made(settings(preset="retinanet"))
    alone = plan_run(config, model, SQUARES, name="lw-v3")
    forward = sum(cost.macs for cost in count_blocks(teacher, (64, 64)).values())
    taught = plan_run(config, model, SQUARES, name="lw-v3", teacher=Teacher(model=teacher))
    assert taught.training_macs_per_image - alone.training_macs_per_image == forward
    # Of a lightened teacher the full head teaches.
    full = plan_run(config, model, SQUARES, name="lw-v3", teacher=Teacher(model=model, full_head=True))
    assert full.training_macs_per_image == taught.training_macs_per_image


def test_text_and_json_tell_the_same() -> None:
    config = settings(recipe="paper", schedule="paper", base_steps=90_000)
    plan = plan_run(config, made(config), SQUARES, name="lw-v3", processes=8)
    values, text = plan.as_dict(), "\n".join(plan.lines())
    assert values["steps"] == plan.steps
    assert values["rate_falls_at"] == plan.rate_falls_at
    assert f"{plan.steps:,} steps" in text
    assert f"a tenth from step {plan.rate_falls_at[0]:,}, a hundredth from step {plan.rate_falls_at[1]:,}" in text
    assert "8 processes x 2 images" in text
    # Neither memory nor time was asked for.
    assert (values["memory"], values["hours"]) == (None, None)
    assert "memory" not in text
