"""Settings: one schema for ``--set``, YAML files and the ``config.yaml`` that a run writes back."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from lw_retinanet.backbones import BACKBONES, BACKBONES_IN_WORDS, is_backbone
from lw_retinanet.errors import ConfigError, nearest
from lw_retinanet.heads import is_preset, known_presets


def _known_preset(name: str) -> str:
    if not is_preset(name):
        raise ValueError(f"unknown preset{known_presets(name)}")
    return name


Preset = Annotated[str, AfterValidator(_known_preset)]
Resize = Literal["long_side", "short_side"]
IMAGE_SIZE = 640
MAX_SIZE = 1333


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
    """What to build.

    Args:
        preset: the head, by name (:mod:`lw_retinanet.heads`): a row of the paper, or a block and the branches of D3 that own it.
        backbone: A name from :data:`~lw_retinanet.backbones.BACKBONES`, or ``timm:NAME``.
        backbone_weights: ``none``, ``imagenet`` (torchvision's or timm's, downloaded or from its cache) or a file.
        head_width: channels of the pyramid and of the head's towers.
        anchors: of a cell: ``nine`` (RetinaNet's), or ``one`` square of eight strides (ATSS's).
        norm: of the backbone; ``auto`` is ``frozen`` with pretrained weights and ``batch`` without.
        stride_in: convolution of a bottleneck that strides; ``auto`` asks the weights file and is ``3x3`` without one.
        init: of the head; None takes the recipe's.
        start: model file or run folder whose weights to go on from. It says itself what it is, so all the others must be left out; classes
            that the data set shares with it by name are kept. The recipe's ``train.rate`` is made for ImageNet weights; a lower one moves
            the file's weights less.
    """

    preset: Preset = "lw-v3"
    backbone: str = "resnet50"
    backbone_weights: str = "none"
    head_width: PositiveInt = 256
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
            raise ValueError(f"the file of start={self.start!r} says itself what it is; leave out {', '.join(others)}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_the_start_decides(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return values if self.start is None else {"start": self.start}


class DataConfig(_Settings):
    """What to feed.

    Args:
        image_size: the side of every picture that ``resize`` names, pixels; None is 640, and with ``model.start`` the size rule of that
            file.
        resize: ``long_side`` scales the longer side to ``image_size``; ``short_side`` the shorter one, unless the longer one would pass
            ``max_size`` (the paper's rule).
        max_size: pixels, for ``short_side`` only.
        workers: loader processes; results do not depend on it.
        augment: ``none``, ``flip``, ``jitter`` (flip and scale) or ``full`` (and colours); None takes the recipe's.
        jitter: range of the scale factor of ``jitter`` and ``full``.
        group_by_shape: batches of portrait or landscape pictures only, so that little is padded.
    """

    image_size: int | None = Field(default=None, ge=32, le=4096)
    resize: Resize = "long_side"
    max_size: int = Field(default=MAX_SIZE, ge=32, le=8192)
    workers: NonNegativeInt = 2
    augment: Literal["none", "flip", "jitter", "full"] | None = None
    jitter: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.33)
    group_by_shape: bool = True

    @field_validator("jitter")
    @classmethod
    def _ordered(cls, jitter: tuple[float, float]) -> tuple[float, float]:
        if not 0.1 <= jitter[0] <= jitter[1] <= 4:
            raise ValueError("the range goes from small to large, within 0.1 and 4")
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
    """How to train. A field that is None takes the recipe's value; :meth:`Config.resolved` fills it in.

    Args:
        recipe: ``default`` for people's own data (AdamW, cosine, EMA), ``paper`` for the paper's (SGD, steps).
        epochs: passes over the training images.
        steps: optimiser steps, instead of ``epochs``.
        base_steps: with ``schedule: paper``, instead of ``epochs``: the steps of a full model at 16 images a step (the paper: 90000). Fewer
            images a step make more steps in proportion, and so does the MACs reduction.
        batch_size: images of one forward pass of one process.
        accumulate: forward passes of one step; equal to a batch that many times larger.
        optimiser: ``adamw`` or ``sgd`` (momentum 0.9).
        rate: peak learning rate; the paper's recipe computes 0.01 x images of a step / 16.
        backbone_rate: factor on the rate for the backbone.
        weight_decay: on weights, not on biases and norms.
        schedule: ``cosine``; ``steps`` (a tenth at 2/3, a hundredth at 8/9); ``paper`` (``steps``, with epochs times the MACs reduction).
        warmup_steps: linear from a thousandth of the rate.
        clip: largest norm of the gradient of all parameters; 0 turns clipping off.
        ema: decay of the moving average of the weights that is evaluated and saved; 0 turns it off.
        assignment: of objects to anchors: by fixed overlaps (``iou``, 0.5 and 0.4) or by each object's own (``atss``); None is ``atss``
            with one anchor a cell and ``iou`` with more, whether they are the settings' or those of ``model.start``.
        class_loss: ``focal``, whose scores say what is there, or ``quality`` (quality focal loss), whose scores say how well the box fits
            too; that goes with ``box_loss: giou``, and takes it where the recipe has another.
        box_loss: ``smooth_l1`` (beta 0.11), ``l1`` or ``giou``.
        normaliser: losses are divided by the positive anchors of the whole step (``batch``), or image by image and averaged (``image``).
        precision: ``auto`` is bf16 autocast where the device multiplies in bf16.
        seed: of weights, order and augmentation.
        save_every: steps between checkpoints; 0 saves at the end of every epoch.
        evaluate_every: epochs between evaluations; 0 evaluates at the end only.
        freeze: backbone stages that are not trained (1: stem, 2: stem and C2, ...); None: 1 with pretrained weights or
            ``model.start``, else 0.
        teacher: model file whose answers are learned along with the labels (its full head, where it has two); None takes labels alone.
        distill_weight: of the teacher's loss beside that of the labels.
    """

    recipe: Literal["default", "paper"] = "default"
    epochs: PositiveInt = 12
    steps: PositiveInt | None = None
    base_steps: PositiveInt | None = None
    batch_size: PositiveInt = 4
    accumulate: PositiveInt = 1
    optimiser: Literal["adamw", "sgd"] | None = None
    rate: PositiveFloat | None = None
    backbone_rate: PositiveFloat | None = None
    weight_decay: NonNegativeFloat | None = None
    schedule: Literal["paper", "cosine", "steps"] | None = None
    warmup_steps: NonNegativeInt | None = None
    clip: NonNegativeFloat | None = None
    ema: float | None = Field(default=None, ge=0, lt=1)
    assignment: Literal["iou", "atss"] | None = None
    class_loss: Literal["focal", "quality"] = "focal"
    box_loss: Literal["smooth_l1", "l1", "giou"] | None = None
    box_weight: PositiveFloat | None = None
    normaliser: Literal["batch", "image"] = "batch"
    precision: Literal["fp32", "bf16", "auto"] = "auto"
    seed: NonNegativeInt = 0
    save_every: NonNegativeInt = 0
    evaluate_every: NonNegativeInt = 0
    freeze: int | None = Field(default=None, ge=0, le=5)
    teacher: str | None = None
    distill_weight: PositiveFloat = 1.0

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.base_steps is not None and self.steps is not None:
            raise ValueError("steps and base_steps are two ways to say how long; leave one out")
        if self.base_steps is not None and self.schedule != "paper":
            raise ValueError("base_steps is counted by the paper's rule; set train.schedule=paper, or use train.steps")
        return self

    @model_validator(mode="after")
    def _quality_is_what_the_boxes_learn(self) -> Self:
        if self.class_loss == "quality" and self.box_loss not in (None, "giou"):
            raise ValueError(f"class_loss=quality scores the overlap that box_loss=giou trains, not {self.box_loss}; leave box_loss out")
        return self


# Filled in where a setting is None. `rate` of the paper's recipe depends on the batch and is computed.
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
    """Everything that decides a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="after")
    def _size_rule_is_the_files_or_ours(self) -> Self:
        if self.model.start is not None and self.data.image_size is None and self.data.resize != "long_side":
            raise ValueError("data.resize replaces the size rule of model.start only together with data.image_size; set that too")
        return self

    def resolved(self) -> Self:
        """The same settings with the recipe's values in place of every None that it decides."""
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
        if train.assignment is None and not started:  # a file's anchors are not known here
            decided["assignment"] = "atss" if model.anchors == "one" else "iou"
        if train.class_loss == "quality":
            decided["box_loss"] = "giou"
        filled["train"] = train.model_copy(update=decided)
        return self.model_copy(update=filled)

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_config(values: Mapping[str, Any], where: str = "settings") -> Config:
    """Check nested plain values against the schema.

    Args:
        values: sections ``model``, ``data`` and ``train``; ``run``, which a run notes about itself in its ``config.yaml``, is passed over.
        where: what the values come from, for the message.

    Raises:
        ConfigError: one line that names the setting, what is wrong with it and the nearest known name.
    """
    try:
        return Config.model_validate({section: settings for section, settings in values.items() if section != "run"})
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, [*_SECTIONS, *setting_names()], what='setting')}") from None


