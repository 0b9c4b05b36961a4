"""Open whatever holds a trained model as a detector, or tell it from others."""

from pathlib import Path

from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import Precision, choose_device
from lw_retinanet.exporting.opening import exported_file, open_exported
from lw_retinanet.files import sha256
from lw_retinanet.weights.foreign.convert import open_model
from lw_retinanet.weights.foreign.torchvision import is_named
from lw_retinanet.weights.model_file import find_model_file


def open_detector(
    model: str | Path | Detector,
    *,
    head: str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    compile: bool = False,  # noqa: A002
) -> Detector:
    """Open a model file, a run folder, an exported file, or torchvision's own trained weights.

    Args:
        model: The file or folder; ``torchvision:NAME`` for what :func:`lw_retinanet.convert`
            downloads or finds in torch's cache; a detector is returned as it is, with another head if one is named.
        head: ``light`` or ``full`` for a lightened model; None keeps the head that answers by default.
        device, precision, compile: As for :func:`lw_retinanet.load`.

    Raises:
        WeightsError: if the file is missing, damaged or not a model of this program.
        InputError: if the model has no such head.
        MissingExtraError: if the runtime of an exported file is not installed.
    """
    detector = model if isinstance(model, Detector) else _opened(Path(model), device, precision, compile)
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


def _opened(path: Path, device: str, precision: Precision, compiled: bool) -> Detector:
    if exported_file(path) is not None:
        return open_exported(path, device=device, precision=precision, compile=compiled)
    loaded = open_model(path)
    return Detector.of_model(
        loaded.model,
        loaded.record.categories,
        device=choose_device(device),
        precision=precision,
        compile=compiled,
        name=f"{path.name} ({loaded.record.preset})",
        record=loaded.record,
    )
