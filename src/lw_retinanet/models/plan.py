"""The head plan: for each level and branch, whether its layers are shared or its own, and what they are."""

from typing import Literal, Self

from pydantic import BaseModel, Field, PositiveInt, field_validator, model_validator

from lw_retinanet.models.blocks import BATCH_NORM_UNITS, D_BLOCKS, NARROW_WIDTH, PREDICTIONS, UNITS

SHARED = "shared"
Level = Literal["P3", "P4", "P5", "P6", "P7"]


class TowerPlan(BaseModel, frozen=True, extra="forbid"):
    """Tower and prediction of one branch.

    Args:
        units: names of :data:`~lw_retinanet.models.blocks.UNITS` from input to output; ``shared`` at place i means unit i of the branch's
            shared tower, with its weights.
        width: channels inside the tower; None keeps the pyramid's width.
        predict: kernel of the tower's own prediction (a name of :data:`~lw_retinanet.models.blocks.PREDICTIONS`), or ``shared``.
    """

    units: tuple[str, ...] = Field(min_length=1)
    width: PositiveInt | None = None
    predict: str = "3x3"

    @field_validator("units")
    @classmethod
    def _known_units(cls, units: tuple[str, ...]) -> tuple[str, ...]:
        for unit in units:
            if unit not in UNITS and unit != SHARED:
                raise ValueError(f"unknown unit {unit!r}; known: {', '.join([*UNITS, SHARED])}")
        return units

    @field_validator("predict")
    @classmethod
    def _known_prediction(cls, predict: str) -> str:
        if predict not in PREDICTIONS and predict != SHARED:
            raise ValueError(f"unknown prediction kernel {predict!r}; known: {', '.join([*PREDICTIONS, SHARED])}")
        return predict

    @model_validator(mode="after")
    def _shared_layers_keep_the_width(self) -> Self:
        if self.width is not None and (SHARED in self.units or self.predict == SHARED):
            raise ValueError("a tower with shared layers keeps the pyramid's width; leave width out")
        return self


def d_block(name: str, *, predict: str | None = None, width: int | None = None) -> TowerPlan:
    """The tower of one of :data:`~lw_retinanet.models.blocks.D_BLOCKS`; ``predict`` and ``width`` replace what it usually has."""
    units, usual = D_BLOCKS[name]
    return TowerPlan(units=units, width=width or (NARROW_WIDTH if name == "narrow" else None), predict=predict or usual)


class HeadPlan(BaseModel, frozen=True, extra="forbid"):
    """Which levels own layers of which branch. A level that is not named shares everything.

    Args:
        cls: own class towers by level.
        bbox: own box towers by level.
        shared: the tower of all other levels, in both branches.
    """

    cls: dict[Level, TowerPlan] = {}
    bbox: dict[Level, TowerPlan] = {}
    shared: TowerPlan = d_block("original")

    @model_validator(mode="after")
    def _sharing_is_possible(self) -> Self:
        if SHARED in self.shared.units or self.shared.predict == SHARED:
            raise ValueError("the shared tower cannot itself be shared")
        if any(unit in BATCH_NORM_UNITS for unit in self.shared.units):
            # One set of statistics would average over maps that differ, and fit none of them.
            raise ValueError(
                "the shared tower serves several levels, so it has no batch norm; give each level units with batch norm of its own"
            )
        for branch, towers in (("cls", self.cls), ("bbox", self.bbox)):
            for level, tower in towers.items():
                if any(unit == SHARED and i >= len(self.shared.units) for i, unit in enumerate(tower.units)):
                    raise ValueError(f"{branch} {level} shares more units than the shared tower has ({len(self.shared.units)})")
        return self
