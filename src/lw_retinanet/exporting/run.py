"""``export`` as one call: model file in, checked and sealed file out."""

import copy
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import DataError, InputError, OutputError
from lw_retinanet.exporting.agreement import Agreement, check_agreement, talkative
from lw_retinanet.exporting.backend import BACKENDS, Backend, backend_of
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.end_to_end import EndToEnd
from lw_retinanet.exporting.extras import need
from lw_retinanet.exporting.file_set import files_of, written
from lw_retinanet.exporting.gate import MAX_DROP, Gate
from lw_retinanet.exporting.layer_errors import write_table
from lw_retinanet.exporting.manifest import ExportedHead, ExportPrecision, Kind, Manifest
from lw_retinanet.exporting.quantisation import Attempt, quantise, worst_names
from lw_retinanet.exporting.raw_graph import RawGraph
from lw_retinanet.exporting.runtimes import TRITON_CONFIG, TRITON_MODEL, exported_detector
from lw_retinanet.exporting.triton import model_name, write_config
from lw_retinanet.files import output_folder, write_text
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.weights.model_file import find_model_file, load_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """What is asked for.

    Args:
        format: ``triton`` is a folder around an ONNX file that gives boxes.
        precision: of the network; ``bf16`` and ``half_weights`` are OpenVINO's.
        end_to_end: boxes after NMS instead of logits and deltas; ONNX only.
        half_weights: store weights in fp16.
        head: of a lightened model.
        calibrate: data set or pictures for int8.
        calibration_images: at most.
        validate: data set for the gate; None takes ``calibrate``.
        gate_images: of its validation split, drawn at random; None takes all.
        max_drop: AP that int8 may cost, in 0..1.
        allow_drop: only say that it costs more.
        symmetric: int8 around zero, as TensorRT takes it; ONNX only.
        seed: of what is drawn.
    """

    format: Literal["onnx", "openvino", "triton"]
    precision: ExportPrecision = "fp32"
    end_to_end: bool = False
    half_weights: bool = False
    head: Literal["light", "full"] = "light"
    calibrate: Path | None = None
    calibration_images: int = 300
    validate: Path | None = None
    gate_images: int | None = None
    max_drop: float = MAX_DROP
    allow_drop: bool = False
    symmetric: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision == "int8" and self.calibrate is None:
            raise InputError("--precision int8 measures ranges on pictures like those to come; name some with --calibrate DATA")
        given = {
            "--calibrate": self.calibrate is not None,
            "--validate": self.validate is not None,
            "--gate-images": self.gate_images is not None,
            "--allow-drop": self.allow_drop,
        }
        if self.precision != "int8" and any(given.values()):
            named = ", ".join(option for option, is_given in given.items() if is_given)
            raise InputError(f"{named}: for --precision int8 only, and this is {self.precision}; add --precision int8 or leave it out")
        if self.precision == "int8" and self.half_weights:
            raise InputError("--half-weights rounds what --precision int8 and its gate leave alone, unmeasured; leave it out")
        if self.precision == "bf16" and self.kind == "onnx":
            raise InputError("--precision bf16: ONNX Runtime has no bf16 convolutions on a CPU; take --format openvino")
        if self.symmetric and (self.precision != "int8" or self.kind != "onnx"):
            raise InputError("--symmetric is about int8 in ONNX; add --format onnx --precision int8, or leave it out")
        if self.half_weights and self.kind == "onnx":
            raise InputError("--half-weights is for --format openvino, which converts them back when it loads; leave it out")
        if self.end_to_end and self.kind == "openvino":
            raise InputError("--end-to-end is for --format onnx; OpenVINO files give raw outputs, and lw_retinanet.load decodes them")

    @property
    def kind(self) -> Kind:
        return "openvino" if self.format == "openvino" else "onnx"

    @property
    def gives_boxes(self) -> bool:
        return self.end_to_end or self.format == "triton"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        file: to load; of a Triton repository the folder.
        manifest: inside the file.
        agreement: with the model.
        attempts: at int8; empty for other precisions. The last one is in the file.
        report: JSON, for int8 only.
        layers: CSV of layer errors, for int8 only.
        num_bytes: of all files that are needed to run it.
        notes: warnings for people.
    """

    file: Path
    manifest: Manifest
    agreement: Agreement
    attempts: tuple[Attempt, ...]
    report: Path
    layers: Path | None
    num_bytes: int
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        manifest, last = self.manifest, self.attempts[-1] if self.attempts else None
        return {
            "file": str(self.file),
            **{name: getattr(manifest, name) for name in ("kind", "outputs", "precision", "half_weights", "head")},
            "bytes": self.num_bytes,
            "agreement": self.agreement.as_dict(),
            "accuracy": last.accuracy.as_dict() if last else None,
            "flagged": bool(last and not last.accuracy.passes),
            "attempts": [attempt.as_dict() for attempt in self.attempts],
            "kept_layers": list(manifest.kept_layers),
            "layers": [row.as_dict() for row in last.errors] if last else [],
            "layers_file": str(self.layers) if self.layers else None,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people."""
        agreement = self.agreement
        same = f"{agreement.compared} detections, {agreement.missing} without partner"
        shown = f", logits and deltas within {agreement.largest:.1e}" if agreement.largest is not None else ""
        if self.manifest.precision != "fp32" or self.manifest.half_weights:
            same, shown = "rounded" if agreement.rms is None else f"relative error of logits and deltas {agreement.rms:.2g}", ""
        empty = "a picture without objects" if agreement.empty else "a plain picture"
        sizes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in agreement.cases[:-1])
        lines = [f"checked against PyTorch at {sizes} and on {empty}: {same}{shown}"]
        lines += [f"int8, {attempt.what}: {attempt.accuracy.line()}" for attempt in self.attempts]
        if self.attempts and not self.attempts[-1].accuracy.passes:
            lines.append("flagged: it loses more AP than allowed (--allow-drop)")
        if self.attempts:
            lines.append(f"noisiest layers: {', '.join(worst_names(self.attempts[-1].errors))}; all in {self.layers}")
        lines += list(self.notes)
        lines.append(f"{self.manifest.kind} {self.manifest.precision}, {self.num_bytes / 1e6:.1f} MB: {self.file}; report: {self.report}")
        return lines


