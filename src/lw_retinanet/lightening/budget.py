"""Find the plan that reaches a number of MACs and, by a simple estimate, costs the least AP."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torchvision.models import detection

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.dense_head import LevelBranch
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.counting.imbalance import light_macs, light_plan, tower_plan
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import D_BLOCKS, BranchName, HeadPlan, TowerPlan
from lw_retinanet.models.retinanet import RetinaNet

# Factor from one level to the next coarser one, which finds larger objects: it matters more for AP, and saves a quarter of the MACs.
HARM_GROWTH = 2.0


@dataclass(frozen=True, kw_only=True)
class ProposedTower:
    """One new tower of the plan.

    Args:
        level: Name of the level in the plan; ``P3`` is the model's finest map.
        branch: ``cls`` or ``bbox``.
        block: Name of the D-block.
        macs_before: MACs of this branch on this level as it is.
        macs_after: The same with the block.
        harm: Estimated cost in AP points (:class:`~lw_retinanet.heads.DBlock`). It serves to compare plans, and is no forecast.
    """

    level: str
    branch: str
    block: str
    macs_before: int
    macs_after: int
    harm: float

    @property
    def saved(self) -> int:
        """MACs that the tower saves."""
        return self.macs_before - self.macs_after

    @property
    def place(self) -> str:
        """Level and branch in short, such as ``D3 cls``."""
        return f"D{self.level[1]} {self.branch}"

    def as_dict(self) -> dict[str, Any]:
        """The values for JSON."""
        return {**vars(self), "saved": self.saved}


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A way to reach a budget.

    Args:
        plan: Plan for the whole head. For a model of this package it includes the towers that levels own already; for a torchvision model,
            whose own towers stay, only new ones.
        budget_macs: The budget.
        macs_before: MACs of the model as it is.
        macs: Exact MACs of the model with this plan, at most the budget.
        steps: The new towers, the finest level first; none if the model is within the budget already.
    """

    plan: HeadPlan
    budget_macs: int
    macs_before: int
    macs: int
    steps: Sequence[ProposedTower]

    @property
    def is_met_already(self) -> bool:
        """Whether the model is within the budget as it is."""
        return not self.steps

    def lines(self) -> list[str]:
        """The proposal as text."""
        budget, before = _giga(self.budget_macs), _giga(self.macs_before)
        if self.is_met_already:
            return [f"The budget of {budget} GMACs is met already: the model takes {before}. Nothing needs to change."]
        ratio = self.macs_before / self.macs
        lines = [f"Proposed for a budget of {budget} GMACs: {_giga(self.macs)} instead of {before} ({ratio:.2f}x fewer), by"]
        width = max(len(step.block) for step in self.steps)
        lines += [f"  {step.place:<7}  block {step.block:<{width}}  saves {_giga(step.saved)}" for step in self.steps]
        lines.append(
            "Chosen for the least estimated loss of AP: fine levels before coarse ones, blocks with a wide field of view before others. "
            "`lighten` measures what it really costs."
        )
        return lines

    def as_dict(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "budget_macs": self.budget_macs,
            "macs_before": self.macs_before,
            "macs": self.macs,
            "is_met_already": self.is_met_already,
            "steps": [step.as_dict() for step in self.steps],
            "plan": asdict(self.plan),
        }


def propose(model: nn.Module, size_hw: tuple[int, int], budget_macs: int) -> Proposal:
    """Find the plan with the least harm whose MACs are within the budget.

    Every level and branch of the shared head may get a D-block whose row in :data:`~lw_retinanet.heads.D_BLOCKS` names its harm. Of all
    combinations the one with the smallest sum of harm is taken; of several such, the one with the fewest MACs. Towers that a level owns
    already stay as they are.

    Args:
        model: A model of this package, or torchvision's ``RetinaNet`` or ``FCOS``, on any device; it is not changed.
        size_hw: Height and width of the network input in pixels.
        budget_macs: The MACs that the whole model may need.

    Raises:
        ConfigError: for a model without such a head, or a budget that is not positive.
        InputError: if no plan reaches the budget; the message says how far the lightest one gets.
    """
    return propose_for(model, count_detector(model, size_hw), budget_macs)


