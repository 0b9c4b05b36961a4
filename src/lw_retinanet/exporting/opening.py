"""Exported files as detectors."""

from pathlib import Path

from lw_retinanet.detection.detector import Detector, HeadChoice
from lw_retinanet.devices import Precision
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.exporting.targets import target_classes


def exported_detector(runtime: ExportedRuntime, *, name: str = "") -> Detector:
    """A detector that answers with an exported network."""
    record, head = runtime.manifest.record, runtime.manifest.head
    # Where no level has towers of its own, the only head is both the light and the full one.
    of_only: tuple[HeadChoice, ...] = ("light",) if record.plan.cls or record.plan.bbox else ("light", "full")
    return Detector(
        runtime,
        categories=record.categories,
        conventions=record.conventions,
        heads=of_only if head == "only" else (head,),
        name=name,
        record=record,
    )


def manifest_of(detector: Detector) -> Manifest | None:
    """The manifest of the exported file that a detector runs; None for a model that PyTorch runs."""
    return detector.runtime.manifest if isinstance(detector.runtime, ExportedRuntime) else None


def exported_file(path: Path) -> Path | None:
    """The exported file that a path means: itself, or the one of a Triton repository; None for anything else."""
    return next((file for target in target_classes().values() if (file := target.find(path))), None)


def open_exported(path: Path, *, device: str = "auto", precision: Precision = "fp32", compile: bool = False) -> Detector:  # noqa: A002
    """Open an exported file as a detector.

    Args:
        path: What :func:`exported_file` finds something for.
        device, precision: As for :func:`lw_retinanet.load`.
        compile: Not for files that are compiled already.

    Raises:
        WeightsError: If the file is missing or damaged, not from this program, or altered.
        InputError: For an unknown device, or a device, a precision or ``compile`` that the runtime does not have.
        MissingExtraError: If the runtime is not installed.
    """
    target = next(target for target in target_classes().values() if target.find(path))
    file = target.find(path)
    assert file is not None
    if not file.is_file():
        raise WeightsError(f"exported file {file} does not exist; check the path")
    if compile:
        raise InputError(f"{path} is compiled by its own runtime; leave compile out, or give the model file")
    return exported_detector(target.open(file, device=device, precision=precision), name=path.name)
