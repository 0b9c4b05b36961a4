"""A trained detector in, a cheaper one in the fastest form of this machine out, with a page that says what it cost."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lw_retinanet.benchmarking.report import write_report_files
from lw_retinanet.benchmarking.run import benchmark
from lw_retinanet.benchmarking.settings import BenchmarkSettings
from lw_retinanet.command_line import command_line
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.preview import choose
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import Precision, choose_device, cpu_name
from lw_retinanet.errors import ConfigError, DataError, ExportError, MissingExtraError
from lw_retinanet.evaluation.paired import MIN_IMAGES
from lw_retinanet.exporting.load import model_digest
from lw_retinanet.exporting.targets import target_class
from lw_retinanet.files import existing, sha256, write_text
from lw_retinanet.jobs.compare import run_comparison
from lw_retinanet.jobs.convert import run_conversion
from lw_retinanet.jobs.evaluate import run_evaluation
from lw_retinanet.jobs.export import run_export
from lw_retinanet.jobs.lighten import lighten_file, named_plan
from lw_retinanet.jobs.profile import run_profile
from lw_retinanet.jobs.run_request import checked_request
from lw_retinanet.jobs.ship_folder import Facts, ShipFolder
from lw_retinanet.jobs.ship_page import page
from lw_retinanet.jobs.shipment import Form, Shipment
from lw_retinanet.jobs.train import START_FILE, run_training
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.backbone import RESNETS
from lw_retinanet.progress import Progress
from lw_retinanet.training.run_folder import locked
from lw_retinanet.weights.foreign.torchvision import is_named
from lw_retinanet.weights.model_file import LoadedModel, load_model, save_model

PAGE = "results.md"
RUNTIMES = ("openvino", "onnx")
"""The formats that are tried, the usually faster one first. The next one is tried only where the package of the first is missing."""

EXAMPLES = 8
ROUNDS = 30
# Two epochs at this rate helped after lightening: docs/lightening.md.
_FINE_TUNING = {"train.rate": 5e-5, "train.warmup_steps": 20}
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShipSettings:
    """What is asked for; the fields are the parameters of :func:`lw_retinanet.ship`.

    Raises:
        ConfigError: For a number out of range.
    """

    to: str | None = None
    budget: float | None = None
    max_drop: float = 0.5
    epochs: int = 0
    classes: str | None = None
    fit_steps: int = FitSettings.steps
    rounds: int = ROUNDS
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.max_drop <= 100:
            raise ConfigError(f"max_drop must be 0 to 100 points of AP, got {self.max_drop:g}")
        for name in ("epochs", "fit_steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")


def run_ship(model: str | Path, data: Path, out: Path, settings: ShipSettings, *, progress: Progress | None = None) -> Shipment:
    """Convert, lighten, fine-tune if asked, export, score and time; write files and ``results.md`` into one folder.

    Finished steps of an earlier call are kept if they were made from the same.

    Args:
        model, data, out, progress: As for :func:`lw_retinanet.ship`.
        settings: The other parameters.

    Raises:
        InputError: For a model, data, settings or a folder that cannot be used. Nothing is written then.
    """
    existing(data, "data set")
    dataset = Dataset.open(data)
    if dataset.held_out is None:
        raise DataError(f"{data} has no val split to measure AP on; `lw-retinanet data split` makes one")
    made_from = _made_from(model, dataset, settings)
    ShipFolder.read(out, made_from)
    original = out / "original.safetensors"
    loaded = load_model(original) if original.is_file() else run_conversion(model, classes=settings.classes).loaded
    records = dataset.ready(dataset.held_out, classes=loaded.record.categories)
    if settings.epochs:
        dataset.ready(dataset.or_whole("train"))
    if not original.is_file():
        _require_lightenable(loaded, settings)
    with locked(out):
        return _Shipping(ShipFolder.read(out, made_from), str(model), data, records, settings, progress).run(loaded)


class _Shipping:
    """A shipment while it is made."""

    def __init__(
        self, folder: ShipFolder, model: str, data: Path, records: Records, settings: ShipSettings, progress: Progress | None
    ) -> None:
        self.folder, self.model, self.data, self.records, self.settings = folder, model, data, records, settings
        self.device = choose_device(settings.device)
        self.common: dict[str, Any] = {"progress": progress}
        self.original = folder.path / "original.safetensors"
        self.light = folder.path / "light.safetensors"
        self.lost = 0.0
        self.has_twin = False

    def run(self, loaded: LoadedModel) -> Shipment:
        folder, self.has_twin = self.folder, loaded.record.backbone in RESNETS
        folder.begin()
        command = command_line("convert", self.model, out=self.original, classes=self.settings.classes)
        folder.step("convert", command, {}, lambda: self._save_original(loaded), files=(self.original,))
        before = self._scored("original", self.original, "fp32")
        report = self._lightened()
        after = report["AP"]
        if self.settings.epochs:
            after = self._fine_tuned()
        cost = {name: run_profile(path).cost for name, path in (("original", self.original), ("light", self.light))}
        shipment = Shipment(
            page=folder.path / PAGE,
            title=Path(self.model).name,
            original_ap=before["AP"],
            original_cost=cost["original"],
            light_cost=cost["light"],
            images=self.records.num_images,
            max_drop=self.settings.max_drop,
        )
        self.lost = 100 * (before["AP"] - after)
        if reason := self._too_much(self.lost):
            light = Form(name="PyTorch fp32", file=self.light, ap=after, difference=after - before["AP"])
            shipment = replace(shipment, tried=(light.refused(reason),))
        else:
            shipment = self._chosen(shipment)
        write_text(shipment.page, page(shipment, folder.path, folder.steps, self._notes(shipment.tried)))
        return shipment

    def _save_original(self, loaded: LoadedModel) -> Facts:
        save_model(self.original, loaded.model, loaded.record)
        return {}

    def _too_much(self, lost: float) -> str | None:
        """Why so many points of AP are too many to lose; None if they are inside the limit."""
        most = self.settings.max_drop
        return f"it loses {lost:.2f} points of AP, more than the {most:g} that max_drop allows" if lost > most + 1e-9 else None

    def _scored(self, name: str, file: Path, precision: Precision) -> Facts:
        """AP of a file on ``val``, with detections and figures in the folder ``name``."""
        out, device = self.folder.path / name, self.settings.device
        command = command_line("evaluate", file, self.data, out=out, precision=None if precision == "fp32" else precision)

        def work() -> Facts:
            metrics = run_evaluation(file, self.data, out=out, precision=precision, device=device, **self.common)
            return {"AP": metrics.AP, "AP50": metrics.AP50}

        made_from = {"file": model_digest(file), "precision": precision}
        return self.folder.step(f"evaluate {name}", command, made_from, work, files=(out / "detections.json",))

    def _lightened(self) -> Facts:
        s, out = self.settings, self.light
        command = command_line(
            "lighten", self.original, to=s.to, budget=s.budget, data=self.data, out=out, fit_steps=s.fit_steps, seed=s.seed
        )

        def work() -> Facts:
            options: dict[str, Any] = {"to": s.to, "budget": s.budget, "fit_steps": s.fit_steps, "seed": s.seed, "device": s.device}
            run = lighten_file(self.original, out, data=self.data, latency=False, **options, **self.common)
            last = run.report.rows[-1]
            return {"AP": last.metrics["AP"], "to": run.report.to, "images": run.report.num_images}

        return self.folder.step("lighten", command, {}, work, files=(out,))

    def _fine_tuned(self) -> float:
        """Train the light model on, its old head teaching; it is then the light model. Returns its AP."""
        start, epochs = self.light, self.settings.epochs
        self.light = run = self.folder.path / f"fine-tuned-{epochs}-epochs"
        chosen = {**_FINE_TUNING, "train.epochs": epochs, "train.teacher": start, "train.seed": self.settings.seed}
        texts = [f"{name}={value}" for name, value in chosen.items()]

        def work() -> Facts:
            if run.exists() and not (run / START_FILE).is_file():
                shutil.rmtree(run)  # it was interrupted before its first step
            if run.exists():
                request = checked_request(self.data, resume=run)
            else:
                request = checked_request(self.data, model=str(start), settings=texts, out=run)
            metrics = run_training(**vars(request), device=self.settings.device, **self.common).metrics
            assert metrics is not None  # there is a val split
            return {"AP": metrics.AP}

        command = command_line("train", self.data, model=start, set=texts, out=run)
        made_from = {"start": sha256(start), "settings": texts}
        return float(self.folder.step(run.name, command, made_from, work, files=(run / "model.safetensors",))["AP"])

    def _chosen(self, shipment: Shipment) -> Shipment:
        """Export, time, and ship the fastest form whose AP is inside the limit."""
        files, missing = self._exported()
        report = self._timed(list(files))
        forms = [*missing]
        shipped = None
        for form in _by_speed(report, {self.light: "PyTorch", **files}):
            if shipped is not None:
                forms.append(replace(form, outcome="slower", reason=f"{shipped.name} is faster"))
                continue
            ap = self._scored(form.folder, form.file, form.precision)["AP"]
            scored = replace(form, ap=ap, difference=ap - shipment.original_ap)
            if reason := self._too_much(100 * (shipment.original_ap - ap)):
                forms.append(scored.refused(reason))
                continue
            low, high = self._interval(form)
            shipped = replace(scored, outcome="shipped", low=low, high=high)
            forms.append(shipped)
        return replace(shipment, tried=tuple(forms), benchmark=report)

    def _exported(self) -> tuple[dict[Path, str], list[Form]]:
        """The exported files with the names of their runtimes, and the forms that could not be made or were refused."""
        files: dict[Path, str] = {}
        refused: list[Form] = []
        for runtime in RUNTIMES if self.device.type == "cpu" else ():
            for precision in ("int8", "fp32"):
                file = self.folder.path / f"light-{precision}{target_class(runtime).suffix}"
                form = Form(name=f"{_NAMES[runtime]} {precision}", file=file)
                try:
                    reason = self._export(file, runtime, precision)["refused"]
                except MissingExtraError as error:
                    refused.append(replace(form, outcome="not made", reason=str(error)))
                    continue
                if reason:
                    refused.append(form.refused(reason))
                else:
                    files[file] = _NAMES[runtime]
            if files:
                break
        return files, refused

    def _export(self, file: Path, runtime: str, precision: str) -> Facts:
        options: dict[str, Any] = {}
        if precision == "int8":
            # What the light model has not lost of the limit is left for int8; what it has gained, too.
            options = {"calibrate": self.data, "max_drop": min(100.0, round(self.settings.max_drop - self.lost, 4))}
        command = command_line("export", self.light, format=runtime, precision=precision, out=file, seed=self.settings.seed, **options)

        def work() -> Facts:
            given = {**options, **({"max_drop": options["max_drop"] / 100} if options else {})}
            try:
                run_export(self.light, file, format=runtime, precision=precision, seed=self.settings.seed, **given, **self.common)
            except ExportError as error:
                return {"refused": str(error)}
            return {"refused": None}

        made_from = {"model": model_digest(self.light), **{name: str(value) for name, value in options.items()}}
        name = f"export {file.name}"
        was_refused = bool(self.folder.steps.get(name, {}).get("result", {}).get("refused"))
        return self.folder.step(name, command, made_from, work, files=() if was_refused else (file,))

    def _timed(self, files: Sequence[Path]) -> Mapping[str, Any]:
        images, out = self.folder.path / "images", self.folder.path / "benchmark"
        models = [str(path) for path in (self.original, self.light, *files)]
        pays = choose_precision("auto", self.device, "inference") == "bf16"
        settings = BenchmarkSettings(
            against_torchvision=self.has_twin,
            precision="all" if pays else "fp32",
            images=images,
            rounds=self.settings.rounds,
            device=self.device.type,
        )

        def work() -> Facts:
            self._copy_examples(images)
            report = benchmark(models, settings, **self.common)
            write_report_files(out, report)
            return report

        plain = {"precision": settings.precision, "images": images, "rounds": settings.rounds, "device": settings.device, "out": out}
        command = command_line("benchmark", *models, against="torchvision" if self.has_twin else None, **plain)
        weights = [model_digest(model) for model in models]
        made_from = {
            "files": weights,
            "against_torchvision": self.has_twin,
            "rounds": settings.rounds,
            "precision": settings.precision,
            "processor": cpu_name(),
        }
        return self.folder.step("benchmark", command, made_from, work, files=(out / "benchmark.json",))

    def _copy_examples(self, folder: Path) -> None:
        """Some validation images, which are timed on; the figures show the same ones."""
        folder.mkdir(exist_ok=True)
        for number, row in enumerate(choose(self.records, count=EXAMPLES, seed=0)):
            source = self.records.path(row)
            shutil.copyfile(source, folder / f"{number}{source.suffix}")

    def _interval(self, form: Form) -> tuple[float | None, float | None]:
        if self.records.num_images < MIN_IMAGES:
            return None, None
        before, after = (self.folder.path / name / "detections.json" for name in ("original", form.folder))
        command = command_line("compare", before, after, data=self.data)

        def work() -> Facts:
            return run_comparison(before, after, self.data, **self.common).as_dict()

        result = self.folder.step("compare", command, {"files": [sha256(before), sha256(after)]}, work)
        return result["low"], result["high"]

    def _notes(self, forms: Sequence[Form]) -> list[str]:
        notes = []
        if any(form.outcome == "not made" for form in forms):
            notes.append("A package is missing for what was not made. On a CPU, int8 of the extra openvino is usually the fastest form.")
        if self.device.type != "cpu":
            notes.append("Exported files run on the CPU here, so on this device PyTorch's forms alone were timed.")
        if not self.has_twin:
            notes.append("torchvision has no RetinaNet with this backbone, so there is none to compare with.")
        return notes


_NAMES = {"openvino": "OpenVINO", "onnx": "ONNX Runtime"}


def _by_speed(report: Mapping[str, Any], files: Mapping[Path, str]) -> list[Form]:
    """The timed forms of the light model, the fastest first."""
    by_name = {file.name: (file, runtime) for file, runtime in files.items()}
    forms = []
    for row in report["contenders"]:
        if row["family"] == "ours" and row["model"] in by_name:
            file, runtime = by_name[row["model"]]
            ms = row["latency_ms"]["median"]
            opened: Precision = "bf16" if row["precision"] == "bf16" else "fp32"
            forms.append(Form(name=f"{runtime} {row['precision']}", file=file, precision=opened, ms=ms))
    return sorted(forms, key=lambda form: form.ms or 0.0)


def _require_lightenable(loaded: LoadedModel, settings: ShipSettings) -> None:
    """Raise what lightening would raise later."""
    detector = Detector.of_model(loaded.model, loaded.record.categories, name="the model", record=loaded.record)
    lighten_copy(detector.model, named_plan(detector, settings.to, settings.budget)[1])


def _made_from(model: str | Path, dataset: Dataset, settings: ShipSettings) -> dict[str, Any]:
    """What all steps depend on. What only some depend on (``epochs``, ``max_drop``) may change from call to call."""
    splits = [split for split in ("train", "val") if split in dataset.splits or split == dataset.held_out]
    records = {split: dataset.part(split).read() for split in splits}
    return {
        "model": [Path(model).name, _identity_of(model)],
        "data": ["; ".join(f"{split}: {one.summary()}" for split, one in records.items()), [one.fingerprint() for one in records.values()]],
        **{name: getattr(settings, name) for name in ("to", "budget", "classes", "fit_steps", "seed")},
    }


def _identity_of(model: str | Path) -> str:
    """The checksum of a model's weights; for torchvision's own its name."""
    if is_named(model):
        return str(model)
    path = existing(Path(model), "model")
    if path.is_file():
        return sha256(path)
    if (path / "model.safetensors").is_file():
        return sha256(path / "model.safetensors")
    return " ".join(sha256(file) for file in sorted(path.iterdir()) if file.is_file())
