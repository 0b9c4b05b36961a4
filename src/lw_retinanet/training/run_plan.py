"""The plan of a training run, worked out before it starts: length, rates, arithmetic, memory and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.config import Config
from lw_retinanet.counting.macs import STAGES, count_blocks
from lw_retinanet.counting.profile import profile, with_head
from lw_retinanet.data.augment import plan_geometry
from lw_retinanet.data.loader import StepPlan
from lw_retinanet.data.preprocess import resized_size
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training.checkpoint import KEEP
from lw_retinanet.training.optimiser import peak_rate
from lw_retinanet.training.schedule import run_length, step_positions, warmup_length
from lw_retinanet.training.step import Teacher
from lw_retinanet.training.step_memory import StepMemory, kept_bytes
from lw_retinanet.training.trainer import step_plan

TRAINED = 3  # passes through a trained layer: forward, gradient of its input, gradient of its weights; each costs as many MACs
FROZEN = 1  # a frozen stage runs forward only
_JSON = (
    *("model", "data", "params", "size_hw", "largest_hw", "macs", "macs_reduction", "processes", "batch_size", "accumulate"),
    *("images_per_step", "steps_per_epoch", "steps", "epochs", "optimiser", "rate", "schedule", "rate_falls_at", "warmup_steps"),
    *("macs_per_image", "training_macs_per_image", "total_macs", "precision", "memory", "checkpoint_bytes", "images_per_second", "hours"),
)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """The numbers of a run.

    Args:
        model: Name of the model.
        processes: Number of processes, one a GPU.
        batch_size: Images of a forward pass of one process.
        accumulate: Forward passes of a step.
        steps_per_epoch: Whole steps in one pass over the images.
        steps: Length of the run.
        optimiser: ``sgd`` or ``adamw``.
        rate: Peak learning rate.
        schedule: ``cosine``, ``steps`` or ``paper``.
        rate_falls_at: Steps at which the rate falls to a tenth and to a hundredth; empty for ``cosine``.
        warmup_steps: Steps before the rate is at its peak; at most a quarter of the run.
        macs_reduction: MACs with RetinaNet's own head over those of the model; the paper's schedule is longer by this factor.
        params: Parameters of the model.
        size_hw: Commonest padded size of the first epoch, which is planned as the run will do it.
        largest_hw: Largest padded size.
        macs: MACs of a forward pass of one image of ``size_hw``.
        macs_per_image: MACs of a forward pass of one image, mean over the first epoch.
        training_macs_per_image: MACs of forward and backward and of the teacher's forward pass, mean over the first epoch. Frozen stages
            count once, everything else three times.
        checkpoint_bytes: Size of one checkpoint; a run keeps two.
        data: Number of images, boxes and classes of ``train`` and ``val``.
        precision: ``bf16`` or ``fp32``, on the device that was asked about.
        memory: Memory of one process at ``largest_hw``; None if it was not worked out.
        images_per_second: Speed of one process; None if it was not measured.
    """

    model: str
    processes: int
    batch_size: int
    accumulate: int
    steps_per_epoch: int
    steps: int
    optimiser: str
    rate: float
    schedule: str
    rate_falls_at: tuple[int, ...]
    warmup_steps: int
    macs_reduction: float
    params: int
    size_hw: tuple[int, int]
    largest_hw: tuple[int, int]
    macs: int
    macs_per_image: float
    training_macs_per_image: float
    checkpoint_bytes: int
    data: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    precision: str = "fp32"
    memory: StepMemory | None = None
    images_per_second: float | None = None

    @property
    def images_per_step(self) -> int:
        """Images of a step over all processes."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def epochs(self) -> float:
        """Length of the run in passes over the images."""
        return self.steps / self.steps_per_epoch

    @property
    def total_macs(self) -> float:
        """MACs of all training steps of all processes."""
        return self.training_macs_per_image * self.images_per_step * self.steps

    @property
    def hours(self) -> float | None:
        """Duration of all steps at the measured speed; None if it was not measured."""
        return None if self.images_per_second is None else self.hours_at(self.images_per_second)

    def hours_at(self, images_per_second: float) -> float:
        """Duration of all steps if every process trains on so many images a second."""
        return self.steps * self.batch_size * self.accumulate / images_per_second / 3600

    def as_dict(self) -> dict[str, Any]:
        """Plain values; ``memory`` in bytes of one process."""
        return {name: getattr(self, name) for name in _JSON} | {"memory": self.memory.as_dict() if self.memory else None}

    def lines(self) -> list[str]:
        """The plan for people, one fact a line."""
        rows = [(split, _counts(numbers)) for split, numbers in self.data.items()]
        common, largest = (f"{height} x {width}" for height, width in (self.size_hw, self.largest_hw))
        reduction = f", {self.macs_reduction:.3f}x less than with RetinaNet's own head" if self.macs_reduction > 1 else ""
        rows.append(("model", f"{self.model}, {self.params / 1e6:.2f} M parameters"))
        rows.append(("input", f"{common} pixels mostly, {largest} at most, padding included"))
        rows.append(("forward", f"{self.macs / 1e9:.2f} GMAC an image of {common}{reduction}"))
        parts = f"{_counted(self.processes, 'process', 'processes')} x {self.batch_size} images"
        parts += f" x {self.accumulate} forward passes" if self.accumulate > 1 else ""
        rows.append(("step", f"{_counted(self.images_per_step, 'image', 'images')}: {parts}"))
        rows.append(("length", f"{self.steps:,} steps, {self.epochs:.2f} epochs of {_counted(self.steps_per_epoch, 'step', 'steps')}"))
        rows.append(("rate", f"{self.optimiser}, {self.rate:g} after {self.warmup_steps:,} steps of warm-up, {self._fall()}"))
        rows.append(
            (
                "arithmetic",
                f"{self.training_macs_per_image / 1e9:.1f} GMAC an image forward and backward, {self.total_macs / 1e15:,.4g} PMAC in all",
            )
        )
        if self.memory:
            total, step = self.memory.total, self.memory.step
            parts = f"{_giga(total - step)} for weights and optimiser, {_giga(step)} for a step of the largest input"
            rows.append(("memory", f"{_giga(total)} a process in {self.precision}: {parts}; libraries need some more"))
        rows.append(("disk", f"{_giga(self.checkpoint_bytes)} a checkpoint, the newest {KEEP} are kept"))
        if self.images_per_second is not None:
            hours = self.hours_at(self.images_per_second)
            duration = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
            rows.append(("time", f"{duration} at {self.images_per_second:.2f} images/s a process, measured here; evaluation comes on top"))
        width = max(len(name) for name, _ in rows)
        return [f"{name:<{width}}  {text}" for name, text in rows]

    def _fall(self) -> str:
        if self.rate_falls_at:
            first, second = self.rate_falls_at
            return f"a tenth from step {first:,}, a hundredth from step {second:,}"
        return "falling to 0 as a cosine"


