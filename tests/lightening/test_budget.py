"""Plans under a budget: exact, within it, and of the least harm among all there are."""

import itertools
import json
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn

from lw_retinanet.counting.detector_cost import count_detector
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.counting.profile import with_head
from lw_retinanet.counting.torchvision_model import torchvision_detector
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import D_BLOCKS, HeadPlan, TowerPlan, block_tower
from lw_retinanet.lightening.budget import HARM_GROWTH, propose
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

SIZE = (256, 256)


def _ours(plan: HeadPlan, num_classes: int = 20, **settings: Any) -> RetinaNet:
    with torch.device("meta"):
        return build(plan, num_classes=num_classes, backbone="resnet18", **settings)


def _macs(model: nn.Module) -> int:
    return count_detector(model, SIZE).macs


@pytest.mark.parametrize("share", [0.99, 0.9, 0.75, 0.6, 0.5])
def test_the_built_plan_costs_what_was_promised(share: float) -> None:
    full = _macs(_ours(HeadPlan()))
    proposal = propose(_ours(HeadPlan()), SIZE, round(share * full))
    assert proposal.macs <= share * full
    assert proposal.macs == _macs(_ours(proposal.plan)) == full - sum(step.saved for step in proposal.steps)
    assert proposal.macs_before == full
    assert not proposal.is_met_already


@pytest.mark.parametrize("share", [0.97, 0.8, 0.66, 0.55, 0.45])
def test_no_other_plan_for_the_two_finest_levels_harms_less(share: float) -> None:
    model = _ours(HeadPlan())
    blocks = count_blocks(model, SIZE)
    full, budget = _macs(model), round(share * _macs(model))

    def branch_macs(branch: str, level: str, block: str) -> int:
        parts = count_blocks(_ours(TypeAdapter(HeadPlan).validate_python({branch: {level: block_tower(block)}})), SIZE)[
            f"D{level[1]}"
        ].parts
        return parts[f"{branch}_tower"].macs + parts[f"{branch}_predict"].macs

    options = []
    for place, level in enumerate(("P3", "P4")):
        for branch in ("cls", "bbox"):
            parts = blocks[f"D{level[1]}"].parts
            now = parts[f"{branch}_tower"].macs + parts[f"{branch}_predict"].macs
            light = [
                (harm[branch] * HARM_GROWTH**place, now - branch_macs(branch, level, block))
                for block, row in D_BLOCKS.items()
                if (harm := row.harm)
            ]
            options.append([(0.0, 0), *light])
    harms = [
        sum(harm for harm, _ in combination)
        for combination in itertools.product(*options)
        if full - sum(saved for _, saved in combination) <= budget
    ]
    assert sum(step.harm for step in propose(model, SIZE, budget).steps) <= min(harms, default=100) + 1e-9


def test_fine_levels_and_wide_views_come_first() -> None:
    model = _ours(HeadPlan(), num_classes=80)
    full = _macs(model)
    light = propose(model, SIZE, round(0.7 * full))
    assert {step.level for step in light.steps} == {"P3"}
    assert {step.block for step in light.steps} <= {"narrow", "v2"}
    # Only the last bit of a budget needs v3 and coarse levels.
    least = propose(model, SIZE, _least(model))
    assert {step.level for step in least.steps} == {"P3", "P4", "P5", "P6", "P7"}
    assert "v3" in {step.block for step in least.steps}


def _least(model: nn.Module) -> int:
    """The least that any plan reaches, found by asking."""
    low, high = 1, _macs(model)
    while low < high:
        middle = (low + high) // 2
        try:
            propose(model, SIZE, middle)
            high = middle
        except InputError:
            low = middle + 1
    return low


def test_a_budget_that_d3_alone_cannot_reach() -> None:
    with torch.device("meta"):
        model = build(HeadPlan(), num_classes=80, backbone="mobilenet_v2")
    size = (800, 800)
    assert {step.level for step in propose(model, size, 42 * 10**9).steps} == {"P3"}
    both = propose(model, size, 28 * 10**9)  # 3.5 times fewer than 97.9
    assert {step.level for step in both.steps} == {"P3", "P4"}
    assert count_detector(with_head(model, both.plan), size).macs == both.macs <= 28 * 10**9


