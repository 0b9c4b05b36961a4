"""A training run's plan: the data checked and the settings worked out as the run itself would, and nothing written."""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from lw_retinanet.config import Config
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.loader import StepPlan, TrainingSet, make_loader
from lw_retinanet.data.records import Records
from lw_retinanet.devices import uses_bf16
from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.jobs.train import open_start, open_teacher, open_training_data
from lw_retinanet.training.distributed import World
from lw_retinanet.training.ema import make_ema
from lw_retinanet.training.optimiser import make_optimiser, trainable
from lw_retinanet.training.run_plan import RunPlan, plan_run
from lw_retinanet.training.step import accumulate_gradients
from lw_retinanet.training.step_memory import step_memory
from lw_retinanet.weights.backbone_file import guess_stride
from lw_retinanet.weights.model_file import LoadedModel

WARM_STEPS = 2  # memory is claimed and kernels are chosen in the first ones
MEASURED_STEPS = 4


def plan_training(config: Config, source: Path, *, processes: int = 1, device: torch.device, measure: bool = False) -> RunPlan:
    """What ``train`` would do with these settings and this data.

    Pretrained weights of a library are not fetched; files of weights, start and teacher are read and checked as in the run.

    Args:
        config: settings; the recipe's values are filled in.
        source: data set.
        processes: one a GPU.
        device: that the run will compute on; decides ``train.precision: auto``.
        measure: run a few real steps of one process on ``device``, in memory, and derive the time from them.

    Raises:
        InputError: for settings or data with which the run would not start.
    """
    config = config.resolved()
    records, held_out = open_training_data(source)
    start = _planned_start(config, records, measure=measure)
    teacher = open_teacher(config, start.record)
    guide = teacher.model if teacher else None
    full_head = teacher is not None and teacher.record.switchable
    plan = plan_run(
        config, start.model, records.sizes_hw, name=start.record.preset, processes=processes, teacher=guide, teacher_full_head=full_head
    )
    use_bf16 = uses_bf16(config.train.precision, device)
    memory = step_memory(
        start.model,
        config=config.train,
        size_hw=plan.largest_hw,
        boxes_per_image=int(np.diff(records.offsets).max()),
        processes=processes,
        use_bf16=use_bf16,
        teacher=guide,
        teacher_full_head=full_head,
    )
    parts = {"train": records, **({"val": held_out} if held_out is not None else {})}
    return replace(
        plan,
        data={split: _counts(part) for split, part in parts.items()},
        precision="bf16" if use_bf16 else "fp32",
        memory=memory,
        images_per_second=_images_per_second(config, records, start, teacher, device) if measure else None,
    )


def _planned_start(config: Config, records: Records, *, measure: bool) -> LoadedModel:
    """The run's network, without weights that would have to be fetched, and without any where none will be read or run."""
    settings = config.model
    if settings.start is not None or settings.backbone_weights not in ("none", "imagenet"):
        return open_start(config, records, None)
    stride_in = guess_stride(settings.backbone_weights) if settings.stride_in == "auto" else settings.stride_in
    bare = config.model_copy(update={"model": settings.model_copy(update={"backbone_weights": "none", "stride_in": stride_in})})
    with nullcontext() if measure else torch.device("meta"):
        return open_start(bare, records, None)


def _counts(records: Records) -> dict[str, int]:
    return {"images": records.num_images, "boxes": records.num_boxes, "classes": len(records.categories)}


def _images_per_second(config: Config, records: Records, start: LoadedModel, teacher: LoadedModel | None, device: torch.device) -> float:
    """Of one process: loading, augmentation, forward, backward and optimiser, over a few steps after warming up."""
    settings, model, world = config.train, start.model.to(device), World(device=device)
    rule = model.conventions.input
    plan = StepPlan(
        sizes_hw=records.sizes_hw,
        config=config.data,
        rule=rule,
        seed=settings.seed,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        last_step=WARM_STEPS + MEASURED_STEPS,
    )
    model.backbone.freeze(settings.freeze or 0)
    model.train().to(memory_format=torch.channels_last)
    optimiser = make_optimiser(model, settings, plan.images_per_step)
    ema = make_ema(model, settings.ema) if settings.ema else None
    if teacher:
        teacher.model.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    dataset = TrainingSet(records, usable=usable(records), seed=settings.seed, config=config.data, rule=rule)
    batches = iter(make_loader(dataset, plan, workers=config.data.workers, pin=device.type == "cuda"))
    started = 0.0
    for step in range(WARM_STEPS + MEASURED_STEPS):
        if step == WARM_STEPS:
            started = time.monotonic()
        micro_batches = []
        for _ in range(settings.accumulate):
            batch = next(batches)
            if isinstance(batch, LwRetinaNetError):
                raise batch
            micro_batches.append(batch)
        accumulate_gradients(
            model,
            micro_batches,
            config=settings,
            conventions=model.conventions,
            world=world,
            use_bf16=uses_bf16(settings.precision, device),
            teacher=teacher.model if teacher else None,
            teacher_full_head=teacher is not None and teacher.record.switchable,
        )
        nn.utils.clip_grad_norm_(trainable(model), settings.clip or float("inf"))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if ema:
            ema.update_parameters(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return MEASURED_STEPS * plan.images_per_step / (time.monotonic() - started)