def export_model(model: Path, out: Path, settings: ExportSettings, *, progress: Progress | None = None) -> Exported:
    """Export a model file or run folder.

    Nothing appears at ``out`` before the file has been compared with the model and, for int8, has passed the gate.

    Args:
        model: ``.safetensors`` or a run folder.
        out: ``.onnx``, ``.xml`` (its weights go beside it as ``.bin``), or a folder for Triton. ``FILE-report.json`` goes beside it, for
            int8 ``FILE-layers.csv`` too.
        settings: what is asked for.
        progress: wraps the pictures of the gate; gets their number.

    Raises:
        WeightsError: if the model cannot be read.
        InputError: for settings that do not go with the model, the data or one another.
        MissingExtraError: if a package is not installed; the message names the extra.
        ExportError: if the file does not answer as the model does, or int8 costs too much; nothing is written then.
        OutputError: if the files cannot be written.
    """
    backend = backend_of(settings.kind, symmetric=settings.symmetric)
    if settings.precision == "int8":
        need(backend.quantiser, extra=settings.kind, why="--precision int8")  # known now rather than after the gate's first half
    target = _target(model, out, settings)
    loaded = load_model(model)
    detector = Detector.of_model(loaded.model, loaded.record.categories, name=model.name, record=loaded.record)
    is_full = detector.with_head(settings.head).head == "full" and loaded.record.switchable
    head: ExportedHead = "only" if not loaded.record.switchable else settings.head
    gate_data = _gate_data(settings, detector)
    calibration = None
    if settings.precision == "int8":
        assert settings.calibrate is not None
        rule = loaded.record.conventions.input
        calibration = Calibration(settings.calibrate, rule, count=settings.calibration_images, seed=settings.seed)
    reference = RawGraph(loaded.model, full_head=is_full)
    graph = EndToEnd(loaded.model, full_head=is_full) if settings.gives_boxes else reference
    manifest = Manifest(
        kind=settings.kind,
        outputs="detections" if settings.gives_boxes else "raw",
        precision=settings.precision,
        half_weights=settings.half_weights,
        head=head,
        record=loaded.record.model_copy(update={"switchable": False, "full_output": False}),
    )
    network = backend.make(graph)
    attempts: list[Attempt] = []
    notes: list[str] = []
    pictures: list[torch.Tensor] = []
    if calibration is not None and gate_data is not None:
        notes = _shared_pictures(calibration, gate_data)
        plain = exported_detector(backend.run(network, "fp32"), manifest, name="fp32")
        gate = Gate(plain, gate_data, max_drop=settings.max_drop, progress=progress)
        chosen, attempts = quantise(network, backend, calibration, gate, manifest, allow_drop=settings.allow_drop)
        network = chosen.network
        accuracy = {**chosen.accuracy.as_dict(), "flagged": not chosen.accuracy.passes}
        manifest = manifest.model_copy(update={"kept_layers": chosen.kept, "accuracy": accuracy})
        pictures = [torch.from_numpy(feeds["images"]) for feeds in calibration.inputs(("images",), count=2)]
    config = [out / TRITON_CONFIG] if settings.format == "triton" else []
    with written(target, *config) as temporary:
        backend.write(network, temporary, settings.half_weights)
        opened = exported_detector(backend.open(temporary, settings.precision), manifest, name=str(out))
        agreement = check_agreement(reference, opened, half_weights=settings.half_weights, pictures=pictures)
        if settings.gives_boxes and settings.precision == "fp32" and not agreement.compared:
            low = _compared_at_low_scores(loaded.model, reference, backend, manifest)
            agreement = replace(agreement, compared=low.compared, missing=low.missing)
        manifest = backend.seal(temporary, manifest.model_copy(update={"agreement": agreement.as_dict()}))
        num_bytes = sum(path.stat().st_size for path in files_of(temporary))
        del opened
        if settings.format == "triton":
            write_config(out, network)
    return _with_report(
        Exported(
            file=out,
            manifest=manifest,
            agreement=agreement,
            attempts=tuple(attempts),
            report=_beside(out, "report.json"),
            layers=_beside(out, "layers.csv") if attempts else None,
            num_bytes=num_bytes,
            notes=tuple(notes),
        )
    )


