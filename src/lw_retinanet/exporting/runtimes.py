"""One detector over every kind of exported file: preparing pictures, decoding and NMS stay this package's own, so all answer alike."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lw_retinanet.detection.detector import Detector, HeadChoice
from lw_retinanet.devices import Precision, known_device, uses_bf16
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.exporting import onnx_file, openvino_file
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.structures import Detections, Predictions

SUFFIXES = (".onnx", ".xml")
TRITON_CONFIG, TRITON_MODEL = "config.pbtxt", Path("1") / "model.onnx"
Runtime = onnx_file.OnnxRuntime | openvino_file.OpenVinoRuntime


class ExportedRuntime:
    """Runs the network of an exported file for a detector.

    Args:
        runtime: Images -> the file's outputs.
        manifest: Of the file.
        precision: That the runtime computes in, where it is not int8.
    """

    def __init__(self, runtime: Runtime, manifest: Manifest, *, precision: Literal["fp32", "bf16"] = "fp32") -> None:
        self.device = torch.device("cpu")  # where images are prepared and boxes decoded
        self.precision: Precision = precision
        self.manifest = manifest
        self.gives_boxes = manifest.outputs == "detections"
        self.run = runtime

    @property
    def chosen_precision(self) -> Literal["fp32", "bf16"]:
        """What is not int8 is computed in this."""
        return "bf16" if self.precision == "bf16" else "fp32"

    def predict(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """Logits and deltas; the file holds one head, whatever is asked for."""
        logits, deltas = (torch.from_numpy(values) for values in self.run(images))
        return Predictions(logits, deltas)

    def detect(self, images: Tensor, sizes_hw: Tensor) -> Detections:
        """Boxes of a file that ends with NMS, in pixels of the padded input."""
        boxes, scores, labels, counts = (torch.from_numpy(values) for values in self.run(images, sizes_hw))
        return Detections(boxes=boxes, scores=scores, labels=labels, counts=counts)


def exported_detector(runtime: Runtime, manifest: Manifest, *, precision: Literal["fp32", "bf16"] = "fp32", name: str = "") -> Detector:
    """A detector over an exported file.

    Args:
        runtime, manifest, precision: As for :class:`ExportedRuntime`.
        name: Shown to people.
    """
    record = manifest.record
    # Where no level has towers of its own, the only head is both the light and the full one.
    of_only: tuple[HeadChoice, ...] = ("light",) if record.plan.cls or record.plan.bbox else ("light", "full")
    return Detector(
        ExportedRuntime(runtime, manifest, precision=precision),
        categories=record.categories,
        conventions=record.conventions,
        heads=of_only if manifest.head == "only" else (manifest.head,),
        name=name,
        record=record,
    )


def manifest_of(detector: Detector) -> Manifest | None:
    """The manifest of the exported file that a detector runs; None for a model that PyTorch runs."""
    return detector.runtime.manifest if isinstance(detector.runtime, ExportedRuntime) else None


def exported_file(path: Path) -> Path | None:
    """The exported file that a path means: itself, or the one of a Triton repository; None for anything else."""
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return path
    return path / TRITON_MODEL if (path / TRITON_CONFIG).is_file() else None


def open_exported(path: Path, *, device: str = "auto", precision: Precision = "fp32", compile: bool = False) -> Detector:  # noqa: A002
    """An exported file as a detector.

    Args:
        path: ``.onnx``, or the ``.xml`` of OpenVINO with its ``.bin`` beside it.
        device: ``cpu``; ``cuda`` for ONNX where ONNX Runtime has it; ``auto`` is the CPU.
        precision: ``bf16`` lets OpenVINO compute so, whatever the file says; ``auto`` where the processor can. A file in int8 has its own.
        compile: not for files that are compiled already.

    Raises:
        WeightsError: if the file is missing or damaged, not of this program, or not as it was written.
        InputError: for an unknown device, or a device, precision or ``compile`` that the runtime does not have.
        MissingExtraError: if the runtime is not installed.
    """
    if not path.is_file():
        raise WeightsError(f"exported file {path} does not exist; check the path")
    if compile:
        raise InputError(f"{path} is compiled by its own runtime; leave compile out, or give the model file")
    name = path.name if path.parent.name != "1" else path.parent.parent.name
    if path.suffix.lower() == ".onnx":
        if precision == "bf16":
            raise InputError(f"{path}: ONNX Runtime has no bf16 convolutions on a CPU; leave --precision out, or export to OpenVINO")
        session = onnx_file.OnnxRuntime(path, device=torch.device("cpu") if device == "auto" else known_device(device))
        return exported_detector(session, onnx_file.read_manifest(path, session), name=name)
    if device not in ("auto", "cpu"):
        raise InputError(f"{path} runs on the CPU only; leave --device out, or export to ONNX for {device}")
    manifest = openvino_file.read_manifest(path)
    if manifest.precision == "int8":
        quantised = openvino_file.OpenVinoRuntime(path, precision="int8")
        return exported_detector(quantised, manifest, precision=quantised.precision, name=name)
    is_bf16 = "bf16" in (precision, manifest.precision) or (precision == "auto" and uses_bf16("auto", torch.device("cpu")))
    chosen: Literal["fp32", "bf16"] = "bf16" if is_bf16 else "fp32"
    return exported_detector(openvino_file.OpenVinoRuntime(path, precision=chosen), manifest, precision=chosen, name=name)
