"""The experiment file: which detectors at which input sizes, how they are trained, and how often."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, field_validator, model_validator

from lw_retinanet.config import Config, explain, load_config, parse_config
from lw_retinanet.errors import ConfigError, InputError, nearest
from lw_retinanet.heads import plan_of

Regime = Literal["full", "head", "lighten", "finetune"]
REGIMES: dict[str, str] = {
    "full": "the whole network is trained from the settings' backbone weights, as `lw-retinanet train` does",
    "head": "backbone and pyramid are those of a trained detector and stay as they are; every head is trained from scratch on their maps",
    "lighten": "a trained detector is lightened without labels, as `lw-retinanet lighten` does",
    "finetune": "a trained detector is trained on with labels, all rows equally long: its full head as it is, at the same or a smaller "
    "image size, or its light head after `lw-retinanet lighten`, with the old head as teacher beside the labels",
}
TRUNK = "trunk"  # stands for the trunk's file in the settings of a run, which do not depend on where the file lies
Scale = Annotated[int, Field(ge=64, le=4096)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(_Part):
    """A head, and what is special about its training.

    Args:
        preset: Name of the head.
        init: Initialisation of its weights; None takes that of the settings.
        anchors: Anchors a cell; None takes those of the settings.
        teacher: Whether the trunk's own head teaches it beside the labels (regimes ``head`` and ``finetune``); None is light heads in the
            regime ``finetune`` alone.
    """

    preset: str
    init: Literal["fan_in", "fan_in_light", "paper"] | None = None
    anchors: Literal["nine", "one"] | None = None
    teacher: bool | None = None

    @property
    def label(self) -> str:
        """The name for people: ``bbox-v1, init paper``."""
        special = [
            f"init {self.init.replace('_', '-')}" if self.init else "",
            f"{self.anchors} anchor{'s' if self.anchors == 'nine' else ''}" if self.anchors else "",
            "" if self.teacher is None else "with teacher" if self.teacher else "without teacher",
        ]
        return ", ".join([self.preset, *filter(None, special)])

    @property
    def slug(self) -> str:
        """The label as part of a name of a row: ``bbox-v1-init-paper``."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower())


