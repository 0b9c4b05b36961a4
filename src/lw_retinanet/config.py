"""Settings: one schema for Python, the command line, YAML files and the ``config.yaml`` of a run folder."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from lw_retinanet.backbones import BACKBONES, BACKBONES_IN_WORDS, is_backbone
from lw_retinanet.errors import ConfigError, nearest, quoted, shown
from lw_retinanet.heads import is_preset, known_presets
from lw_retinanet.yaml_file import parse_yaml, read_yaml


def _known_preset(name: str) -> str:
    if not is_preset(name):
        raise ValueError(f"unknown preset{known_presets(name)}")
    return name


Preset = Annotated[str, AfterValidator(_known_preset)]
Resize = Literal["long_side", "short_side"]
# Limits that no real run comes near; beyond them a number only costs memory or overflows.
Steps = Annotated[int, Field(ge=0, le=10**9)]
PositiveSteps = Annotated[int, Field(gt=0, le=10**9)]
Images = Annotated[int, Field(gt=0, le=4096)]
IMAGE_SIZE = 640
MAX_SIZE = 1333
NO_INFLUENCE = ("workers", "read_timeout")  # settings of ``data`` that no result depends on
MAX_PIXELS = 64_000_000  # of an image that is decoded, unless a caller raises it


def _takes_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(_takes_number(part) for part in get_args(annotation))


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, and YAML reads yes and on as true.
        if isinstance(value, bool) and info.field_name and _takes_number(cls.model_fields[info.field_name].annotation):
            raise ValueError("expected a number")
        return value


class ModelConfig(_Settings):
    """What to build; docs/settings.md describes every setting."""

    preset: Preset = "lw-v3"
    backbone: str = "resnet50"
    backbone_weights: str = "none"
    head_width: int = Field(default=256, gt=0, le=2048)
    anchors: Literal["nine", "one"] = "nine"
    norm: Literal["auto", "frozen", "batch", "group"] = "auto"
    stride_in: Literal["auto", "3x3", "1x1"] = "auto"
    init: Literal["fan_in", "fan_in_light", "paper"] | None = None
    start: str | None = Field(default=None, min_length=1)

    @field_validator("backbone")
    @classmethod
    def _known_backbone(cls, backbone: str) -> str:
        if not is_backbone(backbone):
            raise ValueError(f"unknown backbone{nearest(backbone, BACKBONES)}; known: {BACKBONES_IN_WORDS}")
        return backbone

    @model_validator(mode="after")
    def _start_stands_alone(self) -> Self:
        others = [name for name in type(self).model_fields if name in self.model_fields_set and name != "start"]
        if self.start is not None and others:
            raise ValueError(f"the file of start={self.start!r} decides the architecture; leave out {', '.join(others)}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_the_start_decides(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.start is None else {"start": self.start}


class DataConfig(_Settings):
    """How images are prepared; docs/settings.md describes every setting."""

    image_size: int | None = Field(default=None, ge=32, le=4096)
    resize: Resize = "long_side"
    max_size: int = Field(default=MAX_SIZE, ge=32, le=8192)
    max_pixels: int = Field(default=MAX_PIXELS, gt=0, le=10**12)
    workers: int = Field(default=2, ge=0, le=256)
    read_timeout: int = Field(default=300, gt=0, le=10**6)
    augment: Literal["none", "flip", "jitter", "full"] | None = None
    jitter: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.33)
    group_by_shape: bool = True
    classes: tuple[Annotated[str, Field(min_length=1)], ...] = ()

    @field_validator("jitter")
    @classmethod
    def _ordered(cls, jitter: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= jitter[0] <= jitter[1] <= 4:
            raise ValueError("expected a range from small to large, within 0.1 and 4")
        return jitter

    @model_validator(mode="after")
    def _room_for_the_longer_side(self) -> Self:
        shorter = self.image_size or IMAGE_SIZE
        if self.resize == "short_side" and shorter > self.max_size:
            raise ValueError(f"the shorter side, image_size={shorter}, is longer than the longer one may be, max_size={self.max_size}")
        if self.resize == "long_side" and self.max_size != MAX_SIZE:
            raise ValueError("max_size limits the longer side under resize=short_side; set that too, or leave max_size out")
        return self


class TrainConfig(_Settings):
    """How to train. :meth:`Config.resolved` replaces None by the recipe's value; docs/settings.md describes every setting."""

    recipe: Literal["default", "paper"] = "default"
    epochs: int = Field(default=12, gt=0, le=10**6)
    steps: PositiveSteps | None = None
    base_steps: PositiveSteps | None = None
    batch_size: Images = 4
    accumulate: Images = 1
    optimiser: Literal["adamw", "sgd"] | None = None
    rate: PositiveFloat | None = None
    backbone_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    schedule: Literal["paper", "cosine", "steps"] | None = None
    schedule_version: Literal[1, 2] = 2
    warmup_steps: Steps | None = None
    clip: NonNegativeFloat | None = None
    ema: float | None = Field(default=None, ge=0, lt=1)
    assignment: Literal["iou", "atss"] | None = None
    class_loss: Literal["focal", "quality"] = "focal"
    box_loss: Literal["smooth_l1", "l1", "giou"] | None = None
    box_weight: PositiveFloat | None = None
    normaliser: Literal["batch", "image"] = "batch"
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    seed: int = Field(default=0, ge=0, lt=2**63)
    save_every: Steps = 0
    evaluate_every: Steps = 0
    keep: Literal["last", "best"] = "last"
    patience: Steps = 0
    freeze: int | None = Field(default=None, ge=0, le=5)
    teacher: str | None = None
    distill_weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.base_steps is not None and self.steps is not None:
            raise ValueError("steps and base_steps are two ways to say how long; leave one out")
        if self.base_steps is not None and self.schedule != "paper":
            raise ValueError("base_steps needs train.schedule=paper; set that, or use train.steps")
        return self

    @model_validator(mode="after")
    def _scores_to_go_by(self) -> Self:
        if not self.evaluate_every and (self.keep == "best" or self.patience):
            raise ValueError("keep=best and patience go by the scores on the way; set train.evaluate_every=1, too")
        return self

    @model_validator(mode="after")
    def _quality_is_what_the_boxes_learn(self) -> Self:
        if self.class_loss == "quality" and self.box_loss not in (None, "giou"):
            raise ValueError(f"class_loss=quality scores the overlap that box_loss=giou trains, not {self.box_loss}; leave box_loss out")
        return self


