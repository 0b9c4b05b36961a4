"""The regimes of an experiment: how the network of one row comes about, and what it finds."""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lw_retinanet.config import Config, ModelConfig, load_run_config, parse_config
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import TrainingPrecision
from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import DetectionTable, read_results
from lw_retinanet.files import write_text
from lw_retinanet.heads import plan_of
from lw_retinanet.jobs.train import START_FILE, run_training
from lw_retinanet.lightening.calibration_images import MAX_FILES
from lw_retinanet.lightening.filling import LighteningSettings
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.stages import lighten_detector
from lw_retinanet.locks import lock_file
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.tradeoff.experiment import Cell
from lw_retinanet.tradeoff.experiment_data import Fold
from lw_retinanet.tradeoff.feature_maps import FeatureMaps, compute_feature_maps
from lw_retinanet.tradeoff.head_training import detect_from_maps, train_head
from lw_retinanet.tradeoff.trunk import Trunk, at_scale, with_head
from lw_retinanet.training.run_folder import read_log
from lw_retinanet.weights.model_file import load_model, save_model

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class RowTask:
    """One row with one seed on one fold.

    Args:
        cell, seed, fold: Which one.
        trunk: The trained detector that it starts from; None in the regime ``full``.
        config: Resolved settings.
        source: The data set, as a name.
        folder: Folder for small files.
        work: Folder for large files, with which an interrupted training goes on.
        features: Folder for the feature maps of the trunk, which several rows share.
        origin: What the feature maps depend on beside the trunk.
        fit_steps: Steps of the fit of light heads.
        device: Device to compute on.
        use_bf16: Whether what is no whole training computes in bf16.
        progress: Shows how far long work is.
    """

    cell: Cell
    seed: int
    fold: Fold
    trunk: Trunk | None
    config: Config
    source: Path
    folder: Path
    work: Path
    features: Path
    origin: Mapping[str, Any]
    fit_steps: int
    device: torch.device
    use_bf16: bool
    progress: Progress | None

    @property
    def name(self) -> str:
        """Name for people: ``lw-v3@416, seed 0``."""
        return f"{self.cell.name}, seed {self.seed}" + ("" if self.fold.number is None else f", fold {self.fold.number}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of a task.

    Args:
        table: Detections in the held-out images of the fold.
        steps: Number of steps of its training.
        model: The network.
    """

    table: DetectionTable
    steps: int
    model: RetinaNet


def carry_out(task: RowTask) -> Outcome:
    """Make the network of a task, and let it detect.

    Raises:
        InputError: if the trunk does not fit the row.
        TrainingError: if a loss is not finite.
    """
    if task.cell.regime == "full":
        return _train_all(task)
    assert task.trunk is not None
    if task.cell.regime == "head":
        return _train_head(task, task.trunk)
    if task.cell.regime == "lighten":
        return _lighten(task, task.trunk)
    return _finetune(task, task.trunk)


def _train_all(task: RowTask) -> Outcome:
    return _train(task, task.config, resume=(task.work / "config.yaml").is_file())


def _train(task: RowTask, config: Config, *, resume: bool) -> Outcome:
    opened = (task.fold.records, task.fold.held_out)
    run_training(config, task.source, task.work, resume=resume, device=task.device, opened=opened)
    table = read_results(task.work / "detections.json", task.fold.held_out)
    steps = int(read_log(task.work / "log.jsonl")[-1]["step"])
    return Outcome(table=table, steps=steps, model=load_model(task.work / "model.safetensors").model)


def _train_head(task: RowTask, trunk: Trunk) -> Outcome:
    model = with_head(trunk.model, task.config, len(task.fold.records.categories)).to(task.device)
    if task.cell.is_taught and model.head.num_anchors != trunk.model.head.num_anchors:
        raise InputError(f"{task.cell.name}: the trunk's head has other anchors, so it cannot teach; leave teacher out")
    training = _maps(task, trunk, task.fold.records, "train", ("plain", "mirrored"))
    held_out = _maps(task, trunk, task.fold.held_out, "val", ("plain",))
    lines: list[str] = []
    trained = train_head(
        model,
        training,
        task.config,
        device=task.device,
        use_bf16=task.use_bf16,
        teacher=trunk.model.head.to(task.device) if task.cell.is_taught else None,
        log=lambda entry: lines.append(json.dumps(entry)),
        progress=task.progress,
        what=task.name,
    )
    write_text(task.folder / "log.jsonl", "".join(f"{line}\n" for line in lines))
    categories = task.fold.records.categories
    table = detect_from_maps(trained.model, held_out, categories, device=task.device, use_bf16=task.use_bf16)
    return Outcome(table=table, steps=trained.steps, model=trained.model)


def _maps(task: RowTask, trunk: Trunk, records: Records, split: str, views: tuple[str, ...]) -> FeatureMaps:
    scale = task.cell.scale
    folder = task.features / f"{split}-{scale}"
    with lock_file(folder / ".lock", where=f"the folder {folder}", waits=True):  # another process is computing the same maps
        return compute_feature_maps(
            trunk.model.to(task.device).to(memory_format=torch.channels_last),
            records,
            folder,
            rule=at_scale(trunk.model.conventions, scale).input,
            views=views,
            origin=task.origin,
            device=task.device,
            use_bf16=task.use_bf16,
            progress=task.progress,
        )


def _lighten(task: RowTask, trunk: Trunk) -> Outcome:
    detector, steps = _at_task(task, trunk)
    assert isinstance(detector.model, RetinaNet)
    return Outcome(table=detect_records(detector, task.fold.held_out), steps=steps, model=detector.model)


def _at_task(task: RowTask, trunk: Trunk) -> tuple[Detector, int]:
    """The trunk with the head and the image size of the row, not trained on, and the steps that its light head was fitted."""
    conventions = at_scale(trunk.model.conventions, task.cell.scale)
    old = trunk.model
    model = RetinaNet(backbone=old.backbone, fpn=old.fpn, head=old.head, conventions=conventions)
    record = trunk.loaded.record.model_copy(update={"conventions": conventions})
    precision: TrainingPrecision = "bf16" if task.use_bf16 else "fp32"
    detector = Detector.of_model(model, record.categories, device=task.device, precision=precision, record=record)
    if not task.cell.is_light:
        return detector, 0
    settings = LighteningSettings(fit=FitSettings(steps=task.fit_steps, seed=task.seed), seed=task.seed, precision=precision)
    preset = task.cell.variant.preset
    lightened = lighten_detector(
        detector,
        plan_of(preset),
        name=preset,
        files=_calibration_files(task.fold.records, task.seed),
        settings=settings,
        progress=task.progress,
    )
    return lightened.detector, task.fit_steps


def _calibration_files(records: Records, seed: int) -> list[Path]:
    chosen = np.arange(records.num_images)
    if len(chosen) > MAX_FILES:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:MAX_FILES])
    return [records.path(image) for image in chosen.tolist()]


def _finetune(task: RowTask, trunk: Trunk) -> Outcome:
    """Train on from the trunk; its backbone and pyramid learn, too, so no feature map can be kept. What is kept is the light start."""
    start = task.work.with_name(f"{task.work.name}-{START_FILE}")
    if not start.is_file():
        detector, _ = _at_task(task, trunk)
        assert isinstance(detector.model, RetinaNet)
        assert detector.record is not None
        save_model(start, detector.model, detector.record)
    if task.work.exists() and not (task.work / START_FILE).is_file():
        shutil.rmtree(task.work)  # it was interrupted before its first step
    if task.work.exists():  # with the paths that it began with
        values, _ = load_run_config(task.work / "config.yaml")
        return _train(task, parse_config(values, where=str(task.work)), resume=True)
    teacher = str(trunk.file.absolute()) if task.cell.is_taught else None
    train = task.config.train.model_copy(update={"teacher": teacher})
    return _train(task, task.config.model_copy(update={"model": ModelConfig(start=str(start)), "train": train}), resume=False)
