"""The memory that a training step needs, found by running the step on fake tensors, which have shapes and no numbers."""

import copy
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lw_retinanet.config import TrainConfig
from lw_retinanet.data.preprocess import mean_and_std
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.models.build import meta_copy
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.training.distillation import unit_anchor
from lw_retinanet.training.distributed import World
from lw_retinanet.training.optimiser import trainable
from lw_retinanet.training.step import Teacher, accumulate_gradients

OPTIMISER_COPIES = {"sgd": 1, "adamw": 2}  # momentum; first and second moment


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of tensors in one process at the peak of a step. The memory that libraries keep for themselves comes on top.

    Args:
        weights: Parameters and buffers of the model.
        optimiser: State of the optimiser.
        average: Moving average of the weights.
        teacher: Weights of the teacher.
        buckets: Copy of the gradients that several processes exchange.
        step: Tensors that live within a step only: images, activations, losses, gradients.
    """

    weights: int
    optimiser: int
    average: int
    teacher: int
    buckets: int
    step: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return sum(vars(self).values())

    def as_dict(self) -> dict[str, int]:
        """The parts by name, and their ``total``."""
        return {**vars(self), "total": self.total}


def step_memory(
    model: RetinaNet,
    *,
    config: TrainConfig,
    size_hw: tuple[int, int],
    boxes_per_image: int = 32,
    processes: int = 1,
    use_bf16: bool = False,
    teacher: Teacher | None = None,
) -> StepMemory:
    """Run one real step, forward and backward, on fake tensors: nothing is computed, but the bytes of every tensor are known.

    Args:
        model: Model on any device, ``meta`` included; it is not changed. The stages of ``config.freeze`` are frozen.
        config: Resolved settings.
        size_hw: Padded size; memory grows with its area.
        boxes_per_image: Rows of the padded targets.
        processes: Number of processes; several exchange gradients.
        use_bf16: Whether the networks run under autocast.
        teacher: Network to learn from beside the labels.

    Source: torch's fake tensors, which its compiler uses for tracing.
    """
    count = config.batch_size
    _forget_constants()
    try:
        # This also refuses a step in which a shape depends on values, for which a real step would wait for the device.
        with FakeTensorMode():
            student = _fake_copy(model).train()
            student.backbone.freeze(config.freeze or 0)
            guide = replace(teacher, model=_fake_copy(teacher.model).eval()) if teacher else None
            with _LiveBytes() as live:
                batches = [_batch(count, size_hw, boxes_per_image) for _ in range(config.accumulate)]
                accumulate_gradients(
                    student,
                    batches,
                    config=config,
                    conventions=model.conventions,
                    world=World(),
                    use_bf16=use_bf16,
                    teacher=guide,
                )
    finally:
        _forget_constants()
    kept = kept_bytes(model, config)
    return StepMemory(
        weights=kept.weights,
        optimiser=kept.optimiser,
        average=kept.average,
        teacher=_bytes([*teacher.model.parameters(), *teacher.model.buffers()]) if teacher else 0,
        buckets=kept.gradients if processes > 1 else 0,
        step=live.peak,
    )


class KeptBytes(NamedTuple):
    """Bytes of what a run keeps from step to step, and of its gradients.

    Args:
        weights: Parameters and buffers of the model.
        gradients: Gradients of the parameters that are trained.
        optimiser: State of the optimiser.
        average: Moving average of the weights; 0 without one.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int

    @property
    def checkpoint(self) -> int:
        """Bytes of the tensors in a checkpoint."""
        return self.weights + self.optimiser + self.average


def kept_bytes(model: RetinaNet, config: TrainConfig) -> KeptBytes:
    """Work out the bytes from the shapes of the weights.

    Args:
        model: Model on any device; it is not changed.
        config: Resolved settings; the optimiser, the average and the frozen stages matter.
    """
    twin = meta_copy(model).requires_grad_(True)
    twin.backbone.freeze(config.freeze or 0)
    learned = _bytes(trainable(twin))
    weights = _bytes([*model.parameters(), *model.buffers()])
    copies = OPTIMISER_COPIES[config.optimiser or "adamw"]
    return KeptBytes(weights=weights, gradients=learned, optimiser=copies * learned, average=weights if config.ema else 0)


def _forget_constants() -> None:
    """Empty the caches of the constants that a step uses, so that no real tensor gets into the fake step and no fake one out of it."""
    for cached in (make_anchors, mean_and_std, unit_anchor):
        cached.cache_clear()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _fake_copy(model: RetinaNet) -> RetinaNet:
    """A copy without numbers, as if on the CPU, in the memory format that training uses."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        layout = torch.channels_last if parameter.ndim == 4 else torch.contiguous_format
        memo[id(parameter)] = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, memory_format=layout))
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return copy.deepcopy(model, memo)


def _batch(count: int, size_hw: tuple[int, int], boxes_per_image: int) -> Batch:
    rows = (count, max(1, boxes_per_image))
    return Batch(
        images=torch.empty((count, 3, *size_hw), dtype=torch.uint8).to(memory_format=torch.channels_last),
        sizes_hw=torch.empty((count, 2), dtype=torch.int64),
        scales_xy=torch.empty((count, 2)),
        targets=Targets(
            boxes=torch.empty((*rows, 4)), labels=torch.empty(rows, dtype=torch.int64), is_ignored=torch.empty(rows, dtype=torch.bool)
        ),
        indices=tuple(range(count)),
    )


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of the storages that operations create, until the last tensor of a storage is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._see(value.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._drop, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, size: int) -> None:
        self.now -= size
