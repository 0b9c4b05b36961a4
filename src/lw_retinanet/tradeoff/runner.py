"""The runner of an experiment: every run once, in an order that fills the table early. It continues where it was interrupted."""

import json
import logging
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml
from filelock import FileLock, Timeout

from lw_retinanet import __version__
from lw_retinanet.config import NO_INFLUENCE, Config, TrainConfig, load_config
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import cpu_name, multiplies_in_bf16
from lw_retinanet.errors import ConfigError, DataError, InputError, RunFolderError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import DetectionTable, read_results, write_results
from lw_retinanet.evaluation.paired import MIN_IMAGES
from lw_retinanet.files import sha256, write_text
from lw_retinanet.heads import plan_of
from lw_retinanet.jobs.train import open_training_data, run_training
from lw_retinanet.lightening.calibration_images import calibration_files
from lw_retinanet.lightening.filling import LighteningSettings
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.stages import lighten_detector
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.tradeoff.experiment import Cell, Experiment
from lw_retinanet.tradeoff.feature_maps import FeatureMaps, compute_feature_maps
from lw_retinanet.tradeoff.head_training import detect_from_maps, train_head
from lw_retinanet.tradeoff.trunk import at_scale, open_trunk, with_head
from lw_retinanet.training.run_folder import read_log
from lw_retinanet.weights.model_file import find_model_file
from lw_retinanet.weights.start import start_from_settings

EXPERIMENT_FILE = "experiment.yaml"
RESULT_FILE = "result.json"
DETECTIONS_FILE = "detections.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SeedRun:
    """One training of one row, with one seed."""

    cell: Cell
    seed: int

    def folder(self, out: Path) -> Path:
        """Folder of the run in the folder of the experiment."""
        return out / "runs" / self.cell.name / f"seed-{self.seed}"


