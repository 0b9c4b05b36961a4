"""All that a run folder and its data set say about a training run. What cannot be read is named, and the rest is used."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lw_retinanet.command_line import command_line
from lw_retinanet.config import load_run_config
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.errors import InputError, InUseError, LwRetinaNetError, RunFolderError, shown
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable, read_results
from lw_retinanet.evaluation.diagnosis import Diagnosis, diagnose
from lw_retinanet.evaluation.paired import MIN_IMAGES, Estimate, class_estimates, drawn_scores
from lw_retinanet.files import existing
from lw_retinanet.locks import lock_file
from lw_retinanet.training.run_folder import LOCK, RunFolder, read_log
from lw_retinanet.weights.model_file import LoadedModel, load_model

Part = TypeVar("Part")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The run's detections on the images that measure it, and what follows from them.

    Args:
        records: These images and their boxes.
        detections: What the run found in them.
        metrics: COCO's numbers.
        diagnosis: Kinds of errors.
        estimates: AP and its relatives with 95 % intervals, by name; empty with fewer than 20 images.
        classes: AP of each class with its interval; empty with fewer than 20 images.
    """

    records: Records
    detections: DetectionTable
    metrics: Metrics
    diagnosis: Diagnosis
    estimates: Mapping[str, Estimate]
    classes: Sequence[Estimate | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """What is known of a run.

    Args:
        folder: The run folder.
        settings: Content of ``config.yaml`` without the notes, as the version that wrote it knew it.
        notes: Data set, versions and number of processes.
        log: Entries of ``log.jsonl``.
        is_written: Whether a process works in the folder now.
        source: The data set.
        train: The images that were trained on; None if they cannot be read.
        held_out: The images that measure the run; None without such a split, or if it cannot be read.
        scored: None if the run was not evaluated, or its images or detections cannot be read.
        model: None if there is no model file yet, or it cannot be read.
        missing: Sentences on what is missing, and how to get it.
    """

    folder: Path
    settings: Mapping[str, Any]
    notes: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]
    is_written: bool
    source: Path | None
    train: Records | None
    held_out: Records | None
    scored: Scored | None
    model: LoadedModel | None
    missing: tuple[str, ...]

    def setting(self, section: str, name: str) -> Any:
        """The value of a setting; None where the run does not have it."""
        values = self.settings.get(section)
        return values.get(name) if isinstance(values, Mapping) else None

    @cached_property
    def steps(self) -> int:
        """The number of steps done."""
        return max((entry["step"] for entry in self.log if "loss" in entry), default=0)

    @cached_property
    def ap_over_time(self) -> list[tuple[int, float]]:
        """Step and AP of each evaluation, the last one of the finished run included."""
        points = {entry["step"]: float(entry["AP"]) for entry in self.log if isinstance(entry.get("AP"), int | float)}
        if self.scored and self.model and self.scored.metrics.AP >= 0:
            points[self.steps] = self.scored.metrics.AP
        return sorted(points.items())

    @property
    def image_size(self) -> int | None:
        """The side in pixels that images are resized to; None if it is not known."""
        size = self.model.record.conventions.input.size if self.model else self.setting("data", "image_size")
        return size if isinstance(size, int) else None

    @property
    def seconds(self) -> float:
        """The time of training: the clock of the log starts again when a run is resumed."""
        times = [float(entry["seconds"]) for entry in self.log if isinstance(entry.get("seconds"), int | float)]
        return sum(before for before, after in zip(times, [*times[1:], 0.0], strict=True) if after < before)

    @property
    def repeat_command(self) -> str:
        """The command that does the same training again."""
        return command_line("train", self.source or "DATA", config=self.folder / "config.yaml", out=f"{self.folder}-again")


