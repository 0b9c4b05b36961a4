"""The model file: safetensors with a JSON record of how to rebuild the network and what its outputs mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError, safe_open

from lw_retinanet import __version__
from lw_retinanet.config import explain
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category, Id
from lw_retinanet.errors import ConfigError, WeightsError, first_line, shown
from lw_retinanet.files import no_file, replacing
from lw_retinanet.heads import MAX_WIDTH, HeadPlan
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.tensor_file import FLOATS, TensorHeader, fault, read_header, save_tensors

KEY = "lw_retinanet"
SCORED = ("step", "AP", "best_score")
"""Notes on how exactly these weights score; a changed model does not keep them."""


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
        full_output: Whether the full head has a convolution of its own that makes P3; or, if other levels have one, too, all their names.
        notes: Where the weights come from: data, settings, metrics.
    """

    format: Literal[1] = 1
    version: str = __version__
    preset: str
    backbone: str
    width: int = Field(ge=1, le=MAX_WIDTH)
    norm: Literal["frozen", "batch", "group"]
    plan: HeadPlan
    classes: tuple[_ClassRecord, ...] = Field(min_length=1, max_length=100_000)
    conventions: Conventions
    switchable: bool = False
    full_output: bool | tuple[Literal["P3", "P4"], ...] = False
    notes: dict[str, Any] = {}

    @property
    def full_outputs(self) -> tuple[str, ...]:
        """The levels whose map the full head has a convolution of its own for."""
        return self.full_output if isinstance(self.full_output, tuple) else ("P3",) * self.full_output

    @property
    def categories(self) -> tuple[Category, ...]:
        """The classes as categories, in the order of the labels."""
        return tuple(Category(id=c.id, name=c.name, supercategory=c.supercategory) for c in self.classes)

    @property
    def best_score(self) -> float | None:
        """The score threshold that training recommends; None if there is none."""
        noted = self.notes.get("best_score")
        score = noted.get("score") if isinstance(noted, dict) else None
        return float(score) if isinstance(score, int | float) and 0 <= score < 1 else None

    @property
    def lasting_notes(self) -> dict[str, Any]:
        """The notes that still hold when the model is changed."""
        return {name: value for name, value in self.notes.items() if name not in SCORED}

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

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the model file and return its path; ``half`` as for :func:`save_model`."""
        save_model(Path(path), self.model, self.record, half=half)
        return Path(path)


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
                full_output=record.full_outputs,
            )
    except ValueError as error:  # a unit that does not fit these widths
        raise ConfigError(str(error)) from None


def save_model(path: Path, model: RetinaNet, record: ModelRecord, *, half: bool = False) -> None:
    """Write a model file; an earlier file of this name is replaced only once the new one is complete.

    The same model and record give the same bytes.

    Args:
        path: The file.
        model: The network.
        record: Its record.
        half: Store the kernels of convolutions in fp16, which halves the file. Norms and biases stay in fp32: the variances of real models
            exceed the range of fp16.

    Raises:
        DiskFullError: If there is no room for it.
        OutputError: If it cannot be written.
    """
    save_weights(path, model.state_dict(), record, half=half)


def save_weights(path: Path, weights: Mapping[str, torch.Tensor], record: ModelRecord, *, half: bool = False) -> None:
    """:func:`save_model`, for the ``state_dict`` of a network."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    if half:
        tensors = {name: _halved(tensor) for name, tensor in tensors.items()}
    with replacing(path, size=sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        # One entry only, since safetensors writes several in random order.
        save_tensors(tensors, temporary, metadata={KEY: record.model_dump_json()})


def _halved(tensor: torch.Tensor) -> torch.Tensor:
    is_kernel = tensor.dim() > 1 and tensor.dtype == torch.float32 and float(tensor.abs().max()) <= torch.finfo(torch.float16).max
    return tensor.half() if is_kernel else tensor


def find_model_file(path: Path) -> Path:
    """Return the model file itself, or the model file in a run folder.

    Raises:
        WeightsError: If there is none.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        if path.is_dir():
            raise WeightsError(f"{path} holds no model.safetensors; resume its training until the end, or name another run folder")
        raise WeightsError(f"model file {path} {no_file(path)}; give a .safetensors file or a run folder that `train` made")
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
        header = read_header(path)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    record = _record_of(path, header.metadata)
    try:
        model = build_network(record).eval()
    except ConfigError as error:
        raise WeightsError(f"the record of model file {path} cannot be used: {error}") from None
    _require_fit(path, _misfits(model, header))
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None
    _require_fit(path, _faults(tensors, record.conventions.norm_eps))
    wanted = model.state_dict()
    model.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}, assign=True)
    return LoadedModel(model=model, record=record)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    if _is_of_torch(path):
        return WeightsError(
            f"{path} is a weights file of another program; `lw-retinanet convert` makes a model file of it: name its result instead"
        )
    return WeightsError(f"cannot read model file {path}: {first_line(error)}; give a whole .safetensors file that `train` made")


def _is_of_torch(path: Path) -> bool:
    """Whether a file begins as those of ``torch.save`` and pickles do."""
    try:
        with path.open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x80"))
    except OSError:
        return False


def _record_of(path: Path, metadata: Mapping[str, str]) -> ModelRecord:
    if KEY not in metadata:
        raise WeightsError(
            f"{path} is a safetensors file, but not a model of this program (no {KEY} record); "
            "a file with weights of a backbone belongs in the setting model.backbone_weights, one with weights of a detector in "
            "`lw-retinanet convert`"
        )
    try:
        record = ModelRecord.model_validate(json.loads(metadata[KEY]))
        record.model_dump_json()  # what could not be written again, such as notes of a thousand levels, is not taken
        return record
    except (ValidationError, ValueError, RecursionError) as error:  # ValueError: no JSON, or a number of thousands of digits
        reason = explain(error) if isinstance(error, ValidationError) else "it is not JSON that can be read and written"
        raise WeightsError(
            f"the record of model file {path} cannot be used: {reason}; get the file anew, or update this program if a newer one wrote it"
        ) from None


def _require_fit(path: Path, found: Mapping[str, Sequence[str]]) -> None:
    problems = "; ".join(f"{len(names)} {what}, first {shown(min(names))}" for what, names in found.items() if names)
    if problems:
        raise WeightsError(
            f"the tensors of {path} do not fit its record: {problems}; the file was changed after it was written: get it anew"
        )


def _misfits(model: RetinaNet, header: TensorHeader) -> dict[str, list[str]]:
    wanted, kinds = model.state_dict(), header.kinds
    both = wanted.keys() & kinds.keys()
    return {
        "missing": list(wanted.keys() - kinds.keys()),
        "not known": list(kinds.keys() - wanted.keys()),
        "of another shape": [name for name in both if tuple(wanted[name].shape) != kinds[name][1]],
        "of another type": [name for name in both if kinds[name][0] not in (FLOATS if wanted[name].is_floating_point() else ("I64",))],
    }


def _faults(tensors: Mapping[str, torch.Tensor], eps: float) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and (what := fault(name, tensor, eps)):
            found.setdefault(what, []).append(name)
    return found