class Runner:
    """Runs an experiment, and keeps its results in a folder.

    Args:
        experiment: What to run.
        out: Folder of the experiment, new or from an earlier call; finished runs in it stay as they are.
        device: Device to compute on.
        progress: Shows how far long work is.

    Raises:
        InputError: for data or a trunk that cannot be used.
        RunFolderError: if the folder holds another experiment, with other data, trunk or settings. Rows and seeds may be added.
    """

    def __init__(self, experiment: Experiment, out: Path, *, device: torch.device, progress: Progress | None = None) -> None:
        self.experiment = experiment
        self.out = out
        self.device = device
        self.progress = progress
        self.records, self.held_out = _open(experiment)
        self.trunk = open_trunk(experiment, self.records)
        self.origin = {"data": self.records.fingerprint(), "validation": self.held_out.fingerprint()}
        if experiment.trunk is not None:
            self.origin["trunk"] = sha256(find_model_file(Path(experiment.trunk)))
        self.decided: dict[str, Any] = {}
        self._require_same_experiment()

    @cached_property
    def use_bf16(self) -> bool:
        """Whether the runs of the regime ``head`` compute in bf16; the same for all of them."""
        return self.config(self.experiment.baseline, self.experiment.seeds[0]).train.precision == "bf16"

    def config(self, cell: Cell, seed: int) -> Config:
        """Resolved settings of one run, with what was decided once for all runs of the experiment."""
        config = self.experiment.config(cell, seed)
        asked = self.experiment.settings.get("train", {})
        decided = {name: value for name, value in self.decided.items() if asked.get(name) in (None, "auto")}
        return config.model_copy(update={"train": config.train.model_copy(update=decided)})

    def run(self, cells: Sequence[Cell]) -> None:
        """Do all runs of these rows that are not done: the first seed of every row, then the second seed, and so on.

        Several processes may work in one folder. Each takes runs that no other process is doing.

        Raises:
            RunFolderError: if a finished run had other settings.
            TrainingError: if a loss is not finite; finished runs stay.
        """
        write_data_use(self.out, trained={"train": self.records}, scored={"val": self.held_out})
        runs = [SeedRun(cell=cell, seed=seed) for seed in self.experiment.seeds for cell in cells]
        self._note_down()
        left = [run for run in runs if not self._is_done(run)]
        log.info("%d of %d runs are to do", len(left), len(runs))
        for number, run in enumerate(left, start=1):
            run.folder(self.out).mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(run.folder(self.out) / ".lock", timeout=0):
                    if self._is_done(run):
                        continue
                    started = time.monotonic()
                    table, steps = self._carry_out(run)
                    seconds = time.monotonic() - started
                    result = self._finish(run, table, steps=steps, seconds=seconds)
            except Timeout:
                log.info("run %d/%d: %s, seed %d: another process is doing it", number, len(left), run.cell.name, run.seed)
                continue
            log.info("run %d/%d: %s, seed %d: AP %.4f (%.0f s)", number, len(left), run.cell.name, run.seed, result["AP"], seconds)
        if all(self._is_done(SeedRun(cell=cell, seed=seed)) for cell in self.experiment.cells() for seed in self.experiment.seeds):
            shutil.rmtree(self.out / "features", ignore_errors=True)  # gigabytes that no run needs any more

    def result(self, run: SeedRun) -> dict[str, Any] | None:
        """The content of a finished run's ``result.json``; None if the run is not finished."""
        return read_json(run.folder(self.out) / RESULT_FILE)

    def detections(self, run: SeedRun) -> DetectionTable:
        """The detections of a finished run in the validation images."""
        return read_results(run.folder(self.out) / DETECTIONS_FILE, self.held_out)

    def model(self, cell: Cell, *, seed: int = 0) -> RetinaNet:
        """The network of a row before its training."""
        config = self.config(cell, seed)
        if self.trunk is None:
            without_weights = config.model_copy(update={"model": config.model.model_copy(update={"backbone_weights": "none"})})
            return start_from_settings(without_weights, self.records.categories).model
        return with_head(self.trunk.model, config, len(self.records.categories))

    def _is_done(self, run: SeedRun) -> bool:
        result = self.result(run)
        if result is None:
            return False
        wanted, kept = _settings(self.config(run.cell, run.seed)), result["settings"]
        different = [
            f"{section}.{name}: {kept[section][name]} then, {value} now"
            for section, values in wanted.items()
            for name, value in values.items()
            # Settings may have been added to this package later, and version 0.1.0 kept `auto`.
            if name in kept[section] and kept[section][name] not in (value, "auto")
        ]
        if different:
            raise RunFolderError(
                f"{run.folder(self.out)} was finished with other settings ({'; '.join(different[:3])}); choose another output folder"
            )
        return True

    def _carry_out(self, run: SeedRun) -> tuple[DetectionTable, int]:
        if run.cell.regime == "head":
            return self._train_head(run)
        if run.cell.regime == "lighten":
            return self._lighten(run)
        return self._train_all(run)

    def _train_head(self, run: SeedRun) -> tuple[DetectionTable, int]:
        assert self.trunk is not None
        config = self.config(run.cell, run.seed)
        model = self.model(run.cell, seed=run.seed).to(self.device)
        if run.cell.variant.teacher and model.head.num_anchors != self.trunk.model.head.num_anchors:
            raise InputError(f"{run.cell.name}: the trunk's head has other anchors, so it cannot teach; leave teacher out")
        training = self._maps(self.records, "train", run.cell.scale, ("plain", "mirrored"))
        held_out = self._maps(self.held_out, "val", run.cell.scale, ("plain",))
        lines: list[str] = []
        trained = train_head(
            model,
            training,
            config,
            device=self.device,
            use_bf16=self.use_bf16,
            teacher=self.trunk.model.head.to(self.device) if run.cell.variant.teacher else None,
            log=lambda entry: lines.append(json.dumps(entry)),
            progress=self.progress,
            what=f"{run.cell.name}, seed {run.seed}",
        )
        write_text(run.folder(self.out) / "log.jsonl", "".join(f"{line}\n" for line in lines))
        categories = self.records.categories
        return detect_from_maps(trained.model, held_out, categories, device=self.device, use_bf16=self.use_bf16), trained.steps

    def _maps(self, records: Records, split: str, scale: int, views: tuple[str, ...]) -> FeatureMaps:
        assert self.trunk is not None
        folder = self.out / "features" / f"{split}-{scale}"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # another process that needs the same maps waits for them
            return compute_feature_maps(
                self.trunk.model.to(self.device).to(memory_format=torch.channels_last),
                records,
                folder,
                rule=at_scale(self.trunk.model.conventions, scale).input,
                views=views,
                origin=self.origin,
                device=self.device,
                use_bf16=self.use_bf16,
                progress=self.progress,
            )

    def _lighten(self, run: SeedRun) -> tuple[DetectionTable, int]:
        assert self.trunk is not None
        conventions = at_scale(self.trunk.model.conventions, run.cell.scale)
        old = self.trunk.model
        model = RetinaNet(backbone=old.backbone, fpn=old.fpn, head=old.head, conventions=conventions)
        record = self.trunk.record.model_copy(update={"conventions": conventions})
        detector = Detector.of_model(
            model, self.trunk.record.categories, device=self.device, precision="bf16" if self.use_bf16 else "fp32", record=record
        )
        plan, steps = plan_of(run.cell.variant.preset), 0
        if plan.cls or plan.bbox:  # otherwise the row is the trunk as it is
            steps = self.experiment.fit_steps
            files = calibration_files(Path(self.experiment.data), count=512, seed=run.seed)
            settings = LighteningSettings(
                fit=FitSettings(steps=steps, seed=run.seed), seed=run.seed, precision="bf16" if self.use_bf16 else "fp32"
            )
            name = run.cell.variant.preset
            detector = lighten_detector(detector, plan, name=name, files=files, settings=settings, progress=self.progress).detector
        return detect_records(detector, self.held_out), steps

    def _train_all(self, run: SeedRun) -> tuple[DetectionTable, int]:
        config = self.config(run.cell, run.seed)
        folder = run.folder(self.out) / "training"
        resume = (folder / "config.yaml").is_file()
        run_training(config, Path(self.experiment.data), folder, resume=resume, device=self.device)
        return read_results(folder / DETECTIONS_FILE, self.held_out), int(read_log(folder / "log.jsonl")[-1]["step"])

    def _finish(self, run: SeedRun, table: DetectionTable, *, steps: int, seconds: float) -> dict[str, Any]:
        metrics = {name: value for name, value in evaluate(self.held_out, table).as_dict().items() if name != "per_class"}
        folder = run.folder(self.out)
        write_results(table, self.held_out, folder / DETECTIONS_FILE)
        result = {
            "row": run.cell.name,
            "seed": run.seed,
            **metrics,
            "steps": steps,
            "seconds": round(seconds, 1),
            "settings": _settings(self.config(run.cell, run.seed)),
            "made_with": made_with(),
        }
        write_text(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")  # written last, since it marks the run as done
        return result

    def _note_down(self) -> None:
        values = {**self.experiment.model_dump(mode="json", exclude_defaults=True), "fingerprints": self.origin, "decided": self.decided}
        write_text(self.out / EXPERIMENT_FILE, yaml.safe_dump(values, sort_keys=False))

    def _require_same_experiment(self) -> None:
        file = self.out / EXPERIMENT_FILE
        if not file.is_file():
            self.decided = {"schedule_version": TrainConfig().schedule_version, "precision": self._precision()}
            if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
                raise RunFolderError(f"{self.out} is not empty and holds no experiment; choose another output folder")
            return
        try:
            earlier = load_config(file)
        except ConfigError as error:
            raise RunFolderError(
                f"{error}; this file says which experiment the folder holds: restore it, or choose another folder"
            ) from None
        now = self.experiment.model_dump(mode="json", exclude_defaults=True)
        different = [name for name, value in self.origin.items() if (earlier.get("fingerprints") or {}).get(name) != value]
        different += [name for name in ("settings", "fit_steps") if earlier.get(name) != now.get(name)]
        if different:
            raise RunFolderError(
                f"{self.out} holds an experiment with another {' and another '.join(different)}; choose another output folder"
            )
        # Version 0.1.0 wrote nothing down, and took bf16 where the device has it.
        as_before = {"schedule_version": 1, "precision": "bf16" if multiplies_in_bf16(self.device) else "fp32"}
        self.decided = earlier.get("decided") or as_before

    def _precision(self) -> str:
        asked = self.experiment.config(self.experiment.baseline, self.experiment.seeds[0]).train.precision
        return choose_precision(asked, self.device, "training")


def read_json(file: Path) -> dict[str, Any] | None:
    """The content of a JSON file of an experiment; None if there is no such file.

    Raises:
        RunFolderError: if the file is damaged.
    """
    if not file.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise RunFolderError(f"{file} is damaged; remove it, and run the experiment again") from None
    return content


def made_with() -> dict[str, str]:
    """Versions and machine that results are made with."""
    return {
        "lw_retinanet": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
    }


def processor() -> str:
    """Name of the GPU, or of the CPU if there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return cpu_name()


def _settings(config: Config) -> dict[str, Any]:
    """The settings that the results of a run depend on; the number of workers and their timeout are none of them."""
    values = config.model_dump(mode="json")
    return {"model": values["model"], "train": values["train"], "data": {k: v for k, v in values["data"].items() if k not in NO_INFLUENCE}}


def _open(experiment: Experiment) -> tuple[Records, Records]:
    records, held_out = open_training_data(Path(experiment.data))
    if held_out is None:
        raise DataError(f"{experiment.data} has no val split to measure AP on; make one")
    if held_out.num_images < MIN_IMAGES:
        raise DataError(f"{experiment.data}: {held_out.num_images} validation images are too few for an interval; use {MIN_IMAGES} or more")
    return records, held_out