class Line(_Part):
    """Variants times scales, joined by a line in the figures.

    Args:
        name: A name such as ``scaling`` or ``blocks``.
        regime: How its networks are made, see ``REGIMES``.
        variants: Heads; a text is a preset.
        scales: Longer sides of the images, pixels.
    """

    name: str = Field(min_length=1)
    regime: Regime = "head"
    variants: tuple[Variant, ...] = Field(min_length=1)
    scales: tuple[Scale, ...] = Field(min_length=1)

    @field_validator("variants", mode="before")
    @classmethod
    def _texts_are_presets(cls, variants: Any) -> Any:
        return (
            [{"preset": item} if isinstance(item, str) else item for item in variants] if isinstance(variants, list | tuple) else variants
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table: a variant at a scale in a regime, over all its seeds."""

    line: str
    regime: Regime
    variant: Variant
    scale: int

    @property
    def name(self) -> str:
        """Name of the row, and of its folder: ``bbox-v1-init-paper@416``."""
        regime = "" if self.regime == "head" else f"-{self.regime}"
        return f"{self.variant.slug}{regime}@{self.scale}"

    @property
    def is_light(self) -> bool:
        """Whether a level has a tower of its own."""
        plan = plan_of(self.variant.preset)
        return bool(plan.cls or plan.bbox)

    @property
    def is_taught(self) -> bool:
        """Whether the trunk's own head teaches beside the labels."""
        return self.variant.teacher if self.variant.teacher is not None else self.regime == "finetune" and self.is_light


class Experiment(_Part):
    """Everything that decides the table.

    Args:
        name: Name of the experiment.
        data: Dataset with training and validation split.
        trunk: Trained model file or run folder, for all regimes but ``full``; or several, one for each fold or, without folds, one for each
            seed.
        trunk_recipe: Settings with which the experiment trains its own trunks, one for each fold, instead of ``trunk``.
        folds: Parts of training and validation split together. Each is measured with networks, trunk included, that are trained on the
            others, so that every image is scored once by a network that has not seen it. None trains on the one split and measures on the
            other.
        fold_seed: Seed for the choice of the folds.
        fold_group: Regular expression, searched in each file name; images with the same match are in one fold.
        seeds: Seeds of weights, order and mirroring; one run of each row for each seed.
        lines: Lines of the table. The first is the scaling line: one variant at several scales, the first of which is the baseline.
        settings: Settings of the training, as in a settings file: sections ``model``, ``data``, ``train``.
        fit_steps: Steps of the fit in the regimes ``lighten`` and ``finetune``; with 0, light heads are filled in closed form alone.
        draws: How often the images are drawn for an interval.
        pairs: Names of further rows to compare, A and B each: ``[lw-v3@416, both-v1@416]``.
    """

    name: str = "trade-off"
    data: str
    trunk: str | tuple[str, ...] | None = Field(default=None, min_length=1)
    trunk_recipe: dict[str, Any] | None = None
    folds: int | None = Field(default=None, ge=2, le=20)
    fold_seed: NonNegativeInt = 0
    fold_group: str | None = None
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0, 1, 2), min_length=1)
    lines: tuple[Line, ...] = Field(min_length=1)
    settings: dict[str, Any] = {}
    fit_steps: NonNegativeInt = 1500
    draws: int = Field(default=1000, ge=100, le=1_000_000)
    pairs: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)} are not all different")
        names = [cell.name for cell in self.cells()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(f"{twice} is there twice; name it in one line only")
        unknown = next((name for pair in self.pairs for name in pair if name not in names), None)
        if unknown:
            raise ValueError(f"pairs names {unknown}, which is no row{nearest(unknown, names)}")
        if len(self.lines[0].variants) > 1 or list(self.lines[0].scales) != sorted(set(self.lines[0].scales), reverse=True):
            raise ValueError("the first line is the scaling line: one variant, its scales from large to small")
        if not self.has_trunk and any(line.regime != "full" for line in self.lines):
            raise ValueError("all regimes but full start from a trained model; name it as trunk")
        self._check_trunks()
        for cell in self.cells():
            if cell.variant.teacher and (cell.regime not in ("head", "finetune") or cell.variant.anchors == "one"):
                raise ValueError(f"{cell.name}: a teacher teaches in the regimes head and finetune only, and heads with its own anchors")
            if cell.regime == "finetune" and (cell.variant.init or cell.variant.anchors):
                raise ValueError(f"{cell.name}: the regime finetune keeps the trunk's weights and anchors; leave init and anchors out")
        return self

    def _check_trunks(self) -> None:
        if self.trunk is not None and self.trunk_recipe is not None:
            raise ValueError("trunk and trunk_recipe are two ways to get trunks; leave one out")
        count, wanted = len(self.trunks), self.folds or len(self.seeds)
        if self.folds and self.trunk is not None and count != wanted:
            raise ValueError(f"{wanted} folds need as many trunks, each trained without its fold, and trunk names {count}")
        if count > 1 and count != wanted:
            raise ValueError(f"trunk names {count} models for {wanted} seeds; name one, or one for each seed")
        if self.fold_group is not None and self.folds is None:
            raise ValueError("fold_group needs folds")

    @property
    def trunks(self) -> tuple[str, ...]:
        """The given trunks; none if the experiment has none or trains its own."""
        return () if self.trunk is None else (self.trunk,) if isinstance(self.trunk, str) else self.trunk

    @property
    def has_trunk(self) -> bool:
        """Whether there are trunks, given or trained by the experiment."""
        return self.trunk is not None or self.trunk_recipe is not None

    def cells(self) -> list[Cell]:
        """All rows, line by line."""
        return [
            Cell(line=line.name, regime=line.regime, variant=variant, scale=scale)
            for line in self.lines
            for variant in line.variants
            for scale in line.scales
        ]

    @property
    def is_mixed(self) -> bool:
        """Whether rows are of several regimes, so that their labels must say which."""
        return len({line.regime for line in self.lines}) > 1

    @property
    def baseline(self) -> Cell:
        """The row that the others are compared with: the variant of the first line at its largest scale."""
        return self.cells()[0]

    def config(self, cell: Cell, seed: int) -> Config:
        """Resolved settings of one run.

        Raises:
            ConfigError: for a setting or a preset that does not exist.
        """
        values: dict[str, dict[str, Any]] = {section: dict(part) for section, part in self.settings.items()}
        special = {"preset": cell.variant.preset, "init": cell.variant.init, "anchors": cell.variant.anchors}
        values.setdefault("model", {}).update({name: value for name, value in special.items() if value is not None})
        values.setdefault("data", {})["image_size"] = cell.scale
        values.setdefault("train", {})["seed"] = seed
        if cell.regime == "head":
            values["data"].setdefault("augment", "flip")
        where = f"{self.name}, {cell.name}"
        config = parse_config(values, where=where)  # checks the preset, too
        if cell.regime == "finetune":  # the trunk decides the architecture
            values["model"] = {"start": TRUNK}
            values["train"]["teacher"] = TRUNK if cell.is_taught else None
            config = parse_config(values, where=where)
        return config.resolved()

    def trunk_config(self) -> Config:
        """Resolved settings of the training of a trunk.

        Raises:
            ConfigError: for a setting that does not exist.
        """
        values: dict[str, Any] = {section: dict(part) for section, part in (self.trunk_recipe or {}).items()}
        values.setdefault("model", {})["preset"] = "retinanet"
        classes = self.settings.get("data", {}).get("classes")
        if classes:
            values.setdefault("data", {})["classes"] = classes
        return parse_config(values, where=f"{self.name}, trunk_recipe").resolved()

    def chosen(self, only: Sequence[str]) -> list[Cell]:
        """The rows with these names; all rows if no name is given.

        Raises:
            ConfigError: for a name that no row has.
        """
        by_name = {cell.name: cell for cell in self.cells()}
        for name in only:
            if name not in by_name:
                raise ConfigError(f"no row is called {name}{nearest(name, by_name)}; known: {', '.join(by_name)}")
        return [by_name[name] for name in only] if only else list(by_name.values())


_DECIDED = {
    "settings": {"model": ("preset", "init", "anchors", "start"), "data": ("image_size",), "train": ("seed", "teacher")},
    "trunk_recipe": {"model": ("preset", "anchors", "start"), "data": ("classes",), "train": ("teacher",)},
}


def open_experiment(path: Path, *, data: Path | None = None, trunk: Sequence[Path] = (), backbone_weights: str | None = None) -> Experiment:
    """Read an experiment file.

    Args:
        path: YAML file with the fields of :class:`Experiment`.
        data, trunk: Replace the paths in the file, if there are any. Trunks replace the recipe for them, too.
        backbone_weights: Replaces ``model.backbone_weights`` in the settings and in the recipe of the trunks, where these have it.

    Raises:
        ConfigError: one line that names what is wrong: a field, a variant, a scale, a setting.
    """
    values: dict[str, Any] = dict(load_config(path))
    if data is not None:
        values["data"] = str(data)
    if trunk:
        values["trunk"] = [str(one) for one in trunk] if len(trunk) > 1 else str(trunk[0])
        values.pop("trunk_recipe", None)
    experiment = parse_experiment(values, where=str(path))
    if backbone_weights is None:
        return experiment
    for name in ("settings", "trunk_recipe"):
        if "backbone_weights" in (values.get(name) or {}).get("model", {}):
            model = {**values[name]["model"], "backbone_weights": backbone_weights}
            values[name] = {**values[name], "model": model}
    return parse_experiment(values, where=str(path))


def parse_experiment(values: Mapping[str, Any], *, where: str) -> Experiment:
    """Check the content of an experiment file; errors as for :func:`open_experiment`, which begin with ``where``."""
    for field, decided in _DECIDED.items():
        settings = values.get(field) or {}
        if not isinstance(settings, Mapping) or not all(isinstance(part, Mapping) for part in settings.values()):
            raise ConfigError(f"{where}: {field} has sections model, data and train, each with names and values")
        for section, names in decided.items():
            for name in names:
                if name in settings.get(section, {}):
                    by = "the rows of the experiment" if field == "settings" else "the experiment"
                    raise ConfigError(f"{where}: {field}.{section}.{name} is decided by {by}; leave it out")
    try:
        experiment = Experiment.model_validate(dict(values))
    except ValidationError as error:
        known = [*Experiment.model_fields, *Line.model_fields, *Variant.model_fields]
        raise ConfigError(f"{where}: {explain(error, known)}") from None
    for cell in experiment.cells():  # finds unknown presets and settings before the first hour of work
        try:
            experiment.config(cell, experiment.seeds[0])
        except InputError as error:
            raise ConfigError(f"{where}, line {cell.line}: {error}") from None
    if experiment.trunk_recipe is not None:
        experiment.trunk_config()
    return experiment