def _compared_at_low_scores(model: RetinaNet, reference: RawGraph, backend: Backend, manifest: Manifest) -> Agreement:
    """Of a model that finds nothing in noise: the same graph, but for its score threshold, in the same runtime."""
    lowered = copy.copy(model)
    lowered.conventions = talkative(reference, model.conventions)
    record = manifest.record.model_copy(update={"conventions": lowered.conventions})
    network = backend.make(EndToEnd(lowered, full_head=reference.full_head))
    runtime = backend.run(network, manifest.precision)
    return check_agreement(reference, exported_detector(runtime, manifest.model_copy(update={"record": record})))


def _target(model: Path, out: Path, settings: ExportSettings) -> Path:
    """The file to write, after a look at whether the place will do."""
    find_model_file(model)
    if settings.format == "triton":
        model_name(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"--out {out} is {'not empty' if out.is_dir() else 'a file'}; name a new folder for the Triton model")
        output_folder(out)
        return out / TRITON_MODEL
    suffix = BACKENDS[settings.kind].suffix
    if out.suffix != suffix:
        raise OutputError(f"--out {out}: a file of --format {settings.format} ends in {suffix}")
    if out.is_dir():
        raise OutputError(f"--out {out} is a folder; name a file in it")
    output_folder(out.absolute().parent)
    return out


def _beside(out: Path, name: str) -> Path:
    return out.absolute().with_name(f"{out.absolute().name}-{name}")


def _with_report(exported: Exported) -> Exported:
    if exported.layers is not None:
        write_table(exported.attempts[-1].errors, exported.layers)
    else:
        _beside(exported.file, "layers.csv").unlink(missing_ok=True)  # of an earlier file of this name
    write_text(exported.report, json.dumps(exported.as_dict(), indent=2) + "\n")
    return exported


def _gate_data(settings: ExportSettings, detector: Detector) -> Records | None:
    """Validation pictures with boxes; looked at before the work rather than after it."""
    if settings.precision != "int8":
        return None
    source = settings.validate or settings.calibrate
    assert source is not None
    try:
        dataset = Dataset.open(source)
        if settings.validate is None and dataset.held_out is None:
            raise DataError(f"{source} has no validation split to measure what int8 costs")
        records = dataset.ready(dataset.or_whole("val"), classes=detector.categories)
    except DataError as error:
        if settings.validate is not None:
            raise
        raise InputError(f"{error}; name a data set with boxes by --validate DATA") from None
    if settings.gate_images is not None and settings.gate_images < records.num_images:
        drawn = np.random.default_rng(settings.seed).permutation(records.num_images)[: settings.gate_images]
        records = records.subset(np.sort(drawn))
        require_boxes(records, source)
    return records


def _shared_pictures(calibration: Calibration, records: Records) -> list[str]:
    number = calibration.shared_with(records)
    if not number:
        return []
    note = (
        f"warning: {number} of the {len(calibration)} calibration pictures are validation pictures too, so the AP of int8 is somewhat "
        "too good; calibrate on others"
    )
    log.warning("%s", note)
    return [note]
