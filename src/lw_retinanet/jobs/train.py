"""A whole training run: data, model, training, evaluation, files and figures.

``lw.train`` and the command call `checked_request` (settings, data, folder), then `run_training`, which calls `training.loop.train`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lw_retinanet import __version__
from lw_retinanet.config import NO_INFLUENCE, Config, load_run_config
from lw_retinanet.data.data_use import write_data_use
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Category, Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import choose_device, multiplies_in_bf16
from lw_retinanet.errors import ConfigError, DataError, RunFolderError, TrainingError, shown
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.scoring_process import ScoringProcess
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.files import output_folder, write_bytes
from lw_retinanet.jobs.detect_together import detect_together
from lw_retinanet.jobs.run_results import RunResults
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress
from lw_retinanet.training.distributed import World, joined_world
from lw_retinanet.training.loop import Evaluate, train
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_plan import macs_reduction
from lw_retinanet.training.step import Teacher
from lw_retinanet.weights.create import with_stride
from lw_retinanet.weights.model_file import LoadedModel, ModelRecord, find_model_file, load_model, save_model
from lw_retinanet.weights.start import start_from_file, start_from_settings

START_FILE = "start.safetensors"  # in the folder of a run that started from a model file: that model, with the classes of the data set
OpenedData = tuple[Records, Records | None]  # the images to train on, and those to measure on
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run.

    Args:
        folder: The run folder.
        metrics: The metrics on ``val``; None without such a split, and in every process but the first.
        is_main: Whether this is the first of the run's processes, the one that writes.
    """

    folder: Path
    metrics: Metrics | None
    is_main: bool = True

    def __fspath__(self) -> str:
        """The run folder, so that a run goes where the path of a model is expected."""
        return str(self.folder)

    def save(self, path: str | Path) -> Path:
        """Copy the model file and return the path of the copy."""
        write_bytes(Path(path), find_model_file(self.folder).read_bytes())
        return Path(path)

    def detector(self, *, device: str = "auto") -> Detector:
        """Open the trained model."""
        return open_detector(self.folder, device=device)


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a run is made of before its first step, checked.

    Args:
        records: The training split.
        held_out: The split that measures the model; None without one.
        start: The network before its first step.
        teacher: The network to learn from beside the labels; None without one.
    """

    records: Records
    held_out: Records | None
    start: LoadedModel
    teacher: Teacher | None


def run_training(
    config: Config,
    source: Path,
    out: Path,
    *,
    resume: bool = False,
    device: torch.device | str = "auto",
    progress: Progress | None = None,
    opened: OpenedData | None = None,
) -> Run:
    """Train, evaluate on ``val``, and leave everything in one folder.

    Args:
        config: The settings; the recipe's values are filled in. With ``model.start`` the run starts from that model file.
        source: A data set with a training split, and a ``val`` split to evaluate on.
        out: The run folder: new or, with ``resume``, that of an earlier run.
        resume: Continue the run in ``out``; ``config`` must then be that run's. Its ``model.start`` file is no longer needed.
        device: The device to compute on; ``auto`` takes CUDA if there is a GPU, and in each process of torchrun the one that belongs to it.
        progress: Wraps the batches of the evaluation, for instance to show a bar.
        opened: What to train on and what to measure on, if they are read already; ``source`` is then a name alone.

    Raises:
        InputError: for settings, data or a folder that cannot be used; nothing is written then.
        TrainingError: if the loss is not finite.
    """
    if not resume:
        output_folder(out)
    chosen = None if device == "auto" else choose_device(str(device))
    config = config.resolved()
    config = config.model_copy(update={"model": with_stride(config.model)})
    parts = open_parts(config, source, lambda records: open_start(config, records, out if resume else None), opened)
    records, held_out, start, teacher = parts.records, parts.held_out, parts.start, parts.teacher
    with joined_world(chosen) as world, ExitStack() as stack:
        config = with_chosen_precision(config, world, out if resume else None)
        if teacher:
            teacher.model.to(world.device)
        model = start.model.to(world.device)
        folder = _open_folder(stack, out, config, _run_facts(source, records, world), resume=resume, world=world)
        if world.is_main:
            write_data_use(out, trained={"train": records}, scored={"val": held_out} if held_out else {})
            log.info("%s: %s; %s on %s", source, records.summary(), start.record.preset, world.device)
            if not resume:
                _keep_start(config, out, start)
        results = RunResults(folder, start.record, config, source)
        trained = _train_within_memory(
            model,
            records,
            config=config,
            folder=folder,
            world=world,
            macs_reduction=macs_reduction(model) if config.train.schedule == "paper" else 1.0,
            resume=resume,
            evaluate=_scorer(stack, held_out, records.categories, world),
            keep_best=results.keep if held_out is not None and config.train.evaluate_every else None,
            teacher=teacher,
        )
        metrics = results.finish(trained, held_out, world, progress=progress)
        return Run(folder=out, metrics=metrics, is_main=world.is_main)


def open_parts(config: Config, source: Path, open_network: Callable[[Records], LoadedModel], opened: OpenedData | None = None) -> RunParts:
    """Open data and networks with every check that a run makes before it writes anything; a dry run makes the same ones.

    Args:
        config: Resolved settings.
        source: The data set.
        open_network: Gives the network before its first step for the training split.
        opened: What to train on and what to measure on, if they are read already.

    Raises:
        InputError: for settings or data with which no run starts.
    """
    records, held_out = opened or open_training_data(source, max_pixels=config.data.max_pixels, classes=config.data.classes)
    if held_out is None and (config.train.keep == "best" or config.train.patience):
        raise DataError(
            f"{source} has no val split to score on, which train.keep=best and train.patience need; make one with `lw-retinanet data split`"
        )
    start = open_network(records)
    teacher = open_teacher(config, start.record)
    require_statistics(start.model, config)
    return RunParts(records=records, held_out=held_out, start=start, teacher=teacher)


def require_statistics(model: RetinaNet, config: Config) -> None:
    """Refuse a run whose batch norms would see a single value of a channel: one image that is one cell at stride 32.

    Raises:
        ConfigError: With what to set instead.
    """
    shrunk = config.data.jitter[0] if config.data.augment in ("jitter", "full") else 1.0
    smallest = model.conventions.input.size * min(1.0, shrunk)
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if config.train.batch_size == 1 and smallest <= 32 and has_batch_norm:
        raise ConfigError(
            f"train.batch_size=1 with images of {smallest:.0f} pixels leaves batch norm a single value to average; "
            "set train.batch_size=2 or more, or a larger data.image_size"
        )


def _train_within_memory(model: RetinaNet, records: Records, *, config: Config, **others: Any) -> RetinaNet:
    try:
        return train(model, records, config=config, **others)
    except torch.OutOfMemoryError:
        batch, passes = config.train.batch_size, config.train.accumulate
        fewer = f"train.batch_size={batch // 2} and train.accumulate={passes * 2} take half as much for a step of as many images"
        remedy = "set a smaller data.image_size" if batch == 1 else f"{fewer}, if {batch // 2} fit"
        raise TrainingError(
            f"the device ran out of memory with train.batch_size={batch}; {remedy}, in a new run in another folder"
        ) from None


def with_chosen_precision(config: Config, world: World, resumed: Path | None) -> Config:
    """The settings with what ``train.precision: auto`` is here, by the first process; a resumed run keeps what it began with."""
    precision = config.train.precision
    if precision == "auto" and resumed is not None and (resumed / "config.yaml").is_file():
        precision = load_run_config(resumed / "config.yaml")[0]["train"].get("precision", "auto")
        if precision == "auto":  # version 0.1.0 wrote this down, and took bf16 where the device has it
            precision = "bf16" if world.first(lambda: multiplies_in_bf16(world.device)) else "fp32"
    if precision == "auto" or resumed is None:
        asked = precision
        precision = "bf16" if world.first(lambda: choose_precision(asked, world.device, "training") == "bf16") else "fp32"
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


def open_training_data(source: Path, *, max_pixels: int | None = None, classes: Sequence[str] = ()) -> tuple[Records, Records | None]:
    """Read the training split and, if there is one, the validation split, with the sizes of all images.

    Args:
        source: The data set.
        max_pixels: Most pixels of an image; None is the decoder's own limit.
        classes: Names of the only classes that are read; () reads all.

    Raises:
        DataError: if the data cannot be used, has no box to learn from or to find, or if ``val`` has none of the training classes.
        ImageError: if an image is missing, or its header cannot be read or tells another size than the annotations.
    """
    dataset = Dataset.open(source, classes=classes)
    records = dataset.ready(dataset.or_whole("train"), max_pixels=max_pixels)
    if dataset.held_out is None:
        log.warning("%s has no val split, so nothing measures the model; `lw-retinanet data split` makes one", source)
        return records, None
    held_out = dataset.ready(dataset.held_out, classes=records.categories, max_pixels=max_pixels)
    shared = records.shared_images(held_out)
    if shared:
        log.warning(
            "%d of %d validation images are training images too, so the AP is too good; keep them apart", shared, held_out.num_images
        )
    return records, held_out


def open_start(config: Config, records: Records, resumed: Path | None) -> LoadedModel:
    """The network before its first step: new, or from the model file that the settings name, or as the resumed run kept it."""
    if config.model.start is None:
        return start_from_settings(config, records.categories)
    if resumed is None:
        data = config.data
        return start_from_file(
            Path(config.model.start),
            records.categories,
            image_size=data.image_size,
            resize=data.resize,
            max_size=data.max_size,
            seed=config.train.seed,
        )
    if not (resumed / START_FILE).is_file():
        raise RunFolderError(f"{resumed} has no {START_FILE}, so it stopped before its first step; start a new run in another folder")
    return load_model(resumed / START_FILE)


def open_teacher(config: Config, student: ModelRecord) -> Teacher | None:
    """The network to learn from, if the settings name one.

    Raises:
        ConfigError: if its classes or anchors differ from the student's.
    """
    if config.train.teacher is None:
        return None
    path = find_model_file(Path(config.train.teacher))
    loaded = load_model(path)
    theirs, ours = ([category.name for category in record.categories] for record in (loaded.record, student))
    if theirs != ours:
        raise ConfigError(f"train.teacher {path} has other classes than the student, or in another order; choose a teacher with the same")
    if loaded.record.conventions.anchors != student.conventions.anchors or loaded.record.conventions.boxes != student.conventions.boxes:
        raise ConfigError(f"train.teacher {path} has other anchors than the student; choose a teacher with the same")
    return Teacher(model=loaded.model, full_head=loaded.record.switchable)


def _keep_start(config: Config, out: Path, start: LoadedModel) -> None:
    """Keep the model that a new run starts from; without one, say if the backbone has random weights."""
    if config.model.start is not None:
        save_model(out / START_FILE, start.model, start.record)
    elif config.model.backbone_weights == "none":
        log.warning("the backbone starts from random weights; model.backbone_weights=imagenet learns far faster on small data")


def _scorer(stack: ExitStack, held_out: Records | None, categories: tuple[Category, ...], world: World) -> Evaluate | None:
    """A function that scores the model during training: all processes detect, and one of its own scores, which ends with ``stack``."""
    if held_out is None:
        return None
    scoring = stack.enter_context(ScoringProcess(held_out)) if world.is_main else None

    def score(model: RetinaNet, step: int) -> Future[dict[str, Any]] | None:
        detections = detect_together(Detector.of_model(model, categories, device=world.device), held_out, world)
        return scoring.submit(detections) if scoring else None

    return score


def _run_facts(source: Path, records: Records, world: World) -> dict[str, Any]:
    """What a resumed run must find unchanged beside the settings, or is told of."""
    return {
        "data": str(source),
        "fingerprint": records.fingerprint(),
        "summary": records.summary(),
        "processes": world.size,
        "version": __version__,
        "torch": str(torch.__version__),
    }


def _open_folder(stack: ExitStack, out: Path, config: Config, run_facts: Mapping[str, Any], *, resume: bool, world: World) -> RunFolder:
    """The run folder, opened by the first process and then by the others."""
    if world.is_main:
        if resume:
            folder, earlier, earlier_facts = stack.enter_context(RunFolder.reopened(out))
            _require_same(out, earlier, earlier_facts, config, run_facts)
        else:
            folder = stack.enter_context(RunFolder.created(out, config, run_facts))
    if world.size > 1:
        dist.barrier()
    return folder if world.is_main else RunFolder(out)


def _require_same(out: Path, earlier: Config, earlier_facts: Mapping[str, Any], config: Config, run_facts: Mapping[str, Any]) -> None:
    """A resumed run is the same run: same settings (workers aside), same data, same number of processes. Other versions are told."""
    differences = []
    for section in ("model", "data", "train"):
        old, new = getattr(earlier, section).model_dump(), getattr(config, section).model_dump()
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key) and key not in NO_INFLUENCE]
        # What a run of version 0.1.0 wrote down; see with_chosen_precision and with_stride.
        keys = [key for key in keys if (key, old.get(key)) not in (("precision", "auto"), ("stride_in", "auto"))]
        differences += [f"{section}.{key}: {old.get(key)} then, {new.get(key)} now" for key in keys]
    if differences:
        raise RunFolderError(f"{out} was started with other settings ({'; '.join(differences)}); resume without changing them")
    if earlier_facts.get("fingerprint") != run_facts["fingerprint"]:
        summaries = [shown(facts.get("summary", "unknown"), most=200) for facts in (earlier_facts, run_facts)]
        counts = (
            f" ({summaries[0]} then, {summaries[1]} now)" if summaries[0] != summaries[1] else " (other names, sizes, boxes or classes)"
        )
        raise DataError(f"{out} was started on other data than {run_facts['data']} holds now{counts}; start a new run")
    if earlier_facts.get("processes") != run_facts["processes"]:
        before, now = earlier_facts.get("processes"), run_facts["processes"]
        raise RunFolderError(f"{out} was started with {before} processes, now there are {now}; resume with {before}")
    versions = [
        f"{what} {shown(earlier_facts[key])} then, {run_facts[key]} now"
        for key, what in (("version", "lw_retinanet"), ("torch", "torch"))
        if key in earlier_facts and earlier_facts[key] != run_facts[key]
    ]
    if versions:
        log.warning(
            "%s was started with other versions (%s), so the weights may differ from those of an unbroken run", out, "; ".join(versions)
        )
