"""The processes of a distributed training, as torchrun starts them. A training in one process needs no set-up."""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lw_retinanet.errors import TrainingError, first_line, shown

_LOST = re.compile(r"gloo|NCCL|Connection (closed|reset)|Broken pipe")  # what a collective says when a process is gone


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

    def gather(self, rows: Tensor) -> Tensor:
        """(n, k) rows of all processes, each with an n of its own, one process after the other."""
        if self.size == 1:
            return rows
        counts = self.sum(torch.eye(self.size, dtype=torch.int64, device=self.device)[self.rank] * len(rows)).tolist()
        padded = torch.zeros(max(counts), rows.shape[1], dtype=rows.dtype, device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@contextmanager
def joined_world(device: torch.device | None = None) -> Iterator[World]:
    """Join the processes of torchrun, and leave them at the end. NCCL on GPUs, gloo on CPUs; ``device`` None takes CUDA if it is there.

    Raises:
        TrainingError: if another process is gone.
    """
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
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not _LOST.search(str(error)):
            raise
        raise TrainingError(
            f"process {rank} of {size} has lost another process of the run ({shown(first_line(error), most=200)}); "
            "see what ended that one, and resume the run from its newest checkpoint"
        ) from None
    finally:
        dist.destroy_process_group()
