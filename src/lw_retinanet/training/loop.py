"""The training loop: plain torch, one process or many, and the same run however often it is interrupted."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel
from torch.utils.tensorboard import SummaryWriter

from lw_retinanet.config import Config
from lw_retinanet.data.loader import StepPlan, TrainingSet, make_loader
from lw_retinanet.data.records import Records
from lw_retinanet.devices import uses_bf16
from lw_retinanet.errors import LwRetinaNetError, RunFolderError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch
from lw_retinanet.training.checkpoint import Checkpoint, load_latest, load_optimiser, optimiser_tensors, save_checkpoint
from lw_retinanet.training.distributed import World
from lw_retinanet.training.ema import make_ema
from lw_retinanet.training.optimiser import make_optimiser, set_rates, step_unless, trainable
from lw_retinanet.training.progress import TrainingProgress, training_progress
from lw_retinanet.training.reading import Reading
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.schedule import paper_schedule, rate_factor
from lw_retinanet.training.scores import Score, Scores
from lw_retinanet.training.step import LOSS_PARTS, accumulate_gradients, require_finite

Evaluate = Callable[[RetinaNet, int], Score]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Args:
    records: with known sizes.
    usable: (B,) bool boxes to train on.
    """

    records: Records
    usable: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Issued:
    """A step that the device was told to do; ``reading`` is of its losses, positives and gradient norm."""

    step: int
    rate: float
    images: list[str]
    reading: Reading


def total_steps(config: Config, plan_steps_per_epoch: int, images_per_step: int, macs_reduction: float) -> int:
    """Length of the run in steps.

    ``schedule: paper`` multiplies epochs by the MACs reduction, and counts ``base_steps`` by :func:`paper_schedule`.
    """
    if config.train.steps is not None:
        return config.train.steps
    if config.train.base_steps is not None:
        base = config.train.base_steps
        return paper_schedule(images_per_step=images_per_step, macs_reduction=macs_reduction, base_iterations=base).iterations
    steps = config.train.epochs * plan_steps_per_epoch
    if config.train.schedule == "paper":
        # At equal epochs the number of iterations already follows the batch size; only the reduction remains to be applied.
        return paper_schedule(images_per_step=16, macs_reduction=macs_reduction, base_iterations=steps).iterations
    return steps