def load_config(file: Path) -> dict[str, Any]:
    """Read a YAML settings file into nested plain values.

    Raises:
        ConfigError: if the file is missing, is not YAML (with the line) or is not a mapping of sections.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read settings file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"settings file {file} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}, line {mark.line + 1}" if mark else str(file)
        raise ConfigError(f"{where}: not valid YAML ({getattr(error, 'problem', None) or 'unreadable'})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected sections model, data and train, got {type(values).__name__}")
    return values


def override(values: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply ``section.name=value`` texts, the last one winning.

    Raises:
        ConfigError: for a text without ``=`` or a key that does not have the form ``section.name``.
    """
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for setting in settings:
        key, equals, text = setting.partition("=")
        section, dot, name = key.strip().partition(".")
        if not equals or not dot or not name:
            hint = nearest(key, setting_names())
            raise ConfigError(f"--set {setting!r}: expected section.name=value, for example train.epochs=12{hint}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        # YAML reads 1e-4 as text; pydantic turns it into a number where a number is meant.
        target = merged.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {setting!r}: section {section} is not a mapping in the settings file")
        target[name] = value
    return merged


def setting_names() -> list[str]:
    """Every ``section.name``."""
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
    place, value = ".".join(map(str, problem["loc"])), problem["input"]
    if problem["type"] == "extra_forbidden":
        name = place if any("." in each for each in known) else str(problem["loc"][-1])
        return f"unknown {what} {place!r}{nearest(name, known)}"
    choices = re.findall("'([^']*)'", problem["ctx"]["expected"]) if problem["type"] == "literal_error" else []
    if choices:
        return f"{place}={value!r} is not one of {', '.join(choices)}{nearest(str(value), choices)}"
    message = problem["msg"].removeprefix("Value error, ")
    where = place if isinstance(value, Mapping | BaseModel) or not place else f"{place}={_shortened(repr(value))}"
    return f"{where}{': ' if where else ''}{message[0].lower()}{message[1:]}"


def _shortened(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
