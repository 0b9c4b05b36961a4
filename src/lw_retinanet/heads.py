"""Every head that this package can build: the table of D-blocks, the table of presets, and the plans that they stand for.

D3 is the head as it is applied to P3, the finest level of the pyramid, where it costs most. A D-block is what the paper puts there in place
of the head's own tower of four 3x3 convolutions and its prediction, in the class branch, the box branch, or both.

To add a D-block made of known units, add one row to :data:`D_BLOCKS`. Preset names, settings, help texts, the ranking of ``profile``, the
search for a budget, ``lighten`` and ``benchmark`` read this table, and :mod:`lw_retinanet.models` builds the modules.

This module imports neither torch nor pydantic, so that the command line can name the presets in its help without delay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from lw_retinanet.errors import ConfigError, nearest, quoted, shown

BranchName = Literal["cls", "bbox"]
Level = Literal["P3", "P4", "P5", "P6", "P7"]

SHARED = "shared"
ORIGINAL = "original"
# What a tower and its prediction can be made of; models/blocks.py has one function for each of these names.
UNIT_NAMES = ("3x3", "3x3-gn", "1x1", "dw3x3+1x1", "dw5x5", "1x1-bn", "dw3x3+1x1-bn")
PREDICTION_NAMES = ("3x3", "1x1", "dw3x3+1x1")
BATCH_NORM_UNITS = ("1x1-bn", "dw3x3+1x1-bn")
BRANCHES: dict[str, tuple[BranchName, ...]] = {"cls": ("cls",), "bbox": ("bbox",), "both": ("cls", "bbox")}
_FORBID_OTHERS = {"extra": "forbid"}  # for pydantic, which reads plans from the records of model files
MAX_WIDTH, MAX_UNITS = 8192, 64  # of anything that is built
_WIDTHS = range(8, 512 + 1, 8)  # that a preset's name may ask for; multiples of eight fill vector registers


@dataclass(frozen=True, kw_only=True)
class DBlock:
    """One row of :data:`D_BLOCKS`.

    Args:
        units: Names from :data:`UNIT_NAMES`, from input to output.
        predict: Kernel of the prediction, a name from :data:`PREDICTION_NAMES`.
        width: Channels inside the tower; None keeps the pyramid's width. A block with a width of its own can be asked for in another
            width: ``both-narrow64``.
        harm: COCO AP points that the block is estimated to cost in the class branch and in the box branch of D3. None means that the search
            for a budget does not propose the block.
    """

    units: tuple[str, ...]
    predict: str
    width: int | None = None
    harm: Mapping[BranchName, float] | None = None

    @property
    def has_batch_norm(self) -> bool:
        """Whether the tower has batch norms, which fold into its convolutions once it is trained."""
        return any(unit in BATCH_NORM_UNITS for unit in self.units)


# The paper's D-blocks (Fig. 4), then ours. v1 and v3 lighten the prediction too, v2 does not: reading the paper so comes closest to
# its own costs. `narrow` and `dw5` cost nearly what v3 costs, with a field of view of 9x9 and 5x5 cells. The towers of `v1-bn` and `v3-bn`
# have batch norms that fold away; their predictions have none.
# Harm: v2 and v3 as published (Tables 1 and 2); narrow by its distance to v3 in this project's first fits. v1 is not proposed: its
# published loss of 1.4 points saves no more than v3, and depthwise convolutions are slower than their MACs suggest.
D_BLOCKS: dict[str, DBlock] = {
    ORIGINAL: DBlock(units=("3x3",) * 4, predict="3x3"),
    "v1": DBlock(units=("dw3x3+1x1",) * 4, predict="dw3x3+1x1"),
    "v2": DBlock(units=("1x1", "3x3") * 2, predict="3x3", harm={"cls": 0.3, "bbox": 0.1}),
    "v3": DBlock(units=("1x1",) * 4, predict="1x1", harm={"cls": 0.6, "bbox": 0.6}),
    "narrow": DBlock(units=("1x1",) + ("3x3",) * 4, predict="1x1", width=96, harm={"cls": 0.25, "bbox": 0.25}),
    "dw5": DBlock(units=("dw5x5",) + ("1x1",) * 4, predict="1x1"),
    "v1-bn": DBlock(units=("dw3x3+1x1-bn",) * 4, predict="dw3x3+1x1"),
    "v3-bn": DBlock(units=("1x1-bn",) * 4, predict="1x1"),
}


def light_blocks() -> list[str]:
    """Names of all D-blocks that can replace the original one."""
    return [name for name in D_BLOCKS if name != ORIGINAL]


@dataclass(frozen=True, kw_only=True)
class TowerPlan:
    """Tower and prediction of one branch on one level.

    Args:
        units: Names from :data:`UNIT_NAMES`, from input to output. ``shared`` at place i means unit i of the branch's shared tower, with
            its weights.
        width: Channels inside the tower; None keeps the pyramid's width.
        predict: Kernel of the tower's own prediction, a name from :data:`PREDICTION_NAMES`; or ``shared``.

    Raises:
        ValueError: If the tower cannot be built.
    """

    __pydantic_config__: ClassVar = _FORBID_OTHERS

    units: tuple[str, ...]
    width: int | None = None
    predict: str = "3x3"

    def __post_init__(self) -> None:
        if not 1 <= len(self.units) <= MAX_UNITS:
            raise ValueError(f"a tower has 1 to {MAX_UNITS} units, got {len(self.units):,}")
        for what, names, known in (("unit", self.units, UNIT_NAMES), ("prediction kernel", (self.predict,), PREDICTION_NAMES)):
            for name in names:
                if name not in known and name != SHARED:
                    raise ValueError(f"unknown {what} {quoted(name)}; known: {', '.join([*known, SHARED])}")
        if self.width is not None and not 1 <= self.width <= MAX_WIDTH:
            raise ValueError(f"the width of a tower must be 1 to {MAX_WIDTH:,}, got {shown(self.width)}")
        if self.width is not None and SHARED in (*self.units, self.predict):
            raise ValueError("a tower with shared layers keeps the pyramid's width; leave width out")


def block_tower(name: str, *, predict: str | None = None, width: int | None = None) -> TowerPlan:
    """The tower of a row of :data:`D_BLOCKS`; ``predict`` and ``width`` replace the row's own."""
    row = D_BLOCKS[name]
    return TowerPlan(units=row.units, width=width or row.width, predict=predict or row.predict)


