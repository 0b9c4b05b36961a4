"""The processes of a distributed training, as torchrun starts them. A training in one process needs no set-up."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together.

    Args:
        rank: Number of this process, from 0.
        size: Number of processes.
        device: Device that this process computes on.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_main(self) -> bool:
        """Whether this is the first process, the one that writes files."""
        return self.rank == 0

    def first(self, answer: Callable[[], bool]) -> bool:
        """The answer of the first process, which alone is asked."""
        return bool(self.sum(torch.tensor(float(self.is_main and answer()), device=self.device)))

    def sum(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values


@contextmanager
def joined_world(device: torch.device | None = None) -> Iterator[World]:
    """Join the processes of torchrun, and leave them at the end. NCCL on GPUs, gloo on CPUs; ``device`` None takes CUDA if it is there."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if torch.cuda.is_available() else torch.device("cpu")
    if size == 1:
        yield World(device=device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(rank=rank, size=size, device=device)
    finally:
        dist.destroy_process_group()
