"""One optimiser step: micro-batches in, gradients and losses out."""

import contextlib
import math
from collections.abc import Sequence
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
from lw_retinanet.training.distillation import BOX_WEIGHT, distillation
from lw_retinanet.training.distributed import World
from lw_retinanet.training.matching import Matches
from lw_retinanet.training.objective import assign, label_losses

LOSS_PARTS = ("classification", "bbox_regression", "distillation")
"""What a loss is the sum of; the last part is there with a teacher only."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """Args:
    losses: (2,) classification and box loss of the whole step over all processes, as divided and weighted; (3,) with a teacher.
    num_positive: () positive anchors of the whole step.
    """

    losses: Tensor
    num_positive: Tensor


def autocast(device: torch.device, use_bf16: bool) -> contextlib.AbstractContextManager[object]:
    """bf16 where asked for; losses, matching and decoding stay in fp32 by their own casts."""
    return torch.autocast(device.type, torch.bfloat16) if use_bf16 else contextlib.nullcontext()


def accumulate_gradients(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    config: TrainConfig,
    conventions: Conventions,
    world: World,
    use_bf16: bool,
    teacher: RetinaNet | None = None,
    teacher_full_head: bool = False,
) -> StepResult:
    """Forward and backward over the micro-batches of one step.

    Nothing here makes the host wait for the device: no shape depends on a value, and pictures travel as they are in memory, uint8.

    All are matched before the first forward pass, so that each can be divided by the positives of the whole step over all processes: the
    sum of their gradients is then the gradient of the one large batch. What a teacher says is divided by its own scores, micro-batch by
    micro-batch, and then averaged over these.

    Args:
        model: on ``world.device``, possibly wrapped for distributed training.
        batches: micro-batches of this process.
        config: loss settings, resolved; ``distill_weight`` is of the teacher's part.
        conventions: of the model.
        world: other processes.
        use_bf16: run the network under autocast.
        teacher: a network whose answers are learned beside the labels: in evaluation mode, on ``world.device``, with the anchors, classes
            and box coding of the model, and no weights in common with it. It sees the same pictures, prepared as it needs them.
        teacher_full_head: its full head is the one that teaches.
    """
    assert teacher is None or not teacher.training
    device = world.device
    matched: list[tuple[Tensor, Matches]] = []
    for batch in batches:
        assert batch.targets is not None
        size_hw = (batch.images.shape[2], batch.images.shape[3])
        matched.append(assign(size_hw, batch.targets.to(device), config=config, rule=conventions.anchors))
    num_images = sum(len(batch.indices) for batch in batches) * world.size
    num_positive = world.sum(torch.stack([matches.num_positive.sum() for _, matches in matched]).sum())
    totals = torch.zeros(len(LOSS_PARTS) if teacher else len(LOSS_PARTS) - 1, device=device)
    for number, (batch, (anchors, matches)) in enumerate(zip(batches, matched, strict=True), start=1):
        pictures = batch.images.to(device, non_blocking=True)
        sizes_hw = batch.sizes_hw.to(device, non_blocking=True)
        images = normalise(pictures, sizes_hw, conventions.input)
        if teacher:
            seen = normalise(pictures, sizes_hw, teacher.conventions.input)
            taught = _answers(teacher, seen, full_head=teacher_full_head, use_bf16=use_bf16)
        waits = isinstance(model, DistributedDataParallel) and number < len(batches)
        with model.no_sync() if waits else contextlib.nullcontext():  # type: ignore[operator]
            with autocast(device, use_bf16):
                predictions = model(images)
            per_image = label_losses(predictions, anchors, matches, config=config, conventions=conventions)
            if config.normaliser == "batch":
                losses = per_image.sum(dim=1) / num_positive.clamp(min=1)
            else:
                losses = (per_image / matches.num_positive.clamp(min=1)).sum(dim=1) / num_images
            if teacher:
                by_branch = distillation(predictions, taught)
                imitation = config.distill_weight * (by_branch[0] + BOX_WEIGHT * by_branch[1])
                losses = torch.cat([losses, imitation[None] / (len(batches) * world.size)])
            # DistributedDataParallel averages gradients over processes; the loss is already a share of the whole.
            (losses.sum() * world.size).backward()
        totals += losses.detach()
    return StepResult(losses=world.sum(totals), num_positive=num_positive)


@torch.no_grad()
def _answers(teacher: RetinaNet, images: Tensor, *, full_head: bool, use_bf16: bool) -> Predictions:
    # Under an autocast of its own: one that is shared with the student keeps weights that were cast without gradients.
    with autocast(images.device, use_bf16):
        return teacher(images, full_head=full_head)


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
