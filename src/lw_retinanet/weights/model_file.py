"""Our model file: safetensors with one JSON record that says how to rebuild the model and what its outputs mean."""

import json
from collections.abc import Mapping
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
from lw_retinanet.errors import ConfigError, WeightsError
from lw_retinanet.files import replacing
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

KEY = "lw_retinanet"


class _Class(BaseModel, extra="forbid"):
    id: Id
    name: str
    supercategory: str | None = None


class ModelRecord(BaseModel, frozen=True, extra="forbid"):
    """What a model file says about its tensors.

    Args:
        format: version of this record.
        version: of the package that wrote it.
        preset: name of the head plan, for people.
        backbone: setting that rebuilds it.
        width: channels of pyramid and towers.
        norm: of the backbone.
        plan: of the head.
        classes: names and original ids, in the order of the labels.
        conventions: anchors, input, output.
        switchable: the full head of before lightening is still there, see :meth:`RetinaNet.forward`.
        full_output: it has its own convolution that makes P3.
        notes: how the weights came about: data, settings, metrics.
    """

    format: Literal[1] = 1
    version: str = __version__
    preset: str
    backbone: str
    width: PositiveInt
    norm: Literal["frozen", "batch", "group"]
    plan: HeadPlan
    classes: tuple[_Class, ...] = Field(min_length=1, max_length=100_000)
    conventions: Conventions
    switchable: bool = False
    full_output: bool = False
    notes: dict[str, Any] = {}

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(Category(id=c.id, name=c.name, supercategory=c.supercategory) for c in self.classes)


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
    """The record of a model; class names and ids must be as many as the model's classes."""
    if len(categories) != model.num_classes:
        raise WeightsError(f"the model has {model.num_classes} classes, {len(categories)} names were given; give one name a class")
    classes = [{"id": c.id, "name": c.name, "supercategory": c.supercategory} for c in categories]
    values = {"preset": preset, "backbone": backbone, "width": width, "norm": norm, "plan": plan, "classes": classes}
    return ModelRecord.model_validate({**values, "conventions": model.conventions, "notes": dict(notes)})


def build_network(record: ModelRecord, *, num_classes: int | None = None, conventions: Conventions | None = None) -> RetinaNet:
    """The network that a record describes, on the meta device: ``load_state_dict(..., assign=True)`` brings its weights.

    Args:
        record: of a model file.
        num_classes: instead of the record's.
        conventions: instead of the record's.

    Raises:
        ConfigError: for a backbone that does not exist, or parts that do not fit one another.
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
    except ValueError as error:  # a unit that does not go with these widths
        raise ConfigError(str(error)) from None


def save_model(path: Path, model: RetinaNet, record: ModelRecord) -> None:
    """Write a model file; an earlier one of this name is replaced only when the new one is whole.

    The same model and record give the same bytes.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        # One entry only: safetensors writes several in random order.
        save_file(tensors, temporary, metadata={KEY: record.model_dump_json()})


def find_model_file(path: Path) -> Path:
    """A model file itself, or the one of a run folder.

    Raises:
        WeightsError: if there is none.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise WeightsError(f"{path} holds no model.safetensors; finish its training with --resume, or name another run folder")
        raise WeightsError(f"model file {path} does not exist; give a .safetensors file or a run folder that `train` made")
    return file


def load_model(path: Path) -> LoadedModel:
    """Rebuild the model of a file or run folder.

    Raises:
        WeightsError: if the file is missing, damaged, not one of ours, or its tensors do not fit its own record.
    """
    path = find_model_file(path)
    if path.suffix.lower() in (".onnx", ".xml"):
        raise WeightsError(f"{path} was exported and holds no weights to change or train; give the .safetensors file that it was made from")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"cannot read model file {path}: {reason}; give a whole .safetensors file that `train` made") from None
    if KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file, but not a model of this program (no {KEY} record); backbones go to model.backbone_weights"
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
