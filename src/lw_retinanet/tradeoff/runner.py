"""The runner of an experiment: every run once, in an order that fills the table early. It continues where it was interrupted."""

import json
import logging
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
import torchvision
import yaml

from lw_retinanet import __version__
from lw_retinanet.config import NO_INFLUENCE, Config, TrainConfig, load_config
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.records import Records
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import cpu_name, multiplies_in_bf16
from lw_retinanet.errors import ConfigError, InUseError, RunFolderError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.evaluation.packed_detections import PACKED_FILE, pack_detections, read_detections
from lw_retinanet.files import write_text
from lw_retinanet.locks import lock_file
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.tradeoff.experiment import Cell, Experiment
from lw_retinanet.tradeoff.experiment_data import Fold, open_data
from lw_retinanet.tradeoff.regimes import RowTask, carry_out
from lw_retinanet.tradeoff.row_cost import RowCost
from lw_retinanet.tradeoff.trunk import Trunk, fingerprint, open_trunks, train_trunk, with_head
from lw_retinanet.weights.start import start_from_settings

EXPERIMENT_FILE = "experiment.yaml"
RESULT_FILE = "result.json"
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

    ``experiment.yaml``, ``latency.json`` and ``runs/`` are small, and all that a report is made of; ``work/`` holds models and checkpoints.

    Args:
        experiment: What to run.
        out: Folder of the experiment, new or from an earlier call; finished runs in it stay as they are.
        device: Device to compute on.
        progress: Shows how far long work is.
        report_only: Nothing will be run, so the trunks are not needed.

    Raises:
        InputError: for data or a trunk that cannot be used.
        RunFolderError: if the folder holds another experiment, with other data, trunk or settings. Rows and seeds may be added.
    """

    def __init__(
        self, experiment: Experiment, out: Path, *, device: torch.device, progress: Progress | None = None, report_only: bool = False
    ) -> None:
        self.experiment = experiment
        self.out = out
        self.device = device
        self.progress = progress
        self.data = open_data(experiment)
        self.origin = self.data.fingerprints()
        self._trunks: dict[int, Trunk] = {}
        if not report_only:
            self._trunks = dict(enumerate(open_trunks(experiment, self.records)))
            if self._trunks:
                self.origin["trunk"] = fingerprint(list(self._trunks.values()))
        self.decided: dict[str, Any] = {}
        self._require_same_experiment()

    @property
    def records(self) -> Records:
        """The images that are trained on."""
        return self.data.records

    @property
    def held_out(self) -> Records:
        """The images that AP is measured on."""
        return self.data.held_out

    @cached_property
    def use_bf16(self) -> bool:
        """Whether the runs of the regime ``head`` compute in bf16; the same for all of them."""
        return self.config(self.experiment.baseline, self.experiment.seeds[0]).train.precision == "bf16"

    def config(self, cell: Cell, seed: int) -> Config:
        """Resolved settings of one run, with what was decided once for all runs of the experiment."""
        return self._with_decisions(self.experiment.config(cell, seed), self.experiment.settings)

    def _with_decisions(self, config: Config, settings: Mapping[str, Any]) -> Config:
        asked = settings.get("train", {})
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
        left = [run for run in runs if not self._is_done(run, run.folder(self.out))]
        log.info("%d of %d runs are to do", len(left), len(runs))
        for number, run in enumerate(left, start=1):
            what = f"run {number}/{len(left)}: {run.cell.name}, seed {run.seed}"
            for fold in self.data.folds:
                said = what + ("" if fold.number is None else f", fold {fold.number}")
                self._once(run, self._folder(run, fold), said, partial(self._do, run, fold))
            if len(self.data.folds) > 1 and all(self._is_done(run, self._folder(run, fold)) for fold in self.data.folds):
                self._once(run, run.folder(self.out), f"{what}, all folds", partial(self._join, run))
        if all(self.result(SeedRun(cell=cell, seed=seed)) for cell in self.experiment.cells() for seed in self.experiment.seeds):
            shutil.rmtree(self.out / "features", ignore_errors=True)  # gigabytes that no run needs any more

    def _once(self, run: SeedRun, folder: Path, said: str, work: Callable[[], dict[str, Any]]) -> None:
        """Do some work unless it is done, or another process is at it; the folder then holds its result."""
        try:
            with lock_file(folder / ".lock", where=f"the folder {folder}"):
                if not self._is_done(run, folder):
                    result = work()
                    log.info("%s: AP %.4f (%.0f s)", said, result["AP"], result["seconds"])
        except InUseError:
            log.info("%s: another process is doing it", said)

    def result(self, run: SeedRun) -> dict[str, Any] | None:
        """The content of a finished run's ``result.json``; None if the run is not finished."""
        return read_json(run.folder(self.out) / RESULT_FILE)

    def detections(self, run: SeedRun) -> DetectionTable:
        """The detections of a finished run in the images that AP is measured on."""
        return read_detections(run.folder(self.out), self.held_out)

    def trunk(self, seed: int, fold: Fold) -> Trunk | None:
        """The trunk for a seed and a fold, which is trained if the experiment does that itself; None if there is none."""
        if not self.experiment.has_trunk:
            return None
        number = fold.number or 0
        if fold.number is None and len(self.experiment.trunks) > 1:
            number = self.experiment.seeds.index(seed)
        if number not in self._trunks:
            if self.experiment.trunk_recipe is None:
                self._trunks = dict(enumerate(open_trunks(self.experiment, self.records)))
            else:
                config = self._with_decisions(self.experiment.trunk_config(), self.experiment.trunk_recipe)
                folder = self.out / "work" / f"trunk{fold.suffix}"
                self._trunks[number] = train_trunk(self.experiment, fold, folder, config=config, device=self.device)
        return self._trunks[number]

    def model(self, cell: Cell, *, seed: int = 0) -> RetinaNet:
        """The network of a row before its training, with a new head."""
        fold = self.data.folds[0]
        config = self.config(cell, seed)
        trunk = self.trunk(self.experiment.seeds[0], fold) if cell.regime != "full" else None
        if trunk is None:
            without_weights = config.model_copy(update={"model": config.model.model_copy(update={"backbone_weights": "none"})})
            return start_from_settings(without_weights, self.records.categories).model
        return with_head(trunk.model, self.experiment.config(replace(cell, regime="head"), seed), len(self.records.categories))

    def cost(self, run: SeedRun) -> RowCost:
        """The cost of a run's network, as the run wrote it down."""
        kept = (self.result(run) or {}).get("cost")  # version 0.1.0 did not write it
        return RowCost.from_dict(kept) if kept else RowCost.of(self.model(run.cell), self.held_out)

    def _folder(self, run: SeedRun, fold: Fold) -> Path:
        folder = run.folder(self.out)
        return folder if fold.number is None else folder / f"fold-{fold.number}"

    def _is_done(self, run: SeedRun, folder: Path) -> bool:
        result = read_json(folder / RESULT_FILE)
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
            raise RunFolderError(f"{folder} was finished with other settings ({'; '.join(different[:3])}); choose another output folder")
        return True

    def _do(self, run: SeedRun, fold: Fold) -> dict[str, Any]:
        """One row with one seed on one fold."""
        folder = self._folder(run, fold)
        earlier = folder / "training"  # where version 0.1.0 trained
        work = earlier if earlier.exists() else self.out / "work" / f"{run.cell.name}-seed-{run.seed}{fold.suffix}"
        trunk = self.trunk(run.seed, fold) if run.cell.regime != "full" else None
        several = f"trunk-{run.seed}" if fold.number is None and len(self.experiment.trunks) > 1 else fold.suffix.strip("-")
        task = RowTask(
            cell=run.cell,
            seed=run.seed,
            fold=fold,
            trunk=trunk,
            config=self.config(run.cell, run.seed),
            source=Path(self.experiment.data),
            folder=folder,
            work=work,
            features=self.out / "features" / several,
            origin=self.origin,
            fit_steps=self.experiment.fit_steps,
            device=self.device,
            use_bf16=self.use_bf16,
            progress=self.progress,
        )
        started = time.monotonic()
        outcome = carry_out(task)
        seconds = time.monotonic() - started
        # The cost is that of the images of all folds, so that every fold has the same.
        cost = RowCost.of(outcome.model, self.held_out).as_dict()
        result = self._finish(run, folder, fold.held_out, outcome.table, steps=outcome.steps, seconds=seconds, cost=cost)
        shutil.rmtree(work / "checkpoints", ignore_errors=True)
        return result

    def _join(self, run: SeedRun) -> dict[str, Any]:
        """The result over the images of all folds."""
        folders = [self._folder(run, fold) for fold in self.data.folds]
        tables = [read_detections(folder, fold.held_out) for folder, fold in zip(folders, self.data.folds, strict=True)]
        parts = [replace(table, image=fold.images[table.image]) for table, fold in zip(tables, self.data.folds, strict=True)]
        results = [read_json(folder / RESULT_FILE) or {} for folder in folders]
        steps, seconds = (sum(result[name] for result in results) for name in ("steps", "seconds"))
        folder = run.folder(self.out)
        return self._finish(run, folder, self.held_out, concatenate(parts), steps=steps, seconds=seconds, cost=results[0]["cost"])

    def _finish(
        self, run: SeedRun, folder: Path, held_out: Records, table: DetectionTable, *, steps: int, seconds: float, cost: dict[str, Any]
    ) -> dict[str, Any]:
        metrics = {name: value for name, value in evaluate(held_out, table).as_dict().items() if name != "per_class"}
        pack_detections(table, held_out, folder / PACKED_FILE)
        result = {
            "row": run.cell.name,
            "seed": run.seed,
            **metrics,
            "steps": steps,
            "seconds": round(seconds, 1),
            "cost": cost,
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
        known = earlier.get("fingerprints") or {}
        different = [name for name, value in self.origin.items() if known.get(name) != value]
        different += [name for name in ("settings", "fit_steps", "trunk_recipe") if earlier.get(name) != now.get(name)]
        if different:
            raise RunFolderError(
                f"{self.out} holds an experiment with another {' and another '.join(different)}; choose another output folder"
            )
        self.origin = known | self.origin
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
