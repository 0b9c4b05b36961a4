"""One detector over every kind of exported file: preparing pictures, decoding and NMS stay this package's own, so all answer alike."""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.detection.detector import Detector, HeadChoice, Inputs
from lw_retinanet.devices import Precision, known_device, uses_bf16
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.exporting import onnx_file, openvino_file
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.models.postprocess import factors_to_pictures
from lw_retinanet.structures import Detections, Predictions

SUFFIXES = (".onnx", ".xml")
TRITON_CONFIG, TRITON_MODEL = "config.pbtxt", Path("1") / "model.onnx"
Runtime = onnx_file.OnnxRuntime | openvino_file.OpenVinoRuntime


class ExportedDetector(Detector):
    """A :class:`~lw_retinanet.detection.detector.Detector` whose network is another program's.

    Args:
        runtime: images -> the file's outputs.
        manifest: of the file.
        precision: that the runtime computes in, where it is not int8.
        name: for people.
    """

    def __init__(self, runtime: Runtime, manifest: Manifest, *, precision: Literal["fp32", "bf16"] = "fp32", name: str = "") -> None:
        self.device = torch.device("cpu")  # where pictures are prepared and boxes decoded
        self.categories = manifest.record.categories
        self.precision: Precision = precision
        self.name = name
        self.record = manifest.record
        self.head: HeadChoice = "full" if manifest.head == "full" else "light"
        self.manifest = manifest
        self.runtime = runtime

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise InputError(f"{self.name or 'an exported file'} holds no weights to change or train; give the model file it was made from")
        raise AttributeError(name)

    @property
    def conventions(self) -> Conventions:
        return self.manifest.record.conventions

    @property
    def chosen_precision(self) -> Literal["fp32", "bf16"]:
        """What is not int8 is computed in this."""
        return "bf16" if self.precision == "bf16" else "fp32"

    @property
    def switchable(self) -> bool:
        """An exported file holds one head."""
        return False

    def _checked(self, head: str) -> HeadChoice:
        if head in ("light", "full") and self.manifest.head not in ("only", head):
            raise InputError(f"{self.name} holds the {self.manifest.head} head only; export the model again with --head {head}")
        plan = self.record.plan if self.record else None
        if head == "full" and self.manifest.head == "only" and plan is not None and (plan.cls or plan.bbox):
            raise InputError(f"{self.name} holds one head only, so there is no full head to switch to")
        return self.head if head in ("light", "full") else super()._checked(head)

    def _asked(self, score: float | None, head: HeadChoice | None) -> tuple[Conventions, bool]:
        own = self.conventions.output.score_threshold
        if score is not None and 0 <= score < own and self.manifest.outputs == "detections":
            raise InputError(f"score {score} is below the {own} that is built into {self.name}; export raw outputs to choose it freely")
        return super()._asked(score, head)

    def network(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        if self.manifest.outputs != "raw":
            raise InputError(f"{self.name} gives boxes, not logits and deltas; export it without --end-to-end for these")
        logits, deltas = (torch.from_numpy(values) for values in self.runtime(images))
        return Predictions(logits, deltas)

    def detections(self, inputs: Inputs, conventions: Conventions, *, full_head: bool = False) -> Detections:
        if self.manifest.outputs == "raw":
            return super().detections(inputs, conventions, full_head=full_head)
        boxes, scores, labels, counts = (torch.from_numpy(values) for values in self.runtime(inputs.images, inputs.sizes_hw))
        last_pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]) * float(conventions.boxes.legacy_plus_one)
        boxes = (boxes - last_pixel) * factors_to_pictures(inputs.pictures_hw, inputs.sizes_hw, conventions)[:, None] + last_pixel
        is_there = torch.arange(scores.shape[1]) < counts[:, None]
        if conventions.output != self.conventions.output:  # a caller's own score, not below the one that is built in
            is_there &= scores > conventions.output.score_threshold
        return Detections(
            boxes=boxes.where(is_there[..., None], 0.0),
            scores=scores.where(is_there, 0.0),
            labels=labels.where(is_there, -1),
            counts=is_there.sum(dim=1),
        )


def exported_file(path: Path) -> Path | None:
    """The exported file that a path means: itself, or the one of a Triton repository; None for anything else."""
    if path.suffix.lower() in SUFFIXES and not path.is_dir():
        return path
    return path / TRITON_MODEL if (path / TRITON_CONFIG).is_file() else None


def open_exported(path: Path, *, device: str = "auto", precision: Precision = "fp32", compile: bool = False) -> ExportedDetector:  # noqa: A002
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
        return ExportedDetector(session, onnx_file.read_manifest(path, session), name=name)
    if device not in ("auto", "cpu"):
        raise InputError(f"{path} runs on the CPU only; leave --device out, or export to ONNX for {device}")
    manifest = openvino_file.read_manifest(path)
    if manifest.precision == "int8":
        quantised = openvino_file.OpenVinoRuntime(path, precision="int8")
        return ExportedDetector(quantised, manifest, precision=quantised.precision, name=name)
    is_bf16 = "bf16" in (precision, manifest.precision) or (precision == "auto" and uses_bf16("auto", torch.device("cpu")))
    chosen: Literal["fp32", "bf16"] = "bf16" if is_bf16 else "fp32"
    return ExportedDetector(openvino_file.OpenVinoRuntime(path, precision=chosen), manifest, precision=chosen, name=name)
