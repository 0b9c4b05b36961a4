"""What a training step needs of a device's memory, from the step itself on tensors that have shapes and no numbers."""

import copy
import functools
import sys
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lw_retinanet.config import TrainConfig
from lw_retinanet.counting.macs import meta_copy
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.training.distributed import World
from lw_retinanet.training.optimiser import trainable
from lw_retinanet.training.step import Teacher, accumulate_gradients

_CACHED = type(functools.lru_cache(len))
OPTIMISER_COPIES = {"sgd": 1, "adamw": 2}  # momentum; first and second moment


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes of tensors in one process at the fullest moment of a step. What libraries keep for themselves comes on top.

    Args:
        weights: parameters and buffers.
        optimiser: its state.
        average: the moving average of the weights.
        teacher: its weights.
        buckets: the copy of the gradients that several processes exchange.
        step: everything a step makes and drops: pictures, activations, losses, gradients.
    """

    weights: int
    optimiser: int
    average: int
    teacher: int
    buckets: int
    step: int

    @property
    def total(self) -> int:
        return sum(getattr(self, field.name) for field in fields(self))

    def as_dict(self) -> dict[str, int]:
        return {**{field.name: getattr(self, field.name) for field in fields(self)}, "total": self.total}


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
    """Follow one real step, forward and backward, on fake tensors: nothing is computed, and every tensor's bytes are known.

    Args:
        model: on any device, ``meta`` included; not changed. Its frozen stages are those of ``config.freeze``.
        config: resolved.
        size_hw: padded input; memory grows with its area.
        boxes_per_image: rows of the padded targets.
        processes: more than one exchange gradients.
        use_bf16: under autocast.
        teacher: As in training.

    Source: the fake tensors are torch's own, as its compiler traces with.
    """
    count = config.batch_size
    _forget_tensors()
    try:
        # No length in a step depends on values, else this would refuse it, and a real step would wait for the device.
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
        _forget_tensors()
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
    """Bytes of what a run carries from step to step, and of one set of gradients.

    Args:
        weights: parameters and buffers.
        gradients: of the parameters that are trained.
        optimiser: its state.
        average: the moving average of the weights; 0 where there is none.
    """

    weights: int
    gradients: int
    optimiser: int
    average: int

    @property
    def checkpoint(self) -> int:
        """Of the tensors in a checkpoint file."""
        return self.weights + self.optimiser + self.average


def kept_bytes(model: RetinaNet, config: TrainConfig) -> KeptBytes:
    """From the shapes of the weights.

    Args:
        model: on any device; not changed.
        config: resolved; decides the optimiser, the average and the frozen stages.
    """
    twin = meta_copy(model).requires_grad_(True)
    twin.backbone.freeze(config.freeze or 0)
    learned = _bytes(trainable(twin))
    weights = _bytes([*model.parameters(), *model.buffers()])
    copies = OPTIMISER_COPIES[config.optimiser or "adamw"]
    return KeptBytes(weights=weights, gradients=learned, optimiser=copies * learned, average=weights if config.ema else 0)


def _forget_tensors() -> None:
    """Empty the package's caches: real anchors and the like must stay out of the fake step, and its fakes out of every real one."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lw_retinanet."):
            for value in list(vars(module).values()):
                if isinstance(value, _CACHED):
                    value.cache_clear()


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _fake_copy(model: RetinaNet) -> RetinaNet:
    """A copy without numbers, as if on the CPU, in the layout that training uses."""
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
    """Adds up the storages that operations make, and takes each off when the last tensor on it goes."""

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
