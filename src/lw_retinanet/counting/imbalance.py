"""What is worth lightening: every branch of the head on every level, with its MACs now and with each light block."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import device, nn

from lw_retinanet.counting.dense_head import DenseBranch, LevelBranch
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.counting.macs import follow
from lw_retinanet.heads import D_BLOCKS, ORIGINAL, TowerPlan, block_tower, light_blocks
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.tables import aligned

_USUAL_DEPTH = len(D_BLOCKS[ORIGINAL].units)
_WORTH_IT = 0.02  # share of the model below which nobody notices a saving
_WORTH_GOING_ON = 0.2  # share of what is left behind a light level that the next one must save
_BRANCH_WORDS: dict[DenseBranch, str] = {"cls": "class branch", "bbox": "box branch", "rpn": "proposal branch"}


@dataclass(frozen=True, kw_only=True)
class RankedBranch:
    """One branch on one level: a row of the ranking.

    Args:
        level: The level; ``P3`` has stride 8.
        branch: ``cls``, ``bbox``, or ``rpn`` if one tower serves both.
        macs: Its MACs now.
        share: Its share of the model's MACs, 0..1.
        after: Its MACs with each light block that fits, by the block's name.
        best: The block with the fewest MACs; None if no block saves any.
        saved: MACs that ``best`` saves.
        saved_share: Their share of the model's MACs, 0..1.
    """

    level: str
    branch: DenseBranch
    macs: int
    share: float
    after: Mapping[str, int]
    best: str | None
    saved: int
    saved_share: float

    @property
    def place(self) -> str:
        """``D3 cls``."""
        return f"D{self.level[1:]} {self.branch}"

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return {**vars(self), "after": dict(self.after)}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All branches, those that save most first.

    Args:
        cost: The counted detector.
        rows: The branches, sorted by ``saved``, then by ``macs``.
    """

    cost: DetectorCost
    rows: Sequence[RankedBranch]

    @cached_property
    def verdict(self) -> list[str]:
        """Sentences that say what the numbers mean for this model and this number of classes."""
        sentences = []
        first = self.rows[0]
        if first.best and first.saved_share >= _WORTH_IT:
            level, branch = f"D{first.level[1:]}", _BRANCH_WORDS[first.branch]
            sentence = f"Start at {level}: its {branch} takes {first.share:.1%} of the model, and block {first.best} there "
            both = sum(row.saved_share for row in self.rows if row.level == first.level)
            more = f"; light in both branches, {level} saves {both:.1%}." if first.branch != "rpn" else "."
            sentences.append(f"{sentence}saves {first.saved_share:.1%}{more}")
        else:
            sentences.append(
                f"Light blocks are not worth it here: the most that one of them can save is {first.saved_share:.1%} of the model."
            )
        sentences += self._class_sentence() + self._next_level() + self._pyramid_sentence() + self._elsewhere()
        return sentences

    def _next_level(self) -> list[str]:
        """A sentence about a second level, which a light backbone makes worthwhile."""
        first = self.rows[0]
        saved: dict[str, int] = {}
        for row in self.rows:
            saved[row.level] = saved.get(row.level, 0) + row.saved
        left = self.cost.macs - saved.pop(first.level)
        level = max(saved, key=lambda name: saved[name], default=None)
        if level is None or first.branch == "rpn" or saved[level] < _WORTH_GOING_ON * left:
            return []
        share = sum(row.macs for row in self.rows if row.level == level) / left
        return [
            f"Go on with D{level[1:]}, which takes {share:.1%} of what is left then: "
            f"light on both levels, the model takes {(left - saved[level]) / 1e9:.1f} instead of {self.cost.macs / 1e9:.1f} GMACs."
        ]

    def _class_sentence(self) -> list[str]:
        """A sentence about the class prediction, which grows with the number of classes."""
        branch = next((each for each in self.cost.branches if each.branch == "cls"), None)
        if branch is None or branch.depth == 0:
            return []
        count = self.cost.num_classes
        share, tower = branch.predict_macs / self.cost.macs, (branch.macs - branch.predict_macs) / self.cost.macs
        classes = f"{count:,} {'class' if count == 1 else 'classes'}"
        start = f"With {classes} the class prediction of D{branch.level[1:]} alone is {share:.1%} of the model"
        if branch.predict_macs > branch.macs - branch.predict_macs and branch.kernel > 1 and not branch.is_own:
            return [f"{start}, more than the tower before it ({tower:.1%}): a block must lighten the prediction too."]
        return [f"{start}, the tower before it {tower:.1%}."]

    def _pyramid_sentence(self) -> list[str]:
        """A sentence about the convolution that makes the finest map of an R-CNN, if a light one is worth it."""
        if self.cost.branches[0].branch != "rpn":
            return []
        level, size = next(iter(self.cost.levels.items()))
        with device("meta"):
            light = follow([PREDICTIONS["dw3x3+1x1"](size.channels, size.channels)], size)[0]
        saved = (self.cost.output_macs - light) / self.cost.macs
        if saved < _WORTH_IT:
            return []
        share = self.cost.output_macs / self.cost.macs
        return [f"{level}'s own 3x3 convolution takes {share:.1%}, and a depthwise and a 1x1 convolution in its place save {saved:.1%}."]

    def _elsewhere(self) -> list[str]:
        """Sentences about R-CNN's second stage, for which this package has no blocks."""
        return [
            f"The {name.replace('_', ' ')} takes {cost.macs / self.cost.macs:.1%}; light blocks do not apply to it, "
            f"fewer {'proposals' if name == 'box_head' else 'detections'} would make it cheaper."
            for name, cost in self.cost.blocks.items()
            if name.endswith("_head") and cost.macs > _WORTH_IT * self.cost.macs
        ]

    def lines(self) -> list[str]:
        """The table for people, and the verdict. Rows that save almost nothing are only counted."""
        shown = [row for i, row in enumerate(self.rows) if i == 0 or row.saved_share >= 0.001]
        blocks = [block for block in ranked_blocks() if any(block in row.after for row in shown)]
        table = [("", "GMACs", "share", *(f"with {block}" for block in blocks), "saves at most", "")]
        for row in shown:
            after = [f"{row.after[block] / 1e9:.3f}" if block in row.after else "-" for block in blocks]
            table.append((row.place, f"{row.macs / 1e9:.3f}", f"{row.share:.1%}", *after, f"{row.saved_share:.1%}", row.best or "nothing"))
        lines = aligned(table, left=(0, len(table[0]) - 1))
        if len(shown) < len(self.rows):
            lines.append(f"({len(self.rows) - len(shown)} more, each saving less than 0.1 % of the model)")
        return ["What is worth lightening, GMACs of a branch with each light block:", "", *lines, "", *self.verdict]

    def as_list(self) -> list[dict[str, Any]]:
        """The rows as JSON objects."""
        return [row.as_dict() for row in self.rows]