# The values of settings that are None. The `rate` of the paper's recipe depends on the batch and is computed.
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "model": {"init": "fan_in"},
        "data": {"augment": "jitter"},
        "train": {
            "optimiser": "adamw",
            "rate": 2e-4,
            "backbone_rate": 1.0,
            "weight_decay": 0.05,
            "schedule": "cosine",
            "warmup_steps": 100,
            "clip": 10.0,
            "ema": 0.998,
            "box_loss": "giou",
            "box_weight": 1.0,
        },
    },
    "paper": {
        "model": {"init": "fan_in_light"},
        "data": {"augment": "flip"},
        "train": {
            "optimiser": "sgd",
            "backbone_rate": 1.0,
            "weight_decay": 1e-4,
            "schedule": "steps",
            "warmup_steps": 500,
            "clip": 10.0,
            "ema": 0.0,
            "box_loss": "smooth_l1",
            "box_weight": 1.0,
        },
    },
}


class Config(_Settings):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _require_a_size_to_resize_to(self) -> Self:
        if self.model.start is not None and self.data.image_size is None and self.data.resize != "long_side":
            raise ValueError("data.resize replaces the size rule of model.start only together with data.image_size; set that too")
        return self

    def resolved(self) -> Self:
        """The same settings, with the recipe's value in place of every None for which it has one."""
        recipe = RECIPES[self.train.recipe]
        filled: dict[str, Any] = {}
        for name, defaults in recipe.items():
            section = getattr(self, name)
            filled[name] = section.model_copy(update={k: v for k, v in defaults.items() if getattr(section, k) is None})
        started = self.model.start is not None
        pretrained = started or self.model.backbone_weights != "none"
        model, data, train = filled["model"], filled["data"], filled["train"]
        if started:
            filled["model"] = self.model
        elif model.norm == "auto":
            filled["model"] = model.model_copy(update={"norm": "frozen" if pretrained else "batch"})
        if data.image_size is None and not started:
            filled["data"] = data.model_copy(update={"image_size": IMAGE_SIZE})
        decided: dict[str, Any] = {}
        if train.freeze is None:
            decided["freeze"] = 1 if pretrained else 0
        if train.assignment is None and not started:  # the anchors of a model file are not known here
            decided["assignment"] = "atss" if model.anchors == "one" else "iou"
        if train.class_loss == "quality":
            decided["box_loss"] = "giou"
        filled["train"] = train.model_copy(update=decided)
        return self.model_copy(update=filled)


