"""What is worth lightening: every branch of the head on every level, with what each light block would leave of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import device, nn

from lw_retinanet.counting.dense_head import BranchName, LevelBranch
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.counting.macs import follow
from lw_retinanet.heads import D_BLOCKS, ORIGINAL, TowerPlan, d_block, light_blocks
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.tables import aligned

_USUAL_DEPTH = len(D_BLOCKS[ORIGINAL].units)
_WORTH_IT = 0.02  # of the model: below this share nobody will notice
_BRANCH_WORDS: dict[BranchName, str] = {"cls": "class branch", "bbox": "box branch", "rpn": "proposal branch"}


@dataclass(frozen=True, kw_only=True)
class RankedBranch:
    """One branch on one level.

    Args:
        level: ``P3`` has stride 8.
        branch: ``cls``, ``bbox``, or ``rpn`` where one tower serves both.
        macs: as it is now.
        share: of the whole model's, 0..1.
        after: MACs of the branch with each light block that fits, by the block's name.
        best: the block that leaves least; None where every one costs more than what is there.
        saved: MACs that ``best`` saves.
        saved_share: of the whole model's, 0..1.
    """

    level: str
    branch: BranchName
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
        return {**vars(self), "after": dict(self.after)}


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """All rows, what saves most first.

    Args:
        cost: that they were taken from.
        rows: sorted by ``saved``, then by ``macs``.
    """

    cost: DetectorCost
    rows: Sequence[RankedBranch]

    @cached_property
    def verdict(self) -> list[str]:
        """What the numbers mean for this model and this number of classes, as sentences."""
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
        sentences += self._class_sentence() + self._elsewhere()
        return sentences

    def _class_sentence(self) -> list[str]:
        """The prediction grows with the classes, the tower does not."""
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

    def _elsewhere(self) -> list[str]:
        """R-CNN's second stage, where no block of this package applies."""
        return [
            f"The {name.replace('_', ' ')} takes {cost.macs / self.cost.macs:.1%}; light blocks do not apply to it, "
            f"fewer {'proposals' if name == 'box_head' else 'detections'} would make it cheaper."
            for name, cost in self.cost.blocks.items()
            if name.endswith("_head") and cost.macs > _WORTH_IT * self.cost.macs
        ]

    def lines(self) -> list[str]:
        """The table for people, and the verdict. Rows that save next to nothing are counted, not shown."""
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
        """The rows, for ``profile --json``."""
        return [row.as_dict() for row in self.rows]


def rank(model: nn.Module, size_hw: tuple[int, int]) -> Ranking:
    """Rank the branches of any detector that :func:`~lw_retinanet.counting.detector_cost.count_detector` takes; errors as there."""
    return rank_cost(count_detector(model, size_hw))


def rank_cost(cost: DetectorCost) -> Ranking:
    """The same of a detector that is counted already."""
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
    """A light block as one branch would have it.

    Args:
        units: names of ``UNITS``; empty where predictions stand on the map itself.
        width: channels inside the tower.
        predict: a name of ``PREDICTIONS``.
    """

    units: tuple[str, ...]
    width: int
    predict: str


def light_plan(branch: LevelBranch, block: str) -> LightTower | None:
    """A light block, as deep as the branch's own tower; None if it does not fit.

    A prediction that is 1x1 stays so. Without a tower (SSD) a block is the kernel of its prediction, and one that keeps the original
    kernel is nothing; v2 needs two units to alternate.
    """
    plan = d_block(block)
    predict = "1x1" if branch.kernel == 1 else plan.predict
    channels = branch.size.channels
    if branch.depth == 0:
        is_light = predict != "3x3" and plan.width is None and len(plan.units) == _USUAL_DEPTH
        return LightTower(units=(), width=channels, predict=predict) if is_light else None
    # What a block has beyond the usual four units comes once, whatever the depth: narrow's way in, dw5's depthwise convolution.
    extra = max(len(plan.units) - _USUAL_DEPTH, 0)
    start, repeated = plan.units[:extra], plan.units[extra:]
    if branch.depth < len(set(repeated)):
        return None  # one unit cannot alternate
    depth = len(repeated) if branch.depth == _USUAL_DEPTH else branch.depth
    units = start + tuple(repeated[i % len(repeated)] for i in range(depth))
    return LightTower(units=units, width=plan.width or channels, predict=predict)


def tower_plan(branch: LevelBranch, block: str) -> TowerPlan:
    """The same as part of a head plan, for a branch with a tower."""
    light = light_plan(branch, block)
    assert light is not None
    assert light.units
    return TowerPlan(units=light.units, width=d_block(block).width, predict=light.predict)


def light_macs(branch: LevelBranch, light: LightTower) -> int:
    """MACs of the branch with a light tower and predictions of its own."""
    with device("meta"):
        units = [UNITS[unit](branch.size.channels if i == 0 else light.width, light.width) for i, unit in enumerate(light.units)]
        predictions = [PREDICTIONS[light.predict](light.width, outputs) for outputs in branch.outputs]
    macs, size = follow(units, branch.size)
    return macs + sum(follow([prediction], size)[0] for prediction in predictions)
