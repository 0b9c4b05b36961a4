"""Open whatever holds a trained model as a detector, or tell it from others."""

from os import PathLike, fspath
from pathlib import Path

from torch import nn
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet

from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import Precision, choose_device
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.opening import exported_file, open_exported
from lw_retinanet.files import sha256
from lw_retinanet.weights.create import CreatedModel
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.foreign.convert import open_model
from lw_retinanet.weights.foreign.torchvision import is_named
from lw_retinanet.weights.foreign.torchvision_model import from_torchvision, place_inside
from lw_retinanet.weights.model_file import LoadedModel, find_model_file

AnyModel = str | PathLike[str] | Detector | LoadedModel | ConvertedModel | nn.Module
"""What stands for a model: its file or run; what ``load``, ``convert``, ``from_torchvision``, ``create`` give; torchvision's RetinaNet."""


def open_loaded(model: AnyModel) -> LoadedModel:
    """The network and the record of whatever holds them.

    Raises:
        WeightsError: if a file cannot be used, or a torchvision model cannot be converted.
        InputError: if the object holds no model, or the detector has no record.
    """
    if isinstance(model, str | PathLike):
        return open_model(fspath(model))
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, ConvertedModel):
        return model.loaded
    if isinstance(model, CreatedModel):
        return LoadedModel(model=model, record=model.record.model_copy(update={"conventions": model.conventions}))
    if isinstance(model, Detector):
        return model.loaded()
    if isinstance(model, nn.Module) and (isinstance(model, TorchvisionRetinaNet) or place_inside(model, TorchvisionRetinaNet)):
        return from_torchvision(model)
    raise InputError(
        f"an object of type {type(model).__name__} is no model that can be opened; give a model file, a run, what lw.load, lw.create, "
        "lw.convert or lw.from_torchvision gives, or torchvision's RetinaNet"
    )


def open_detector(
    model: AnyModel,
    *,
    head: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,  # noqa: A002
) -> Detector:
    """Open a model file, a run folder, an exported file, or torchvision's own trained weights.

    Args:
        model: The file or folder; ``torchvision:NAME`` for what :func:`lw_retinanet.convert`
            downloads or finds in torch's cache; a detector is returned as it is, with another head if one is named. Also the other
            objects of ``AnyModel``.
        head: ``light`` or ``full`` for a lightened model; None keeps the head that answers by default.
        device, precision, compile: As for :func:`lw_retinanet.load`.

    Raises:
        WeightsError: if the file is missing, damaged or not a model of this program.
        InputError: if the model has no such head.
        MissingExtraError: if the runtime of an exported file is not installed.
    """
    detector = model if isinstance(model, Detector) else _opened(model, device, precision, compile)
    return detector if head is None else detector.with_head(head)


def model_digest(model: str | Path) -> str:
    """What tells a model from all others: the SHA-256 of its file, of both files for OpenVINO; for ``torchvision:NAME`` the name.

    Raises:
        WeightsError: if there is no such file.
    """
    if is_named(model):
        return str(model)
    file = exported_file(Path(model)) or find_model_file(Path(model))
    weights = file.with_suffix(".bin")  # of OpenVINO
    digest = sha256(file)
    return f"{digest[:32]}{sha256(weights)[:32]}" if file.suffix == ".xml" and weights.is_file() else digest


def _opened(
    model: str | PathLike[str] | LoadedModel | ConvertedModel | nn.Module, device: str, precision: Precision, compiled: bool
) -> Detector:
    name = ""
    if isinstance(model, str | PathLike):
        path = Path(model)
        if exported_file(path) is not None:
            return open_exported(path, device=device, precision=precision, compile=compiled)
        model, name = path, f"{path.name} "
    loaded = open_loaded(model)
    return Detector.of_model(
        loaded.model,
        loaded.record.categories,
        device=choose_device(device),
        precision=precision,
        compile=compiled,
        name=f"{name}({loaded.record.preset})",
        record=loaded.record,
    )