def gather(folder: Path, data: Path | None = None) -> Evidence:
    """Read all that is there.

    Args:
        folder: A run folder.
        data: Where the data set of the run is now; None for where it was.

    Raises:
        RunFolderError: if the folder holds no run.
        ConfigError: if its settings cannot be read.
        InputError: if ``data`` does not exist.
    """
    run = RunFolder(folder)
    if not run.config_file.is_file():
        raise RunFolderError(f"{shown(str(folder), most=300)} holds no run (no config.yaml); name the folder that a training wrote")
    settings, notes = load_run_config(run.config_file)
    missing: list[str] = []
    is_written = _is_locked(folder)
    log = _read(lambda: read_log(run.log_file), "the log", missing) or []
    if not any("loss" in entry for entry in log):
        missing.append("No step is logged in log.jsonl, so there are no curves.")
    if run.model_file.is_file():
        model = _read(lambda: load_model(folder), "the model", missing)
    else:
        model = None
        resume = command_line("train", resume=folder)
        missing.append("There is no model yet: the training goes on." if is_written else f"There is no model: {resume} ends the training.")
    source = existing(data, "data set") if data else Path(str(notes["data"])) if "data" in notes else None
    train, held_out = _splits(source, settings, missing)
    scored = _scored(folder, held_out, source, missing) if held_out else None
    return Evidence(
        folder=folder,
        settings=settings,
        notes=notes,
        log=log,
        is_written=is_written,
        source=source,
        train=train,
        held_out=held_out,
        scored=scored,
        model=model,
        missing=tuple(missing),
    )


def _is_locked(folder: Path) -> bool:
    if not (folder / LOCK).exists():
        return False
    try:
        with lock_file(folder / LOCK, where=str(folder)):
            return False
    except InUseError:
        return True
    except LwRetinaNetError:  # a folder that nothing can be written to
        return False


def _read(read: Callable[[], Part], what: str, missing: list[str]) -> Part | None:
    """What ``read`` gives, or a sentence in ``missing``."""
    try:
        return read()
    except InputError as error:
        missing.append(f"{what[:1].upper()}{what[1:]} cannot be used: {error}.")
        return None


def _splits(source: Path | None, settings: Mapping[str, Any], missing: list[str]) -> tuple[Records | None, Records | None]:
    """The annotations of both splits; no image is looked at."""
    if source is None:
        missing.append("The run does not say what it was trained on, so its data set is missing here.")
        return None, None
    if not source.exists():
        missing.append(
            f"The data set {shown(str(source), most=200)} is not here, so nothing that needs its boxes or images is shown; "
            "say where it is now (parameter data), or start from the folder where the training was started."
        )
        return None, None
    section = settings.get("data")
    classes = section.get("classes") if isinstance(section, Mapping) else None
    dataset = _read(lambda: Dataset.open(source, classes=classes or ()), "the data set", missing)
    if dataset is None:
        return None, None
    train = _read(lambda: dataset.read(dataset.or_whole("train")), "the training split", missing)
    if dataset.held_out is None:
        missing.append(f"The data set has no val split, so nothing measures the model: {command_line('data', 'split', source)} makes one.")
        return train, None
    return train, _read(lambda: dataset.read(dataset.held_out, scoring=True), "the validation split", missing)


def _scored(folder: Path, records: Records, source: Path | None, missing: list[str]) -> Scored | None:
    file = folder / "detections.json"
    if not file.is_file():
        missing.append(f"The run is not evaluated: {command_line('evaluate', folder, source, out=folder)} does it.")
        return None
    detections = _read(lambda: read_results(file, records), "detections.json", missing)
    if detections is None:
        return None
    return _read(lambda: _score(records, detections), "the evaluation", missing)


def _score(records: Records, detections: DetectionTable) -> Scored:
    can_draw = records.num_images >= MIN_IMAGES and bool((~records.is_ignored).any())
    return Scored(
        records=records,
        detections=detections,
        metrics=evaluate(records, detections),
        diagnosis=diagnose(records, detections),
        estimates=drawn_scores(records, detections).estimates() if can_draw else {},
        classes=class_estimates(records, detections) if can_draw else [],
    )
