"""The gradients of one optimiser step: micro-batches in, gradients and losses out."""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lw_retinanet.config import TrainConfig
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.preprocess import normalise
from lw_retinanet.errors import TrainingError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Predictions
from lw_retinanet.training.distillation import distillation
from lw_retinanet.training.distributed import World
from lw_retinanet.training.matching import AnchorMatches
from lw_retinanet.training.objective import assign, label_losses

LOSS_PARTS = ("classification", "bbox_regression", "distillation")
"""The parts of the loss; the last one exists with a teacher only."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A network whose answers are learned beside the labels.

    Args:
        model: Network with the anchors, classes and box coding of the student, and no weights in common with it. It sees the same images,
            normalised as it needs them.
        full_head: Whether the full head of a lightened teacher teaches, instead of its light one.
    """

    model: RetinaNet
    full_head: bool = False

    @torch.no_grad()
    def predict(self, images: Tensor, sizes_hw: Tensor, *, use_bf16: bool) -> Predictions:
        """Answers to uint8 images (N, 3, H, W), of which (N, 2) ``sizes_hw`` is not padding."""
        assert not self.model.training
        images = normalise(images, sizes_hw, self.model.conventions.input)
        # An autocast of its own: one shared with the student would keep weights that were cast without gradients.
        with autocast(images.device, use_bf16):
            return self.model(images, full_head=self.full_head)


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step found.

    Args:
        losses: (2,) class and box loss of the whole step over all processes, as divided and weighted; (3,) with a teacher.
        num_positive: () number of positive anchors of the whole step.
    """

    losses: Tensor
    num_positive: Tensor


def autocast(device: torch.device, use_bf16: bool) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast if asked for. Losses, matching and decoding cast to fp32 by themselves."""
    return torch.autocast(device.type, torch.bfloat16) if use_bf16 else contextlib.nullcontext()


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    config: TrainConfig,
    conventions: Conventions,
    world: World,
    use_bf16: bool,
    teacher: Teacher | None = None,
    network: Callable[[Tensor], Predictions] | None = None,
) -> StepResult:
    """Forward and backward over the micro-batches of one step.

    Nothing here makes the host wait for the device: no shape depends on a value, and images travel as they are in memory, uint8.

    All micro-batches are matched before the first forward pass, so that each loss can be divided by the positive anchors of the whole step
    over all processes. The sum of the gradients is then the gradient of the one large batch. The loss against the teacher is divided by the
    teacher's own scores, micro-batch by micro-batch, and then averaged over the micro-batches.

    Args:
        model: Network on ``world.device``, possibly wrapped for distributed training.
        batches: Micro-batches of this process.
        config: Resolved settings of the losses; ``distill_weight`` weighs the teacher's part.
        conventions: Conventions of the model.
        world: Processes that share the step.
        use_bf16: Whether the networks run under autocast.
        teacher: Network in evaluation mode on ``world.device`` to learn from beside the labels.
        network: Runs a step of one micro-batch instead of ``model(images)``, which gives the same.
    """
    device = world.device
    matched = [_match(batch, device, config, conventions) for batch in batches]
    num_images = sum(len(batch.indices) for batch in batches) * world.size
    num_positive = world.sum(torch.stack([matches.num_positive.sum() for _, matches in matched]).sum())
    totals = torch.zeros(len(LOSS_PARTS) if teacher else len(LOSS_PARTS) - 1, device=device)
    for number, (batch, (anchors, matches)) in enumerate(zip(batches, matched, strict=True), start=1):
        pixels = batch.images.to(device, non_blocking=True)
        sizes_hw = batch.sizes_hw.to(device, non_blocking=True)
        images = normalise(pixels, sizes_hw, conventions.input)
        taught = teacher.predict(pixels, sizes_hw, use_bf16=use_bf16) if teacher else None
        is_shared_later = isinstance(model, DistributedDataParallel) and number < len(batches)
        with model.no_sync() if is_shared_later else contextlib.nullcontext():  # type: ignore[operator]
            if network is not None and len(batches) == 1:
                predictions = network(images)
            else:
                with autocast(device, use_bf16):
                    predictions = model(images)
            per_image = label_losses(predictions, anchors, matches, config=config, conventions=conventions)
            if config.normaliser == "batch":
                losses = per_image.sum(dim=1) / num_positive.clamp(min=1)
            else:
                losses = (per_image / matches.num_positive.clamp(min=1)).sum(dim=1) / num_images
            if taught is not None:
                imitation = config.distill_weight * distillation(predictions, taught)
                losses = torch.cat([losses, imitation[None] / (len(batches) * world.size)])
            # DistributedDataParallel averages gradients over processes; the loss is already a share of the whole.
            (losses.sum() * world.size).backward()
        totals += losses.detach()
    return StepResult(losses=world.sum(totals), num_positive=num_positive)


def _match(batch: Batch, device: torch.device, config: TrainConfig, conventions: Conventions) -> tuple[Tensor, AnchorMatches]:
    assert batch.targets is not None
    size_hw = (batch.images.shape[2], batch.images.shape[3])
    return assign(size_hw, batch.targets.to(device), config=config, rule=conventions.anchors)


def require_finite(losses: Sequence[float], gradient_norm: float, *, step: int, images: Sequence[str]) -> None:
    """Stop on a loss or gradient that is not finite.

    Raises:
        TrainingError: naming the step, the part and the images of this process.
    """
    values = zip((*LOSS_PARTS[: len(losses)], "gradient norm"), (*losses, gradient_norm), strict=True)
    bad = [name for name, value in values if not math.isfinite(value)]
    if bad:
        raise TrainingError(
            f"step {step}: {' and '.join(bad)} not finite, on images {', '.join(images)}; the weights are unchanged since the step before. "
            "Check these images and boxes, or lower train.rate"
        )