_ORIGINAL_TOWER = block_tower(ORIGINAL)


@dataclass(frozen=True, kw_only=True)
class HeadPlan:
    """Which levels own layers of which branch. A level that is not named shares everything.

    Args:
        cls: Own class towers by level.
        bbox: Own box towers by level.
        shared: The tower of all other levels, in both branches.

    Raises:
        ValueError: If the head cannot be built.
    """

    __pydantic_config__: ClassVar = _FORBID_OTHERS

    cls: dict[Level, TowerPlan] = field(default_factory=dict)
    bbox: dict[Level, TowerPlan] = field(default_factory=dict)
    shared: TowerPlan = _ORIGINAL_TOWER

    def __post_init__(self) -> None:
        if SHARED in (*self.shared.units, self.shared.predict):
            raise ValueError("the shared tower cannot itself be shared")
        if any(unit in BATCH_NORM_UNITS for unit in self.shared.units):
            # One set of statistics would average over maps that differ, and fit none of them.
            raise ValueError(
                "the shared tower serves several levels, so it has no batch norm; give each level units with batch norm of its own"
            )
        for branch, towers in (("cls", self.cls), ("bbox", self.bbox)):
            for level, tower in towers.items():
                if level not in get_args(Level):
                    raise ValueError(f"unknown level {level!r} in {branch}; known: {', '.join(get_args(Level))}")
                if SHARED in tower.units[len(self.shared.units) :]:
                    raise ValueError(f"{branch} {level} shares more units than the shared tower has ({len(self.shared.units)})")


def d3_plan(cls: TowerPlan | None = None, bbox: TowerPlan | None = None) -> HeadPlan:
    """The plan in which D3 has towers of its own in its class branch, its box branch or both."""
    return HeadPlan(cls={"P3": cls} if cls else {}, bbox={"P3": bbox} if bbox else {})


