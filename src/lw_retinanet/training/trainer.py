"""A training in progress: all that an optimiser step reads and changes, and the step itself."""

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lw_retinanet.config import Config
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.loader import StepPlan, TrainingSet
from lw_retinanet.data.read_batches import read_batches
from lw_retinanet.data.records import Records
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.errors import RunFolderError, shown
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch
from lw_retinanet.training.checkpoint import Checkpoint, load_optimiser, optimiser_tensors
from lw_retinanet.training.distributed import World
from lw_retinanet.training.ema import MovingAverage
from lw_retinanet.training.network_graphs import NetworkGraphs
from lw_retinanet.training.optimiser import Optimisation, make_optimiser, scheduled_rate
from lw_retinanet.training.schedule import average_decay, run_length, warmup_length
from lw_retinanet.training.step import Teacher, accumulate_gradients

log = logging.getLogger(__name__)


class PendingNumbers:
    """Numbers on their way from the device to the host, which does not wait for them until it asks.

    Args:
        values: (n,) tensor on any device.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.detach().to("cpu", non_blocking=True)  # from a GPU into page-locked memory
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def numbers(self) -> list[float]:
        """The values. Waits for the work that the device had been given before this copy, and for nothing after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values.tolist()]


class StepNumbers(NamedTuple):
    """What one step found. The losses are in the order of ``LOSS_PARTS``; the norm is that of the gradient before clipping.

    ``stops`` is the number of processes that a signal had asked to end.
    """

    losses: list[float]
    num_positive: int
    gradient_norm: float
    stops: int


@dataclass(frozen=True, kw_only=True)
class IssuedStep:
    """A step that the device was told to do, and may have yet to finish.

    Args:
        step: Number of the step, from 1.
        rate: Its learning rate.
        image_indices: Rows of its images in the records.
        pending: Its losses, the number of positive anchors, the norm of the gradient before clipping, and the number of processes to end.
    """

    step: int
    rate: float
    image_indices: tuple[int, ...]
    pending: PendingNumbers

    def numbers(self) -> StepNumbers:
        """Its numbers, of which some are not finite if it has failed. Waits for the device to finish the step."""
        *losses, positives, norm, stops = self.pending.numbers()
        return StepNumbers(losses, int(positives) if math.isfinite(positives) else 0, norm, int(stops))