def train(
    model: RetinaNet,
    data: TrainingData,
    *,
    config: Config,
    folder: RunFolder,
    world: World,
    macs_reduction: float = 1.0,
    resume: bool = False,
    evaluate: Evaluate | None = None,
    teacher: RetinaNet | None = None,
    teacher_full_head: bool = False,
) -> RetinaNet:
    """Train a model.

    Args:
        model: on ``world.device``; every process must hold the same weights.
        data: training pictures and boxes.
        config: resolved settings.
        folder: for log and checkpoints; only the first process writes.
        world: processes.
        macs_reduction: for ``schedule: paper``.
        resume: go on from the newest checkpoint of the folder; before the first one, from the weights of ``model``, as at the start.
        evaluate: called with the averaged model and the step every ``train.evaluate_every`` epochs, its numbers are logged. It may give
            the promise of them and compute them meanwhile; only the model is not its own any more once it has returned. A checkpoint waits
            for the scores of all steps before its own, and a run that goes on from a step makes up for a score that is missing there.
        teacher: a network on ``world.device`` whose answers are learned beside the labels, weighted by ``train.distill_weight``; it has the
            model's anchors and classes. It is put into evaluation mode, stays as it is, and is in no checkpoint: resuming needs it again.
        teacher_full_head: of a lightened teacher, the head that it had before teaches.

    Returns:
        The trained model: the moving average of the weights if there is one.

    Raises:
        TrainingError: if loss or gradient is not finite.
        RunFolderError: if no checkpoint of a resumed run is whole, or it has done more steps than asked for.
    """
    settings, rule = config.train, model.conventions.input
    checkpoint = load_latest(folder.checkpoints) if resume else None
    first_step = checkpoint.step if checkpoint else 0
    if resume and world.is_main:
        folder.trim_log(first_step)

    def step_plan(last_step: int) -> StepPlan:
        return StepPlan(
            sizes_hw=data.records.sizes_hw,
            config=config.data,
            rule=rule,
            seed=settings.seed,
            batch_size=settings.batch_size,
            accumulate=settings.accumulate,
            rank=world.rank,
            world=world.size,
            first_step=first_step,
            last_step=last_step,
        )

    plan = step_plan(0)
    steps = total_steps(config, plan.steps_per_epoch, plan.images_per_step, macs_reduction)
    plan = step_plan(steps)
    if first_step > steps:
        raise RunFolderError(f"{folder.path} has done {first_step} steps, more than the {steps} asked for")

    model.backbone.freeze(settings.freeze or 0)
    model.to(memory_format=torch.channels_last)
    optimiser = make_optimiser(model, settings, plan.images_per_step)
    ema = make_ema(model, settings.ema) if settings.ema else None
    if checkpoint:
        _restore(checkpoint, model, ema, optimiser)
    wrapped: nn.Module = model
    if world.size > 1:
        wrapped = DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)
    if teacher:
        teacher.eval().to(memory_format=torch.channels_last)
    use_bf16 = uses_bf16(settings.precision, world.device)
    dataset = TrainingSet(data.records, usable=data.usable, seed=settings.seed, config=config.data, rule=rule)
    loader = make_loader(dataset, plan, workers=config.data.workers, pin=world.device.type == "cuda")
    batches = _batches(iter(loader), settings.accumulate)
    learned = trainable(model)
    schedule = settings.schedule or "cosine"
    save_every = settings.save_every or plan.steps_per_epoch
    writer = SummaryWriter(str(folder.tensorboard), purge_step=first_step + 1) if world.is_main else None
    score_every = settings.evaluate_every * plan.steps_per_epoch

    def write(entry: dict[str, Any]) -> None:
        folder.log(entry)
        _write_scalars(writer, entry)

    scores = Scores(write)

    def is_scored(done: int) -> bool:
        """At the end the caller evaluates."""
        return bool(score_every) and done % score_every == 0 and 0 < done < steps

    def score(done: int) -> None:
        if evaluate and world.is_main:
            scores.add(done, evaluate(_averaged(model, ema), done))
            model.train()

    def account(issued: _Issued, progress: TrainingProgress) -> None:
        """Check and log a step, which the device may have yet to finish."""
        *losses, positives, norm = issued.reading.numbers()
        require_finite(losses, norm, step=issued.step, images=issued.images)
        if not world.is_main:
            return
        entry = {
            "step": issued.step,
            "epoch": (issued.step - 1) // plan.steps_per_epoch,
            "loss": sum(losses),
            **dict(zip(LOSS_PARTS[: len(losses)], losses, strict=True)),
            "positives": int(positives),
            "gradient_norm": norm,
            "rate": issued.rate,
            "seconds": round(time.monotonic() - started, 3),
        }
        write(entry)
        progress.update(issued.step, loss=sum(losses), rate=issued.rate)

    waiting: deque[_Issued] = deque()
    is_refused = torch.zeros((), device=world.device)
    started = time.monotonic()
    try:
        if is_scored(first_step) and not folder.has_score(first_step):  # what was being computed when the run was killed
            score(first_step)
        model.train()
        with training_progress(
            total_steps=steps, first_step=first_step, images_per_step=plan.images_per_step, shown=world.is_main
        ) as progress:
            for step in range(first_step, steps):
                set_rates(optimiser, rate_factor(step, total_steps=steps, warmup_steps=settings.warmup_steps or 0, schedule=schedule))
                micro_batches = next(batches)
                result = accumulate_gradients(
                    wrapped,
                    micro_batches,
                    config=settings,
                    conventions=model.conventions,
                    world=world,
                    use_bf16=use_bf16,
                    teacher=teacher,
                    teacher_full_head=teacher_full_head,
                )
                norm = nn.utils.clip_grad_norm_(learned, settings.clip or float("inf"))
                outcome = torch.cat([result.losses, result.num_positive[None].float(), norm[None].float()])
                # From the first step that is not finite on, weights stay as they are; the host learns of it a step later.
                is_refused = torch.maximum(is_refused, (~outcome.isfinite()).any().float())
                step_unless(optimiser, is_refused)
                optimiser.zero_grad(set_to_none=True)
                if ema:
                    ema.update_parameters(model)
                done, is_saved = step + 1, (step + 1) % save_every == 0 or step + 1 == steps
                names = [data.records.file_names[index] for batch in micro_batches for index in batch.indices]
                rate = optimiser.param_groups[0]["lr"]
                waiting.append(_Issued(step=done, rate=rate, images=names, reading=Reading(outcome)))
                # Before the checkpoint that goes without them, and before the last step, whose line ends the log.
                scores.write_arrived(wait_before=done if is_saved else 0)
                # The device computes a step while the host prepares the next one.
                while len(waiting) > (0 if is_saved or is_scored(done) else 1):
                    account(waiting.popleft(), progress)
                if is_scored(done):
                    score(done)
                # After the evaluation has begun: a run killed in between makes up for it, as resuming drops what was logged after the
                # checkpoint, and looks for the score of the checkpoint's own step.
                if is_saved and world.is_main:
                    save_checkpoint(folder.checkpoints, _snapshot(done, model, ema, optimiser))
    finally:
        scores.write_arrived()
        if writer:
            writer.close()
    return _averaged(model, ema)


def _averaged(model: RetinaNet, ema: AveragedModel | None) -> RetinaNet:
    return ema.module if ema else model  # type: ignore[return-value]


def _batches(loader: "Iterator[Batch | LwRetinaNetError]", accumulate: int) -> Iterator[Sequence[Batch]]:
    while True:
        step: list[Batch] = []
        while len(step) < accumulate:
            batch = next(loader)
            if isinstance(batch, LwRetinaNetError):
                raise batch
            step.append(batch)
        yield step


def _snapshot(step: int, model: RetinaNet, ema: AveragedModel | None, optimiser: Optimizer) -> Checkpoint:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"optimiser.{name}": tensor for name, tensor in optimiser_tensors(optimiser).items()}
    if ema:
        tensors |= {f"ema.{name}": tensor for name, tensor in ema.state_dict().items()}
    return Checkpoint(step=step, tensors=tensors, notes={})


def _restore(checkpoint: Checkpoint, model: RetinaNet, ema: AveragedModel | None, optimiser: Optimizer) -> None:
    model.load_state_dict(checkpoint.part("model"))
    load_optimiser(optimiser, checkpoint.part("optimiser"))
    if ema:
        ema.load_state_dict(checkpoint.part("ema"))


def _write_scalars(writer: SummaryWriter | None, entry: dict[str, Any]) -> None:
    if writer:
        for name, value in entry.items():
            if name not in ("step", "epoch", "seconds") and isinstance(value, int | float):
                writer.add_scalar(name, value, entry["step"])
