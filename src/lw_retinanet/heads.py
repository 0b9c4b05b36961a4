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
OF_CLASSES = "cls"  # in a box tower: the class tower's unit, computed once for both
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
    "separable": DBlock(units=("dw3x3+1x1",) * 2, predict="1x1"),
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
        units: Names from :data:`UNIT_NAMES`, from input to output. Three others stand at place i for unit i of another tower, with its
            weights: ``shared`` for the branch's shared tower; a level such as ``P3`` for this branch's own tower on that level; and
            ``cls``, in the first places of a box tower, for the class tower of the same level, whose features both branches then use.
        width: Channels inside the tower; None keeps the pyramid's width.
        predict: Kernel of the tower's own prediction, a name from :data:`PREDICTION_NAMES`; or ``shared``, or a level, as in ``units``.

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
        others = (SHARED, *get_args(Level))
        units, predictions = (*UNIT_NAMES, *others, OF_CLASSES), (*PREDICTION_NAMES, *others)
        for what, names, known in (("unit", self.units, units), ("prediction kernel", (self.predict,), predictions)):
            for name in names:
                if name not in known:
                    raise ValueError(f"unknown {what} {quoted(name)}; known: {', '.join(known)}")
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
                self._require_lent(branch, level, tower)

    def _require_lent(self, branch: str, level: Level, tower: TowerPlan) -> None:
        """Check the layers that a tower takes from the class tower of its level or from another level."""
        for place, name in enumerate((*tower.units, tower.predict)):
            if name == OF_CLASSES and (branch == "cls" or {*tower.units[:place]} - {OF_CLASSES}):
                raise ValueError(f"{branch} {level}: only the first units of a box tower can be those of the class tower ({OF_CLASSES})")
            if name != OF_CLASSES and name not in get_args(Level):
                continue
            towers = self.cls if OF_CLASSES in (name, branch) else self.bbox
            lender = towers.get(level if name == OF_CLASSES else name)  # type: ignore[call-overload]
            is_unit = place < len(tower.units)
            lent = None
            if lender is not None:
                lent = (lender.units[place] if place < len(lender.units) else None) if is_unit else lender.predict
            further = get_args(Level) if name == OF_CLASSES else ()
            if lender is None or lent not in (*(UNIT_NAMES if is_unit else PREDICTION_NAMES), *further):
                what = f"unit {place}" if is_unit else "the prediction"
                raise ValueError(f"{what} of {branch} {level} is taken from {name}, which has none of its own there")
            if lender.width != tower.width:
                raise ValueError(f"{branch} {level} takes layers from {name}, whose tower is not as wide; give both one width")
            if lent in BATCH_NORM_UNITS and name != OF_CLASSES:
                raise ValueError(
                    f"{branch} {level} takes a unit with batch norm from {name}, whose statistics fit one level; give it one of its own"
                )


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
    # LW-v3's cost, most of it where boxes are found: their errors cost more AP than those of classes (YOLOv10, section 3.2.1).
    "lw-separable": d3_plan(cls=block_tower("separable"), bbox=block_tower("narrow", width=100)),
    "lw-separable120": d3_plan(cls=block_tower("separable"), bbox=block_tower("narrow", width=120)),  # LW-v3's cost with one anchor a cell
    # One 1x1 unit that both branches read, then two 3x3 units in each, as in YOLOX's decoupled head.
    "lw-stem": d3_plan(
        cls=TowerPlan(units=("1x1", "3x3", "3x3"), width=128, predict="1x1"),
        bbox=TowerPlan(units=(OF_CLASSES, "3x3", "3x3"), width=128, predict="1x1"),
    ),
}
_ON_LEVELS = re.compile("(.+)-p3(p4(?:p5(?:p6(?:p7)?)?)?)(-shared)?")  # lw-v3-p3p4: the towers of D3 in D4, too


def preset_names() -> list[str]:
    """All names without a width: those of :data:`PRESETS`, then every block in every branch."""
    return list(dict.fromkeys([*PRESETS, *(f"{branches}-{block}" for branches in BRANCHES for block in light_blocks())]))


