"""The model file: safetensors with a JSON record of how to rebuild the network and what its outputs mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lw_retinanet import __version__
from lw_retinanet.config import explain
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category, Id
from lw_retinanet.errors import ConfigError, WeightsError, first_line
from lw_retinanet.files import replacing
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

KEY = "lw_retinanet"


class _ClassRecord(BaseModel, extra="forbid"):
    id: Id
    name: str
    supercategory: str | None = None


class ModelRecord(BaseModel, frozen=True, extra="forbid"):
    """What a model file states about its tensors.

    Args:
        format: Version of this record's format.
        version: Version of the package that wrote the file.
        preset: Name of the head, for people; ``plan`` decides how the head is built.
        backbone: Name of the backbone, as the setting ``model.backbone`` takes it.
        width: Number of channels of pyramid and towers.
        norm: Kind of normalisation in the backbone.
        plan: Plan of the head.
        classes: Names and original ids of the classes, in the order of the labels.
        conventions: Rules for anchors, boxes, input and output.
        switchable: Whether a lightened model still has its full head, see :meth:`RetinaNet.forward`.
        full_output: Whether the full head has a convolution of its own that makes P3.
        notes: Where the weights come from: data, settings, metrics.
    """

    format: Literal[1] = 1
    version: str = __version__
    preset: str
    backbone: str
    width: PositiveInt
    norm: Literal["frozen", "batch", "group"]
    plan: HeadPlan
    classes: tuple[_ClassRecord, ...] = Field(min_length=1, max_length=100_000)
    conventions: Conventions
    switchable: bool = False
    full_output: bool = False
    notes: dict[str, Any] = {}

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes as categories, in the order of the labels."""
        return tuple(Category(id=c.id, name=c.name, supercategory=c.supercategory) for c in self.classes)

    def changed(self, *, categories: Sequence[Category], conventions: Conventions, notes: Mapping[str, Any]) -> "ModelRecord":
        """Return the record, as this version of the package writes it, with other classes, conventions and notes."""
        values = {"version": __version__, "classes": _class_values(categories), "conventions": conventions, "notes": dict(notes)}
        return ModelRecord.model_validate({**dict(self), **values})


def _class_values(categories: Sequence[Category]) -> list[dict[str, Any]]:
    return [{"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in categories]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network in evaluation mode and its record."""

    model: RetinaNet
    record: ModelRecord


def make_record(
    model: RetinaNet,
    *,
    preset: str,
    backbone: str,
    width: int,
    norm: str,
    plan: HeadPlan,
    categories: tuple[Category, ...],
    notes: Mapping[str, Any],
) -> ModelRecord:
    """Make the record of a model; there must be as many categories as the model has classes."""
    if len(categories) != model.num_classes:
        raise WeightsError(f"the model has {model.num_classes} classes, {len(categories)} names were given; give one name for each class")
    values = {"preset": preset, "backbone": backbone, "width": width, "norm": norm, "plan": plan, "classes": _class_values(categories)}
    return ModelRecord.model_validate({**values, "conventions": model.conventions, "notes": dict(notes)})


def build_network(record: ModelRecord, *, num_classes: int | None = None, conventions: Conventions | None = None) -> RetinaNet:
    """Build the network that a record describes, on the meta device; ``load_state_dict(..., assign=True)`` gives it weights.

    Args:
        record: Record of a model file.
        num_classes: Replaces the record's number of classes.
        conventions: Replaces the record's conventions.

    Raises:
        ConfigError: For a backbone that does not exist, or for parts that do not fit together.
    """
    try:
        with torch.device("meta"):
            return build(
                record.plan,
                num_classes=num_classes or len(record.classes),
                backbone=record.backbone,
                width=record.width,
                norm=record.norm,
                conventions=conventions or record.conventions,
                full_output=record.full_output,
            )
    except ValueError as error:  # a unit that does not fit these widths
        raise ConfigError(str(error)) from None


def save_model(path: Path, model: RetinaNet, record: ModelRecord) -> None:
    """Write a model file; an earlier file of this name is replaced only once the new one is complete.

    The same model and record give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        # One entry only, since safetensors writes several in random order.
        save_file(tensors, temporary, metadata={KEY: record.model_dump_json()})


def find_model_file(path: Path) -> Path:
    """Return the model file itself, or the model file in a run folder.

    Raises:
        WeightsError: If there is none.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise WeightsError(f"{path} holds no model.safetensors; resume its training until the end, or name another run folder")
        raise WeightsError(f"model file {path} does not exist; give a .safetensors file or a run folder that `train` made")
    return file


def load_model(path: Path) -> LoadedModel:
    """Rebuild the model of a model file or run folder.

    Raises:
        WeightsError: If the file is missing, damaged or not one of ours, or if its tensors do not fit its record.
    """
    path = find_model_file(path)
    if path.suffix.lower() in (".onnx", ".xml"):
        raise WeightsError(f"{path} was exported and holds no weights to change or train; give the .safetensors file that it was made from")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"cannot read model file {path}: {first_line(error)}; give a whole .safetensors file that `train` made"
        ) from None
    if KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file, but not a model of this program (no {KEY} record); "
            "a file with weights of a backbone belongs in the setting model.backbone_weights"
        )
    try:
        record = ModelRecord.model_validate(json.loads(metadata[KEY]))
    except (ValidationError, json.JSONDecodeError, RecursionError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else "it is not JSON"
        raise WeightsError(f"the record of model file {path} cannot be used: {reason}; a newer version may have written it") from None
    try:
        model = build_network(record)
    except ConfigError as error:
        raise WeightsError(f"the record of model file {path} cannot be used: {error}") from None
    problems = _misfits(model, tensors)
    if problems:
        raise WeightsError(f"the tensors of {path} do not fit its record: {problems}; the file was changed after it was written")
    wanted = model.state_dict()
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}, assign=True)
    return LoadedModel(model=model.eval(), record=record)


def _misfits(model: RetinaNet, tensors: Mapping[str, torch.Tensor]) -> str:
    wanted = model.state_dict()
    missing, left_over = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    shapes = [name for name in wanted.keys() & tensors.keys() if wanted[name].shape != tensors[name].shape]
    broken = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())]
    found = (("missing", missing), ("not known", left_over), ("of another shape", sorted(shapes)), ("not finite", broken))
    return "; ".join(f"{len(names)} {what}, first {names[0]}" for what, names in found if names)
