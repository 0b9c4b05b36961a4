"""A whole training run: data, model, training, evaluation, files and pictures."""

import logging
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lw_retinanet import __version__
from lw_retinanet.config import Config
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.images import decode
from lw_retinanet.data.preview import choose
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.drawing import contact_sheet, save_picture
from lw_retinanet.errors import ConfigError, DataError, RunFolderError
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import write_results
from lw_retinanet.evaluation.scoring_process import ScoringProcess
from lw_retinanet.evaluation.write import write_metrics
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.training.curves import save_curves
from lw_retinanet.training.distributed import World, joined_world
from lw_retinanet.training.loop import TrainingData, train
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_plan import macs_reduction
from lw_retinanet.weights.model_file import LoadedModel, ModelRecord, find_model_file, load_model, save_model
from lw_retinanet.weights.start import file_start, new_start

START_FILE = "start.safetensors"  # in the folder of a run that goes on from a model file: that model, with the classes of the data set
PICTURES = 8
PICTURE_SCORE = 0.3  # of the boxes drawn; scoring uses all
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Args:
        folder: of the run.
        metrics: on ``val``; None where there is no such split, or in a process that is not the first.
    """

    folder: Path
    metrics: Metrics | None


def open_training_data(source: Path) -> tuple[Records, Records | None]:
    """Training split and, if there is one, validation split, with all sizes known.

    Raises:
        DataError: if the data cannot be used, has no box to learn from or to find, or if ``val`` has none of the training classes.
        ImageError: if a picture is missing, or its header cannot be read or tells another size than the annotations.
    """
    dataset = Dataset.open(source)
    records = dataset.ready(dataset.or_whole("train"))
    return records, dataset.ready(dataset.held_out, classes=records.categories) if dataset.held_out else None


def run_training(
    config: Config, source: Path, out: Path, *, resume: bool = False, device: torch.device | None = None, progress: Progress | None = None
) -> Outcome:
    """Train, evaluate on ``val``, and leave everything in one folder.

    Args:
        config: settings; the recipe's values are filled in. With ``model.start`` the run goes on from that model file.
        source: data set with a training split, and a ``val`` split to evaluate on.
        out: run folder, new or, with ``resume``, an earlier one.
        resume: go on where the run of ``out`` stopped; ``config`` must then be that run's. Its ``model.start`` is no longer needed.
        device: to compute on; None takes CUDA where there is one.
        progress: wraps the batches of the evaluation, to show a bar.

    Raises:
        InputError: for settings, data or a folder that cannot be used; nothing is written then.
        TrainingError: if the loss is not finite.
    """
    config = config.resolved()
    records, held_out = open_training_data(source)
    with joined_world(device) as world, ExitStack() as stack:
        notes = {
            "data": str(source),
            "fingerprint": records.fingerprint(),
            "processes": world.size,
            "version": __version__,
        }
        start = open_start(config, records, out if resume else None)
        teacher = open_teacher(config, start.record)
        model, name = start.model.to(world.device), start.record.preset
        folder = _open_folder(stack, out, config, notes, resume=resume, world=world)
        if world.is_main:
            if config.model.start is not None and not resume:
                save_model(out / START_FILE, model, start.record)
            log.info("%s: %s; %s on %s", source, records.summary(), name, world.device)
            if config.model.start is None and config.model.backbone_weights == "none" and not resume:
                log.warning("the backbone starts from random weights; model.backbone_weights=imagenet learns far faster on small data")

        def score(trained: RetinaNet, step: int) -> Future[dict[str, Any]]:
            assert held_out is not None
            assert scoring is not None
            return scoring.submit(detect_records(Detector(trained, records.categories, device=world.device), held_out))

        scoring = stack.enter_context(ScoringProcess(held_out)) if held_out is not None and world.is_main else None

        trained = train(
            model,
            TrainingData(records=records, usable=usable(records)),
            config=config,
            folder=folder,
            world=world,
            macs_reduction=macs_reduction(model) if config.train.schedule == "paper" else 1.0,
            resume=resume,
            evaluate=score if scoring is not None else None,
            teacher=teacher.model.to(world.device) if teacher else None,
            teacher_full_head=teacher is not None and teacher.record.switchable,
        )
        if not world.is_main:
            return Outcome(folder=out, metrics=None)
        made = {"data": source.name, "settings": config.model_dump(mode="json"), **start.record.notes}
        save_model(folder.model_file, trained, start.record.model_copy(update={"notes": made}))
        save_curves(folder.log_file, folder.pictures / "curves.png", title=f"{name} on {source.name}")
        if held_out is None:
            log.info("%s has no val split, so the model was not evaluated", source)
            return Outcome(folder=out, metrics=None)
        detector = Detector(trained, records.categories, device=world.device, name=f"{name} on {source.name}")
        metrics = evaluate_into(folder.path, detector, held_out, progress=progress)
        return Outcome(folder=out, metrics=metrics)


def evaluate_into(out: Path, detector: Detector, records: Records, *, progress: Progress | None = None, batch_size: int = 1) -> Metrics:
    """Evaluate, and write ``detections.json``, ``metrics.json``, a precision-recall picture and a sheet of detections."""
    detections = detect_records(detector, records, batch_size=batch_size, progress=progress)
    metrics = evaluate(records, detections)
    write_results(detections, records, out / "detections.json")
    write_metrics(metrics, out, title=detector.name)
    save_detection_sheet(out / "pictures" / "detections.jpg", detector, records)
    return metrics


def save_detection_sheet(path: Path, detector: Detector, records: Records, *, count: int = PICTURES, columns: int = 4) -> None:
    """Draw what a detector finds in a few pictures that show as many classes as possible."""
    chosen = choose(records, count=min(count, records.num_images), seed=0)
    results = [detector.predict_arrays([decode(records.path(image))], score=PICTURE_SCORE)[0] for image in chosen]
    sheet = contact_sheet([result.plot() for result in results], columns=columns, titles=[Path(records.file_names[i]).name for i in chosen])
    save_picture(sheet, path)


def open_start(config: Config, records: Records, resumed: Path | None) -> LoadedModel:
    """The network before its first step: new, of the model file that the settings name, or as the resumed run noted it down."""
    if config.model.start is None:
        return new_start(config, records.categories)
    if resumed is None:
        data = config.data
        return file_start(
            Path(config.model.start),
            records.categories,
            image_size=data.image_size,
            resize=data.resize,
            max_size=data.max_size,
            seed=config.train.seed,
        )
    if not (resumed / START_FILE).is_file():
        raise RunFolderError(f"{resumed} has no {START_FILE}, so it stopped before its first step; start the run anew, elsewhere")
    return load_model(resumed / START_FILE)


def open_teacher(config: Config, student: ModelRecord) -> LoadedModel | None:
    """The network to learn from.

    Raises:
        ConfigError: if its classes or anchors are others than the student's.
    """
    if config.train.teacher is None:
        return None
    path = find_model_file(Path(config.train.teacher))
    loaded = load_model(path)
    theirs, ours = ([category.name for category in record.categories] for record in (loaded.record, student))
    if theirs != ours:
        raise ConfigError(f"train.teacher {path} knows other classes than the student, or in another order; teach with a model of the same")
    if loaded.record.conventions.anchors != student.conventions.anchors or loaded.record.conventions.boxes != student.conventions.boxes:
        raise ConfigError(f"train.teacher {path} has other anchors than the student, so its answers mean something else")
    return loaded


def _open_folder(stack: ExitStack, out: Path, config: Config, notes: Mapping[str, Any], *, resume: bool, world: World) -> RunFolder:
    """The run folder, opened by the first process and then by the others."""
    if world.is_main:
        if resume:
            folder, earlier, earlier_notes = stack.enter_context(RunFolder.reopened(out))
            _require_same(out, earlier, earlier_notes, config, notes)
        else:
            folder = stack.enter_context(RunFolder.created(out, config, notes))
    if world.size > 1:
        dist.barrier()
    return folder if world.is_main else RunFolder(out)


def _require_same(out: Path, earlier: Config, earlier_notes: Mapping[str, Any], config: Config, notes: Mapping[str, Any]) -> None:
    """A resumed run is the same run: same settings (workers aside), same data, same number of processes."""
    differences = []
    for section in ("model", "data", "train"):
        old, new = getattr(earlier, section).model_dump(), getattr(config, section).model_dump()
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key != "workers"]
        differences += [f"{section}.{key}: {old.get(key)} then, {new.get(key)} now" for key in keys]
    if differences:
        raise RunFolderError(f"{out} was started with other settings ({'; '.join(differences)}); resume without changing them")
    if earlier_notes.get("fingerprint") != notes["fingerprint"]:
        raise DataError(f"{out} was started on other data than {notes['data']} holds now; start a new run")
    if earlier_notes.get("processes") != notes["processes"]:
        before, now = earlier_notes.get("processes"), notes["processes"]
        raise RunFolderError(f"{out} was started with {before} processes, now there are {now}; resume with {before}")