def presets_in_words() -> str:
    """All names as one phrase, for messages and help."""
    blocks = ", ".join(light_blocks())
    return (
        f"{', '.join(PRESETS)}, or cls-, bbox- or both- with one of {blocks} (narrow64 is 64 wide); "
        "-p3p4, -p3p4p5 ... behind it: so on these levels (-p3p4-shared: with one tower for them)"
    )


def is_preset(name: str) -> bool:
    """Whether there is a head of this name."""
    return _find(name) is not None


def plan_of(name: str) -> HeadPlan:
    """The head plan of a preset's name.

    Args:
        name: A key of :data:`PRESETS`; or ``cls-``, ``bbox-`` or ``both-`` and the name of a D-block: ``cls-dw5``, ``both-v1-bn``. A number
            behind a block that has a width of its own replaces that width by another multiple of 8 up to 512: ``both-narrow64``. Any of
            these that is light on P3, and ``-p3p4``, ``-p3p4p5``, ... : each of these levels has such towers of its own; with
            ``-shared`` they all run those of P3.

    Raises:
        ConfigError: For any other name. The message offers the nearest known one.
    """
    plan = _find(str(name))
    if plan is None:
        raise ConfigError(f"unknown preset {name!r}{known_presets(str(name))}")
    return plan


def known_presets(name: str) -> str:
    """What a message about an unknown preset ends with: the nearest known name, and all known ones."""
    several = _ON_LEVELS.fullmatch(name)
    parts = _parts(several[1] if several else name)
    similar = preset_names()
    if parts is not None and (wanted := parts[2]) is not None:
        similar = [f"{parts[0]}-{parts[1]}{min(_WIDTHS, key=lambda width: abs(width - wanted))}"]
    if several:
        similar = [each for base in similar if is_preset(each := base + name.removeprefix(several[1]))]
    return f"{nearest(name, similar)}; known presets: {presets_in_words()}"


def contender_presets() -> list[str]:
    """What a benchmark compares unless told otherwise: RetinaNet, its light presets, and every other block in both branches."""
    # Left out are presets with a light box branch alone, and kinds of another preset or block that take the same time.
    kinds = {tuple(tower.units for tower in (*plan.cls.values(), *plan.bbox.values())): name for name, plan in reversed(PRESETS.items())}
    listed = [name for name in PRESETS if name in kinds.values() and (PRESETS[name].cls or not PRESETS[name].bbox)]
    used = [tower.units for plan in PRESETS.values() for tower in (*plan.cls.values(), *plan.bbox.values())]
    return listed + [f"both-{name}" for name in light_blocks() if not D_BLOCKS[name].has_batch_norm and D_BLOCKS[name].units not in used]


def _find(name: str) -> HeadPlan | None:
    if name in PRESETS:
        return PRESETS[name]
    if several := _ON_LEVELS.fullmatch(name):
        plan = _find(several[1])
        return None if plan is None else _on_levels(plan, re.findall("P[4-7]", several[2].upper()), is_shared=bool(several[3]))
    parts = _parts(name)
    if parts is None or (parts[2] is not None and parts[2] not in _WIDTHS):
        return None
    branches, block, width = parts
    tower = block_tower(block, width=width)
    return d3_plan(**dict.fromkeys(BRANCHES[branches], tower))


def _on_levels(plan: HeadPlan, levels: list[Level], *, is_shared: bool) -> HeadPlan | None:
    """The plan with the towers of P3 on further levels; None if that cannot be."""
    found: dict[str, dict[Level, TowerPlan]] = {}
    for branch, towers in (("cls", plan.cls), ("bbox", plan.bbox)):
        if len(towers) > 1 or any(unit in BATCH_NORM_UNITS for tower in towers.values() for unit in tower.units if is_shared):
            return None
        found[branch] = dict(towers)
        for tower in towers.values():
            units = tuple("P3" if is_shared and unit in UNIT_NAMES else unit for unit in tower.units)
            predict = "P3" if is_shared and tower.predict in PREDICTION_NAMES else tower.predict
            found[branch] |= dict.fromkeys(levels, TowerPlan(units=units, width=tower.width, predict=predict))
    return HeadPlan(cls=found["cls"], bbox=found["bbox"]) if any(found.values()) else None


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