class Trainer:
    """Trains a model step by step.

    Args:
        model: Network on ``world.device``; every process must hold the same weights. It is trained in place.
        records: Training images, with known sizes, and their boxes.
        config: Resolved settings.
        world: Processes that train together.
        macs_reduction: MACs of the full model over those of this one, for ``schedule: paper``.
        teacher: Network on ``world.device`` to learn from beside the labels. It is put into evaluation mode, and is in no checkpoint.

    Attributes:
        done: Number of steps taken, which is also the position in the data.
        total_steps: Length of the run.
    """

    def __init__(
        self,
        model: RetinaNet,
        records: Records,
        *,
        config: Config,
        world: World,
        macs_reduction: float = 1.0,
        teacher: Teacher | None = None,
    ) -> None:
        settings = config.train
        self.model, self.records, self.config, self.world, self.teacher = model, records, config, world, teacher
        self.done = 0
        self.plan = step_plan(config, records.sizes_hw, model, rank=world.rank, processes=world.size)
        self.total_steps = run_length(
            settings,
            steps_per_epoch=self.plan.steps_per_epoch,
            images_per_step=self.plan.images_per_step,
            macs_reduction=macs_reduction,
        )
        self.use_bf16 = choose_precision(settings.precision, world.device, "training") == "bf16"
        model.backbone.freeze(settings.freeze or 0)
        model.to(memory_format=torch.channels_last)
        optimiser = make_optimiser(model, settings, self.plan.images_per_step)
        self.optimisation = Optimisation(
            model,
            optimiser,
            set_rate=scheduled_rate(optimiser, settings, self.total_steps),
            clip=settings.clip or float("inf"),
            average=MovingAverage(model, average_decay(settings, self.total_steps)) if settings.ema else None,
        )
        self._wrapped: nn.Module = model
        if world.size > 1:
            self._wrapped = DistributedDataParallel(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)
        is_alone = world.size == 1 and NetworkGraphs.fits(model)
        self._network = NetworkGraphs(model, use_bf16=self.use_bf16) if is_alone else None
        if teacher:
            teacher.model.eval().to(memory_format=torch.channels_last)
        self._has_diverged = torch.zeros((), device=world.device)
        warmup, asked = warmup_length(settings, self.total_steps), settings.warmup_steps or 0
        if warmup < asked and world.is_main:
            log.info("warm-up takes %d steps instead of %d, a quarter of the run's %d", warmup, asked, self.total_steps)

    @property
    def averaged(self) -> RetinaNet:
        """The moving average of the weights if there is one, else the model."""
        average = self.optimisation.average
        return average.module if average else self.model  # type: ignore[return-value]

    def batches(self) -> Generator[Sequence[Batch]]:
        """The micro-batches of each step that is left, in the same order however often the run is interrupted.

        Loader workers live until the iterator is closed or at its end.

        Raises:
            LwRetinaNetError: for an image that cannot be used.
            TrainingError: if a loader worker has died or hangs.
        """
        config, records, rule = self.config, self.records, self.model.conventions.input
        dataset = TrainingSet(records, usable=usable(records), seed=config.train.seed, config=config.data, rule=rule)
        plan = replace(self.plan, first_step=self.done, end_step=self.total_steps)
        pin = self.world.device.type == "cuda"
        batches = read_batches(dataset, plan, workers=config.data.workers, pin=pin, timeout=config.data.read_timeout)
        return _steps(batches, config.train.accumulate)

    def step(self, batches: Sequence[Batch], *, stops: bool = False) -> IssuedStep:
        """Take one step; the model must be in training mode. The host does not wait for the device.

        If the losses or the gradient of a step are not finite, this step and all later ones leave the weights as they are.

        Args:
            batches: The micro-batches of the step.
            stops: Whether this process was asked to end; the numbers of the step tell all processes.
        """
        optimisation = self.optimisation
        optimisation.set_rate(self.done)
        result = accumulate_gradients(
            self._wrapped,
            batches,
            config=self.config.train,
            conventions=self.model.conventions,
            world=self.world,
            use_bf16=self.use_bf16,
            teacher=self.teacher,
            network=self._network,
        )
        norm = optimisation.clip_gradients()
        outcome = torch.cat([result.losses, result.num_positive[None].float(), norm[None].float()])
        self._has_diverged = torch.maximum(self._has_diverged, (~outcome.isfinite()).any().float())
        optimisation.apply(has_diverged=self._has_diverged)
        outcome = torch.cat([outcome, self.world.sum(torch.full((1,), float(stops), device=outcome.device))])
        self.done += 1
        return IssuedStep(
            step=self.done,
            rate=optimisation.optimiser.param_groups[0]["lr"],
            image_indices=tuple(index for batch in batches for index in batch.indices),
            pending=PendingNumbers(outcome),
        )

    def snapshot(self) -> Checkpoint:
        """All that :meth:`restore` needs to go on from here."""
        optimisation = self.optimisation
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors |= {f"optimiser.{name}": tensor for name, tensor in optimiser_tensors(optimisation.optimiser).items()}
        if optimisation.average:
            tensors |= {f"ema.{name}": tensor for name, tensor in optimisation.average.state_dict().items()}
        return Checkpoint(step=self.done, tensors=tensors, notes={})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a snapshot of a run with the same settings.

        Raises:
            RunFolderError: if it is none.
        """
        self.done = checkpoint.step
        try:
            self.model.load_state_dict(checkpoint.part("model"))
            load_optimiser(self.optimisation.optimiser, checkpoint.part("optimiser"))
            if self.optimisation.average:
                self.optimisation.average.load_state_dict(checkpoint.part("ema"))
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            reason = shown(" ".join(str(error).split()), most=300)
            raise RunFolderError(
                f"checkpoint {checkpoint.path} does not fit the settings of its run ({reason}); restore config.yaml if it was changed, "
                "or delete this checkpoint and resume from the one before"
            ) from None


def step_plan(config: Config, sizes_hw: NDArray[np.int32], model: RetinaNet, *, rank: int = 0, processes: int = 1) -> StepPlan:
    """The plan of a run's steps, with an empty range of steps. :meth:`Trainer.batches` fills in the range.

    Args:
        config: Resolved settings.
        sizes_hw: (I, 2) sizes of the training images.
        model: Its conventions give the rule for the input size.
        rank: Number of this process.
        processes: Number of processes.
    """
    settings = config.train
    return StepPlan(
        sizes_hw=sizes_hw,
        config=config.data,
        rule=model.conventions.input,
        seed=settings.seed,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        rank=rank,
        processes=processes,
        end_step=0,
    )


def _steps(batches: Generator[Batch], accumulate: int) -> Generator[Sequence[Batch]]:
    with closing(batches):
        while step := tuple(islice(batches, accumulate)):
            yield step