def propose_for(model: nn.Module, cost: DetectorCost, budget_macs: int) -> Proposal:
    """As :func:`propose`, for a model whose MACs are counted already."""
    if budget_macs < 1:
        raise ConfigError(f"a budget must be positive, got {budget_macs:,} MACs")
    if not isinstance(model, RetinaNet | detection.RetinaNet | detection.FCOS):
        raise ConfigError(
            f"no plan for this model ({type(model).__name__}): light towers go into the shared heads of RetinaNet and FCOS; "
            "leave the budget out to see what its MACs are spent on"
        )
    front = [_Chosen(harm=0.0, saved=0, steps=())]
    # A combination that another one beats in both harm and MACs cannot become the best, so it is dropped at each branch.
    for branch in cost.branches:
        steps = _possible_steps(branch, list(cost.levels).index(branch.level))
        front = _unbeaten([chosen.with_step(step) for chosen in front for step in (None, *steps)])
    reaching = [chosen for chosen in front if cost.macs - chosen.saved <= budget_macs]
    if not reaching:
        least = _giga(cost.macs - front[-1].saved)
        kept = ", with the towers that some levels own already kept" if any(branch.is_own for branch in cost.branches) else ""
        raise InputError(
            f"no plan reaches {_giga(budget_macs)} GMACs: with the lightest head this model takes {least} at this size{kept}; "
            "raise the budget, or take a smaller input or backbone"
        )
    best = reaching[0]
    return Proposal(
        plan=_with_steps(model.head.plan if isinstance(model, RetinaNet) else HeadPlan(), best.steps, cost),
        budget_macs=budget_macs,
        macs_before=cost.macs,
        macs=cost.macs - best.saved,
        steps=best.steps,
    )


@dataclass(frozen=True, kw_only=True)
class _Chosen:
    harm: float
    saved: int
    steps: tuple[ProposedTower, ...]

    def with_step(self, step: ProposedTower | None) -> "_Chosen":
        if step is None:
            return self
        # Rounded, so that sums of the same tenths in another order are equal.
        return _Chosen(harm=round(self.harm + step.harm, 9), saved=self.saved + step.saved, steps=(*self.steps, step))


def _unbeaten(choices: Sequence[_Chosen]) -> list[_Chosen]:
    """The combinations that no other one beats in both harm and MACs, from the least harm to the most MACs saved."""
    front: list[_Chosen] = []
    for chosen in sorted(choices, key=lambda each: (each.harm, -each.saved)):
        if not front or chosen.saved > front[-1].saved:
            front.append(chosen)
    return front


def _possible_steps(branch: LevelBranch, place: int) -> list[ProposedTower]:
    if branch.is_own or branch.branch == "rpn" or place >= len(LEVELS):
        return []
    steps = []
    for block, harm in _proposed_blocks():
        light = light_plan(branch, block)
        after = light_macs(branch, light) if light is not None else branch.macs
        if after < branch.macs:
            steps.append(
                ProposedTower(
                    level=LEVELS[place],
                    branch=branch.branch,
                    block=block,
                    macs_before=branch.macs,
                    macs_after=after,
                    harm=harm[branch.branch] * HARM_GROWTH**place,
                )
            )
    return steps


def _proposed_blocks() -> list[tuple[str, Mapping[BranchName, float]]]:
    """Blocks and their harm, the least harmful first, because of plans with equal harm and MACs the search takes the first."""
    known = [(name, harm) for name, row in D_BLOCKS.items() if (harm := row.harm) is not None]
    return sorted(known, key=lambda block: sum(block[1].values()))


def _with_steps(plan: HeadPlan, steps: Sequence[ProposedTower], cost: DetectorCost) -> HeadPlan:
    own: dict[str, dict[Any, TowerPlan]] = {"cls": dict(plan.cls), "bbox": dict(plan.bbox)}
    maps = list(cost.levels)
    for step in steps:
        branch = next(each for each in cost.branches if (maps.index(each.level), each.branch) == (LEVELS.index(step.level), step.branch))
        own[step.branch][step.level] = tower_plan(branch, step.block)
    return HeadPlan(**own, shared=plan.shared)


def _giga(macs: int) -> str:
    # Small models need five digits, or their numbers all look the same.
    return f"{macs / 1e9:,.3f}" if macs >= 1e8 else f"{macs / 1e9:.5g}"