# The paper numbers its detectors and its D-blocks independently: LW-RetinaNet-v1 has D-block-v2, and LW-RetinaNet-v3 has D-block-v3 twice.
PRESETS: dict[str, HeadPlan] = {
    "retinanet": HeadPlan(),  # one head for all levels
    "lw-v1": d3_plan(cls=block_tower("v2")),  # LW-RetinaNet-v1 (Table 2)
    "lw-v2": d3_plan(cls=block_tower("v3")),  # LW-RetinaNet-v2 (Table 2)
    "lw-v3": d3_plan(cls=block_tower("v3"), bbox=block_tower("v3")),  # LW-RetinaNet-v3 (Table 2)
    # LW-RetinaNet-v3 as in the authors' released code: the 3x3 box prediction stays shared by all levels.
    "lw-v3-released": d3_plan(cls=block_tower("v3"), bbox=block_tower("v3", predict=SHARED)),
    "bbox-v1": d3_plan(bbox=block_tower("v1")),  # Table 1
    "bbox-v2": d3_plan(bbox=block_tower("v2")),  # Table 1
    "bbox-v3": d3_plan(bbox=block_tower("v3")),  # Table 1
    "lw-narrow": d3_plan(
        cls=block_tower("narrow"), bbox=block_tower("narrow")
    ),  # ours: 1.09 times the MACs of LW-v3's D3, a 9x9 field of view
    "lw-dw5": d3_plan(cls=block_tower("dw5"), bbox=block_tower("dw5")),  # ours: LW-v3 with one 5x5 depthwise convolution in each branch
}


def preset_names() -> list[str]:
    """All names without a width: those of :data:`PRESETS`, then every block in every branch."""
    return list(dict.fromkeys([*PRESETS, *(f"{branches}-{block}" for branches in BRANCHES for block in light_blocks())]))


def presets_in_words() -> str:
    """All names as one phrase, for messages and help."""
    blocks = ", ".join(light_blocks())
    return f"{', '.join(PRESETS)}, or cls-, bbox- or both- with one of {blocks} (narrow64 is 64 wide)"


def is_preset(name: str) -> bool:
    """Whether there is a head of this name."""
    return _find(name) is not None


def plan_of(name: str) -> HeadPlan:
    """The head plan of a preset's name.

    Args:
        name: A key of :data:`PRESETS`; or ``cls-``, ``bbox-`` or ``both-`` and the name of a D-block: ``cls-dw5``, ``both-v1-bn``. A number
            behind a block that has a width of its own replaces that width by another multiple of 8 up to 512: ``both-narrow64``.

    Raises:
        ConfigError: For any other name. The message offers the nearest known one.
    """
    plan = _find(str(name))
    if plan is None:
        raise ConfigError(f"unknown preset {name!r}{known_presets(str(name))}")
    return plan


def known_presets(name: str) -> str:
    """What a message about an unknown preset ends with: the nearest known name, and all known ones."""
    parts = _parts(name)
    similar = preset_names()
    if parts is not None and (wanted := parts[2]) is not None:
        similar = [f"{parts[0]}-{parts[1]}{min(_WIDTHS, key=lambda width: abs(width - wanted))}"]
    return f"{nearest(name, similar)}; known presets: {presets_in_words()}"


def contender_presets() -> list[str]:
    """What a benchmark compares unless told otherwise: RetinaNet, its light presets, and every other block in both branches."""
    # Left out are presets with a light box branch alone, and kinds of another preset or block that take the same time.
    listed = [name for name, plan in PRESETS.items() if (plan.cls or not plan.bbox) and not name.endswith("-released")]
    used = [tower.units for plan in PRESETS.values() for tower in (*plan.cls.values(), *plan.bbox.values())]
    return listed + [f"both-{name}" for name in light_blocks() if not D_BLOCKS[name].has_batch_norm and D_BLOCKS[name].units not in used]


def _find(name: str) -> HeadPlan | None:
    if name in PRESETS:
        return PRESETS[name]
    parts = _parts(name)
    if parts is None or (parts[2] is not None and parts[2] not in _WIDTHS):
        return None
    branches, block, width = parts
    tower = block_tower(block, width=width)
    return d3_plan(**dict.fromkeys(BRANCHES[branches], tower))


def _parts(name: str) -> tuple[str, str, int | None] | None:
    """Branches, block and width of ``cls-v3``, ``both-narrow64`` and the like; the width may be one that is not allowed."""
    branches, _, text = name.partition("-")
    if branches not in BRANCHES:
        return None
    if text in light_blocks():
        return branches, text, None
    for block in light_blocks():
        if D_BLOCKS[block].width is not None and (found := re.fullmatch(re.escape(block) + "([1-9][0-9]{0,5})", text)):
            return branches, block, int(found[1])
    return None