def parse_config(values: Mapping[str, Any], where: str = "settings") -> Config:
    """Check nested plain values against the schema.

    Args:
        values: Sections ``model``, ``data`` and ``train``. A section ``run``, which the ``config.yaml`` of a run has, is ignored.
        where: Where the values come from, for the message.

    Raises:
        ConfigError: One line that names the setting, what is wrong with it, and the nearest known name.
    """
    try:
        return Config.model_validate({section: settings for section, settings in values.items() if section != "run"})
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, [*_SECTIONS, *setting_names()], what='setting')}") from None


def load_config(file: Path) -> dict[str, Any]:
    """Read a YAML settings file into nested plain values.

    Raises:
        ConfigError: If the file is missing, is not YAML that can be read, or is not a mapping of sections.
    """
    values = read_yaml(file, what="settings file")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected sections model, data and train, got {type(values).__name__}")
    return values


def load_run_config(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the ``config.yaml`` of a run: its settings as they were when it began, and its notes.

    Raises:
        ConfigError: If the file is no YAML mapping.
    """
    values = load_config(file)
    notes = values.pop("run", None)
    section = values.get("train")
    if isinstance(section, dict):
        section.setdefault("schedule_version", 1)  # version 0.1.0 did not write this setting
    return values, notes if isinstance(notes, dict) else {}


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply texts of the form ``section.name=value`` in order.

    Raises:
        ConfigError: For a text of another form.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or not name or not text.strip():
            hint = nearest(key, setting_names())
            raise ConfigError(f"setting {quoted(setting)}: expected section.name=value, for example train.epochs=12{hint}")
        try:
            value = parse_yaml(text, where="setting")
        except ConfigError:
            value = text
        # YAML reads 1e-4 as text; pydantic turns it into a number where a number is meant.
        target = merged.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"setting {quoted(setting)}: section {section} is not a mapping in the settings file")
        target[name] = value
    return merged


def setting_names() -> list[str]:
    """All settings as ``section.name``."""
    return [f"{section}.{name}" for section, schema in _SECTIONS.items() for name in schema.model_fields]


_SECTIONS: dict[str, type[_Settings]] = {"model": ModelConfig, "data": DataConfig, "train": TrainConfig}


def explain(error: ValidationError, known: Sequence[str] = (), *, what: str = "field") -> str:
    """One line about the first problem that pydantic found: the place, the value, what is wrong with it, and the nearest known name.

    Args:
        error: What validation raised.
        known: The names that exist, either all as ``section.name`` or all without their section. Used to correct an unknown name.
        what: What the schema calls a name: a field, a setting.
    """
    problem = error.errors()[0]
    place, value = shown(".".join(map(str, problem["loc"]))), problem["input"]
    if problem["type"] == "extra_forbidden":
        name = place if any("." in each for each in known) else str(problem["loc"][-1])
        return f"unknown {what} {quoted(place)}{nearest(name, known)}"
    choices = re.findall("'([^']*)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []
    if choices:
        return f"{place}={quoted(value)} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
    message = problem["msg"].removeprefix("Value error, ")
    where = place if isinstance(value, Mapping | BaseModel) or not place else f"{place}={quoted(value)}"
    return f"{where}{': ' if where else ''}{message[0].lower()}{message[1:]}"