def test_a_budget_that_is_met_changes_nothing() -> None:
    full = _macs(_ours(HeadPlan()))
    proposal = propose(_ours(HeadPlan()), SIZE, full)
    assert proposal.is_met_already
    assert (proposal.plan, proposal.macs) == (HeadPlan(), full)
    assert "is met already" in proposal.lines()[0]
    assert not propose(_ours(HeadPlan()), SIZE, full - 1).is_met_already


def test_a_budget_that_no_plan_reaches_names_the_least() -> None:
    model = _ours(HeadPlan())
    least = _least(model)
    with pytest.raises(InputError, match=rf"^no plan reaches .* takes {least / 1e9:.3f} at this size; raise the budget"):
        propose(model, SIZE, least - 1)
    assert propose(model, SIZE, least).macs == least
    with pytest.raises(ConfigError, match="must be positive, got 0"):
        propose(model, SIZE, 0)


def test_towers_that_are_there_stay() -> None:
    own = HeadPlan(cls={"P3": block_tower("v3")}, bbox={"P4": TowerPlan(units=("shared", "1x1"), predict="shared")})
    model = _ours(own)
    proposal = propose(model, SIZE, round(0.8 * _macs(model)))
    assert proposal.plan.cls["P3"] == own.cls["P3"]
    assert proposal.plan.bbox["P4"] == own.bbox["P4"]
    assert proposal.macs == _macs(_ours(proposal.plan))
    with pytest.raises(InputError, match="with the towers that some levels own already kept"):
        propose(model, SIZE, 1)


@pytest.mark.parametrize("shared", [TowerPlan(units=("3x3-gn",) * 4), TowerPlan(units=("3x3",) * 2, width=128)])
def test_the_shared_tower_is_read_off_the_model(shared: TowerPlan) -> None:
    model = _ours(HeadPlan(shared=shared))
    proposal = propose(model, SIZE, round(0.9 * _macs(model)))
    assert proposal.plan.shared == shared
    assert proposal.macs == _macs(_ours(proposal.plan))
    assert all(len(tower.units) == len(shared.units) + (tower.width == 96) for tower in proposal.plan.cls.values())


@pytest.mark.parametrize(
    ("name", "share"), [("retinanet_resnet50_fpn", 0.62), ("retinanet_resnet50_fpn_v2", 0.62), ("fcos_resnet50_fpn", 0.68)]
)
def test_torchvisions_detectors(name: str, share: float) -> None:
    model = torchvision_detector(name)
    full = count_detector(model, SIZE)
    proposal = propose(model, SIZE, round(share * full.macs))
    assert proposal.macs <= share * full.macs
    assert {*proposal.plan.cls, *proposal.plan.bbox} == {step.level for step in proposal.steps}
    step = next(step for step in proposal.steps if (step.level, step.branch) == ("P3", "bbox"))
    # narrow on 32 x 32 cells; FCOS predicts 4 + 1 values for a cell, RetinaNet 36.
    outputs = 5 if "fcos" in name else 36
    assert step.block == "narrow"
    assert step.macs_after == 1024 * (256 * 96 + 4 * 96 * 96 * 9 + 96 * outputs)


def test_models_without_a_shared_head_have_no_plan() -> None:
    with pytest.raises(ConfigError, match=r"no plan for this model \(SSD\)"):
        propose(torchvision_detector("ssd300_vgg16"), (300, 300), 10**9)


def test_words_and_json_say_the_same() -> None:
    model = _ours(HeadPlan())
    proposal = propose(model, SIZE, round(0.7 * _macs(model)))
    result = json.loads(json.dumps(proposal.as_dict()))
    assert TypeAdapter(HeadPlan).validate_python(result["plan"]) == proposal.plan
    assert sum(step["saved"] for step in result["steps"]) == result["macs_before"] - result["macs"]
    rows = [line.split() for line in proposal.lines() if line.startswith("  D")]
    assert [row[:2] for row in rows] == [[f"D{step.level[1]}", step.branch] for step in proposal.steps]