def plan_run(
    config: Config,
    model: RetinaNet,
    sizes_hw: NDArray[np.int32],
    *,
    name: str,
    processes: int = 1,
    teacher: Teacher | None = None,
) -> RunPlan:
    """Work out a run from its settings, as the training loop will.

    Args:
        config: Resolved settings.
        model: Model to be trained, without or with weights; the ``meta`` device will do.
        sizes_hw: (I, 2) sizes of the training images.
        name: Name of the model.
        processes: Number of processes, one a GPU.
        teacher: Network to learn from beside the labels.
    """
    settings = config.train
    plan = step_plan(config, sizes_hw, model, processes=processes)
    reduction = macs_reduction(model)
    steps = run_length(settings, steps_per_epoch=plan.steps_per_epoch, images_per_step=plan.images_per_step, macs_reduction=reduction)
    schedule = settings.schedule or "cosine"
    inputs, counts = np.unique(input_sizes(plan), axis=0, return_counts=True)
    sizes = [(int(height), int(width)) for height, width in inputs]
    costs = [_step_macs(model, size, STAGES[: settings.freeze or 0], teacher) for size in sizes]
    forward, training = ([cost[which] for cost in costs] for which in (0, 1))
    commonest = int(counts.argmax())
    return RunPlan(
        model=name,
        processes=processes,
        batch_size=settings.batch_size,
        accumulate=settings.accumulate,
        steps_per_epoch=plan.steps_per_epoch,
        steps=steps,
        optimiser=settings.optimiser or "adamw",
        rate=peak_rate(settings, plan.images_per_step),
        schedule=schedule,
        rate_falls_at=() if schedule == "cosine" else step_positions(steps),
        warmup_steps=warmup_length(settings, steps),
        macs_reduction=reduction,
        params=sum(parameter.numel() for parameter in model.parameters()),
        size_hw=sizes[commonest],
        largest_hw=max(sizes, key=lambda size: size[0] * size[1]),
        macs=forward[commonest],
        macs_per_image=float(np.average(forward, weights=counts)),
        training_macs_per_image=float(np.average(training, weights=counts)),
        checkpoint_bytes=kept_bytes(model, settings).checkpoint,
    )


def _step_macs(model: RetinaNet, size_hw: tuple[int, int], frozen: Sequence[str], teacher: Teacher | None) -> tuple[int, int]:
    """MACs of one image: of the forward pass, and of all that a training step does."""
    blocks = {block: cost.macs for block, cost in count_blocks(model, size_hw).items()}
    training = sum(macs * (FROZEN if block in frozen else TRAINED) for block, macs in blocks.items())
    if teacher:
        network = with_head(teacher.model, HeadPlan()) if teacher.full_head else teacher.model
        training += sum(cost.macs for cost in count_blocks(network, size_hw).values())
    return sum(blocks.values()), training


def macs_reduction(model: RetinaNet) -> float:
    """MACs of the network with RetinaNet's own head over those of the model, at its input size; at least 1."""
    side = model.conventions.input.size
    counted = profile(model, name="model", size_hw=(side, side))
    return max(1.0, counted.original_macs / counted.macs)


def input_sizes(plan: StepPlan) -> NDArray[np.int64]:
    """(steps_per_epoch, 2) padded size of each step of the first epoch, as :meth:`StepPlan.keys` gives it."""
    if plan.config.augment in ("jitter", "full"):
        resized = np.array(
            [
                plan_geometry((int(height), int(width)), seed=plan.seed, epoch=0, index=index, config=plan.config, rule=plan.rule).size_hw
                for index, (height, width) in enumerate(plan.sizes_hw)
            ]
        )
    else:
        # A flip changes no size, so each size is worked out once.
        originals, which = np.unique(plan.sizes_hw, axis=0, return_inverse=True)
        resized = np.array([resized_size((int(height), int(width)), plan.rule) for height, width in originals])[which.reshape(-1)]
    multiple = plan.rule.pad_multiple
    return -(-resized[plan.order(0)].max(axis=1) // multiple) * multiple


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{number:,} {what}" for what, number in numbers.items())


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _giga(number: int) -> str:
    return f"{number / 1e9:.2f} GB"
