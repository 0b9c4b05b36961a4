"""What a training run would do: its data is checked and its settings are worked out as in the run itself, and nothing is written."""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import waiting_for
from lw_retinanet.jobs.train import open_parts, open_start
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.distributed import World
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.run_plan import RunPlan, plan_run
from lw_retinanet.training.step import Teacher
from lw_retinanet.training.step_memory import step_memory
from lw_retinanet.training.trainer import Trainer
from lw_retinanet.weights.create import with_stride
from lw_retinanet.weights.model_file import LoadedModel

WARM_STEPS = 2  # memory is claimed and kernels are chosen in the first ones
MEASURED_STEPS = 4


def plan_training(
    config: Config, source: Path, *, out: Path | None = None, processes: int = 1, device: torch.device, measure: bool = False
) -> RunPlan:
    """Work out what a training with these settings and this data would do.

    Pretrained weights of a library are not downloaded. Files of backbone weights, start and teacher are read and checked as in the run.

    Args:
        config: Settings; the recipe's values are filled in.
        source: Dataset.
        out: Folder that the run would get; None does not look at it.
        processes: Number of processes, one a GPU.
        device: Device that the run will use; decides ``train.precision: auto``.
        measure: Whether to run a few real steps of one process on ``device``, in memory, and derive the duration from them.

    Raises:
        InputError: for settings or data with which the run would not start.
    """
    config = config.resolved()
    if out is not None:
        RunFolder.require_new(out)
    opened = open_parts(config, source, lambda records: _planned_start(config, records, measure=measure))
    records, start, teacher = opened.records, opened.start, opened.teacher
    plan = plan_run(config, start.model, records.sizes_hw, name=start.record.preset, processes=processes, teacher=teacher)
    use_bf16 = choose_precision(config.train.precision, device, "training") == "bf16"
    memory = step_memory(
        start.model,
        config=config.train,
        size_hw=plan.largest_hw,
        boxes_per_image=int(np.diff(records.offsets).max()),
        processes=processes,
        use_bf16=use_bf16,
        teacher=teacher,
    )
    parts = {"train": records, **({"val": opened.held_out} if opened.held_out is not None else {})}
    return replace(
        plan,
        data={split: _counts(part) for split, part in parts.items()},
        precision="bf16" if use_bf16 else "fp32",
        memory=memory,
        images_per_second=_images_per_second(config, records, start.model, teacher, device) if measure else None,
    )


def _planned_start(config: Config, records: Records, *, measure: bool) -> LoadedModel:
    """The network of the run, without weights that would be downloaded; on ``meta`` if no step is measured and no file is checked."""
    settings = config.model
    if settings.start is not None or settings.backbone_weights not in ("none", "imagenet"):
        return open_start(config, records, None)
    bare = config.model_copy(update={"model": with_stride(settings).model_copy(update={"backbone_weights": "none"})})
    with nullcontext() if measure else torch.device("meta"):
        return open_start(bare, records, None)


def _counts(records: Records) -> dict[str, int]:
    return {"images": records.num_images, "boxes": records.num_boxes, "classes": len(records.categories)}


def _images_per_second(config: Config, records: Records, model: RetinaNet, teacher: Teacher | None, device: torch.device) -> float:
    """Speed of one process: loading, augmentation and the whole step of the training loop, over a few steps after warming up."""
    if teacher:
        teacher.model.to(device)
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": WARM_STEPS + MEASURED_STEPS})})
    trainer = Trainer(model.to(device), records, config=short, world=World(device=device), teacher=teacher)
    model.train()
    started = 0.0
    for batches in trainer.batches():
        trainer.step(batches)
        if trainer.done == WARM_STEPS:
            started = time.monotonic()
    waiting_for(device)()
    return MEASURED_STEPS * trainer.plan.images_per_step / (time.monotonic() - started)
