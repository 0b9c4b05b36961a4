"""Export a model: model file in, checked and sealed file out."""

import copy
import json
import logging
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import DataError, InputError
from lw_retinanet.exporting.agreement import Agreement, check_agreement, with_low_threshold
from lw_retinanet.exporting.balance import NUM_IMAGES, balance_channels
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.end_to_end import EndToEnd
from lw_retinanet.exporting.extras import need
from lw_retinanet.exporting.file_set import replacing_all
from lw_retinanet.exporting.gate import Gate
from lw_retinanet.exporting.graph import IMAGES, RawGraph
from lw_retinanet.exporting.load import AnyModel, open_loaded
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.exporting.opening import exported_detector
from lw_retinanet.exporting.quantisation import Attempt, quantise_through_gate, worst_names, write_layer_errors
from lw_retinanet.exporting.settings import ExportSettings
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.exporting.targets import format_of
from lw_retinanet.files import existing, output_folder, write_text
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.weights.foreign.convert import require_model
from lw_retinanet.weights.model_file import LoadedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Args:
        file: The file to load; for Triton the folder.
        manifest: What the file says about itself.
        agreement: How it was compared with the model.
        attempts: Attempts at int8, of which the last one is in the file; empty for other precisions.
        report: JSON file with the values of :meth:`as_dict`.
        layers: CSV file of layer errors, for int8 only.
        num_bytes: Size of all files that are needed to run it.
        notes: Warnings for people.
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
        """Plain values for JSON."""
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
        """The same for people."""
        agreement = self.agreement
        same = f"{agreement.compared} detections, {agreement.missing} without a match"
        shown = f", logits and deltas within {agreement.largest:.1e}" if agreement.largest is not None else ""
        if self.manifest.precision != "fp32" or self.manifest.half_weights:
            same, shown = "rounded" if agreement.rms is None else f"relative error of logits and deltas {agreement.rms:.2g}", ""
        empty = "an image without objects" if agreement.empty else "a plain image"
        sizes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in agreement.cases[:-1])
        lines = [f"checked against PyTorch at {sizes} and on {empty}: {same}{shown}"]
        lines += [f"int8, {attempt.what}: {attempt.accuracy.line()}" for attempt in self.attempts]
        if self.attempts and not self.attempts[-1].accuracy.passes:
            lines.append("flagged: it loses more AP than max_drop allows")
        if self.attempts:
            lines.append(f"noisiest layers: {', '.join(worst_names(self.attempts[-1].errors))}; all in {self.layers}")
        lines += list(self.notes)
        lines.append(f"{self.manifest.kind} {self.manifest.precision}, {self.num_bytes / 1e6:.1f} MB: {self.file}; report: {self.report}")
        return lines


def run_export(
    model: AnyModel,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002
    progress: Progress | None = None,
    **settings: Any,
) -> Exported:
    """Export a model.

    Nothing appears at ``out`` before the network has been compared with the model and, for int8, has passed the gate. ``OUT-report.json``
    goes beside it, and for int8 ``OUT-layers.csv``.

    Args:
        model, out, format, progress: As for :func:`lw_retinanet.export`.
        settings: Other fields of :class:`~lw_retinanet.exporting.settings.ExportSettings`.

    Raises:
        WeightsError: If the model cannot be read.
        InputError: For settings that do not go with the model, the data or one another.
        MissingExtraError: If a package is not installed; the message names the extra.
        ExportError: If the file does not answer as the model does, or int8 costs too much; nothing is written then.
        OutputError: If the files cannot be written.
    """
    checked = ExportSettings(format=format or format_of(Path(out)), **settings)
    exported = _export(model, Path(out), checked, progress)
    if exported.layers is not None:
        write_layer_errors(exported.attempts[-1].errors, exported.layers)
    else:
        _beside(exported.file, "layers.csv").unlink(missing_ok=True)  # of an earlier file of this name
    write_text(exported.report, json.dumps(exported.as_dict(), indent=2) + "\n")
    return exported


def _export(model: AnyModel, out: Path, settings: ExportSettings, progress: Progress | None) -> Exported:
    target = settings.target
    for data in (settings.calibrate, settings.validate):
        if data is not None:
            existing(Path(data), "data set")
    if settings.precision == "int8":
        need(target.quantiser, extra=target.extra, why="int8")  # before the gate's first half, which takes minutes
    if isinstance(model, str | PathLike):
        require_model(fspath(model))
    file = target.place(out)
    output_folder(file.absolute().parent)
    loaded = open_loaded(model)
    name = Path(model).name if isinstance(model, str | PathLike) else loaded.record.preset
    detector = Detector.of_model(loaded.model, loaded.record.categories, name=name, record=loaded.record).with_head(settings.head)
    is_full = detector.head == "full" and loaded.record.switchable
    int8 = _Int8(settings, detector, progress) if settings.precision == "int8" else None
    reference = RawGraph(loaded.model, full_head=is_full)
    manifest = _manifest(loaded, settings)
    graph = (EndToEnd if settings.gives_boxes else RawGraph)(loaded.model, full_head=is_full)
    if int8 and not is_full:
        int8.balance(graph.network)
    network = target.make(graph)
    if int8:
        network, manifest = int8.quantise(network, manifest)
    companions = tuple(out / name for name in target.companions)
    with replacing_all(file, weights_suffix=target.weights_suffix, companions=companions) as temporary:
        target.write(network, temporary, half_weights=settings.half_weights)
        agreement = check_agreement(
            reference, target(temporary, manifest, precision=settings.precision), images=int8.some_inputs() if int8 else ()
        )
        if settings.gives_boxes and settings.precision == "fp32" and not agreement.compared:
            low = _agreement_at_low_scores(loaded.model, reference, target, manifest)
            agreement = replace(agreement, compared=low.compared, missing=low.missing)
        manifest = target.seal(temporary, manifest.model_copy(update={"agreement": agreement.as_dict()}))
        written = [temporary, *([temporary.with_suffix(target.weights_suffix)] if target.weights_suffix else [])]
        num_bytes = sum(path.stat().st_size for path in written)
        target.complete(out, network)
    attempts, notes = (tuple(int8.attempts), int8.notes) if int8 else ((), ())
    return Exported(
        file=out,
        manifest=manifest,
        agreement=agreement,
        attempts=attempts,
        report=_beside(out, "report.json"),
        layers=_beside(out, "layers.csv") if attempts else None,
        num_bytes=num_bytes,
        notes=notes,
    )