def rank(model: nn.Module, size_hw: tuple[int, int]) -> Ranking:
    """Rank the branches of any detector that :func:`~lw_retinanet.counting.detector_cost.count_detector` can count."""
    return rank_cost(count_detector(model, size_hw))


def rank_cost(cost: DetectorCost) -> Ranking:
    """Rank the branches of a detector that is counted already."""
    rows = []
    for branch in cost.branches:
        after = {name: light_macs(branch, plan) for name in ranked_blocks() if (plan := light_plan(branch, name)) is not None}
        best = min(after, key=lambda name: after[name], default=None)
        saved = max(branch.macs - after[best], 0) if best else 0
        rows.append(
            RankedBranch(
                level=branch.level,
                branch=branch.branch,
                macs=branch.macs,
                share=branch.macs / cost.macs,
                after=after,
                best=best if saved else None,
                saved=saved,
                saved_share=saved / cost.macs,
            )
        )
    return Ranking(cost=cost, rows=sorted(rows, key=lambda row: (-row.saved, -row.macs)))


def ranked_blocks() -> list[str]:
    """Names of the D-blocks that a ranking tries; those with batch norm cost what their plain kinds cost."""
    return [name for name in light_blocks() if not D_BLOCKS[name].has_batch_norm]


@dataclass(frozen=True, kw_only=True)
class LightTower:
    """A light block adapted to one branch.

    Args:
        units: Names of units; empty if the branch has no tower.
        width: Channels inside the tower.
        predict: Kernel of the prediction.
    """

    units: tuple[str, ...]
    width: int
    predict: str


def light_plan(branch: LevelBranch, block: str) -> LightTower | None:
    """Adapt a light block to the depth of a branch's own tower; None if the block does not fit.

    A 1x1 prediction stays 1x1. If the branch has no tower (SSD), only the block's prediction is used, and a block with the original
    kernel does not fit. v2 needs a depth of at least two units.
    """
    plan = block_tower(block)
    predict = predict_kernel(plan, branch.kernel)
    channels = branch.size.channels
    if branch.depth == 0:
        is_light = predict != "3x3" and plan.width is None and len(plan.units) == _USUAL_DEPTH
        return LightTower(units=(), width=channels, predict=predict) if is_light else None
    units = units_at_depth(plan.units, branch.depth)
    return LightTower(units=units, width=plan.width or channels, predict=predict) if units else None


def units_at_depth(units: tuple[str, ...], depth: int) -> tuple[str, ...]:
    """The units of a light block for a tower of another depth than RetinaNet's; none if the tower is too short for the block's pattern."""
    # Units beyond the usual four come once, whatever the depth: the first 1x1 unit of narrow, the depthwise convolution of dw5.
    extra = max(len(units) - _USUAL_DEPTH, 0)
    start, repeated = units[:extra], units[extra:]
    if depth < len(set(repeated)):
        return ()
    return start + tuple(repeated[i % len(repeated)] for i in range(len(repeated) if depth == _USUAL_DEPTH else depth))


def predict_kernel(plan: TowerPlan, kernel: int) -> str:
    """The kernel of a light block's prediction in place of one with this kernel: a 1x1 prediction is as light as it gets."""
    return "1x1" if kernel == 1 else plan.predict


def tower_plan(branch: LevelBranch, block: str) -> TowerPlan:
    """The adapted block as a part of a head plan, for a branch that has a tower."""
    light = light_plan(branch, block)
    assert light is not None
    assert light.units
    return TowerPlan(units=light.units, width=block_tower(block).width, predict=light.predict)


def light_macs(branch: LevelBranch, light: LightTower) -> int:
    """MACs of the branch with a light tower and its own predictions."""
    with device("meta"):
        units = [UNITS[unit](branch.size.channels if i == 0 else light.width, light.width) for i, unit in enumerate(light.units)]
        predictions = [PREDICTIONS[light.predict](light.width, outputs) for outputs in branch.outputs]
    macs, size = follow(units, branch.size)
    return macs + sum(follow([prediction], size)[0] for prediction in predictions)