def _manifest(loaded: LoadedModel, settings: ExportSettings) -> Manifest:
    return Manifest(
        kind=settings.target.kind,
        outputs="detections" if settings.gives_boxes else "raw",
        precision=settings.precision,
        half_weights=settings.half_weights,
        head=settings.head if loaded.record.switchable else "only",
        record=loaded.record.model_copy(update={"switchable": False, "full_output": False}),
    )


class _Int8:
    """The data of an int8 export, which is looked at before the work rather than after it, and the work."""

    def __init__(self, settings: ExportSettings, detector: Detector, progress: Progress | None) -> None:
        assert settings.calibrate is not None
        self.settings, self.progress = settings, progress
        self.records = _gate_records(settings, detector)
        rule = detector.conventions.input
        self.calibration = Calibration(Path(settings.calibrate), rule, count=settings.calibration_images, seed=settings.seed)
        self.attempts: list[Attempt] = []
        self.notes: tuple[str, ...] = ()

    def balance(self, network: RetinaNet) -> None:
        """Prepare the network for int8; see :func:`~lw_retinanet.exporting.balance.balance_channels`."""
        inputs = self.calibration.inputs((IMAGES,), count=NUM_IMAGES)
        balance_channels(network, (torch.from_numpy(feeds[IMAGES]) for feeds in inputs))

    def quantise(self, network: Any, manifest: Manifest) -> tuple[Any, Manifest]:
        """The int8 network that passed the gate, and its manifest."""
        settings, target = self.settings, self.settings.target
        shared = self.calibration.shared_with(self.records)
        if shared:
            note = (
                f"warning: {shared} of the {len(self.calibration)} calibration images are validation images too, so the AP of int8 is "
                "somewhat too good; calibrate on others"
            )
            log.warning("%s", note)
            self.notes = (note,)
        plain = exported_detector(target(network, manifest), name="fp32")
        gate = Gate(plain, self.records, max_drop=settings.max_drop, progress=self.progress)
        self.attempts = quantise_through_gate(
            network, target, self.calibration, gate, manifest, allow_drop=settings.allow_drop, symmetric=settings.symmetric
        )
        chosen = self.attempts[-1]
        accuracy = {**chosen.accuracy.as_dict(), "flagged": not chosen.accuracy.passes}
        return chosen.network, manifest.model_copy(update={"kept_layers": chosen.kept, "accuracy": accuracy})

    def some_inputs(self) -> list[torch.Tensor]:
        """Two calibration images, as the network sees them."""
        return [torch.from_numpy(feeds[IMAGES]) for feeds in self.calibration.inputs((IMAGES,), count=2)]


def _gate_records(settings: ExportSettings, detector: Detector) -> Records:
    """Validation images with boxes."""
    assert settings.calibrate is not None
    source = Path(settings.validate or settings.calibrate)
    try:
        dataset = Dataset.open(source)
        if settings.validate is None and dataset.held_out is None:
            raise DataError(f"{source} has no validation split to measure what int8 costs")
        records = dataset.ready(dataset.or_whole("val"), classes=detector.categories)
    except DataError as error:
        if settings.validate is not None:
            raise
        raise InputError(f"{error}; name a data set with boxes for the gate (validate)") from None
    if settings.gate_images is not None and settings.gate_images < records.num_images:
        drawn = np.random.default_rng(settings.seed).permutation(records.num_images)[: settings.gate_images]
        records = records.subset(np.sort(drawn))
        require_boxes(records, source)
    return records


def _agreement_at_low_scores(model: RetinaNet, reference: RawGraph, target: type[ExportedRuntime], manifest: Manifest) -> Agreement:
    """For a model that finds nothing in noise: compare the same graph with a lower score threshold, in the same runtime."""
    lowered = copy.copy(model)
    lowered.conventions = with_low_threshold(reference, model.conventions)
    record = manifest.record.model_copy(update={"conventions": lowered.conventions})
    network = target.make(EndToEnd(lowered, full_head=reference.full_head))
    runtime = target(network, manifest.model_copy(update={"record": record}), precision=manifest.precision)
    return check_agreement(reference, runtime)


def _beside(out: Path, name: str) -> Path:
    return out.absolute().with_name(f"{out.absolute().name}-{name}")
