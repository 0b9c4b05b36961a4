"""Reading batches with loader workers that may die or hang, and that never outlive the run."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]
from torch.utils.data import Dataset, get_worker_info

from lw_retinanet.data.loader import Key, Sample, StepPlan, TrainingSet, make_loader
from lw_retinanet.errors import LwRetinaNetError, TrainingError
from lw_retinanet.stopping import SIGNALS
from lw_retinanet.structures import Batch

_LOOK_EVERY_SECONDS = 2
_DYING_SECONDS = 5.0
_CHILD_ENDED = getattr(signal, "SIGCHLD", None)  # not on Windows


def read_batches(dataset: TrainingSet, plan: StepPlan, *, workers: int, pin: bool, timeout: float) -> Generator[Batch]:
    """The batches of a plan, read by loader workers. They end with the iterator or, killed or not, with this process.

    Args:
        dataset: The images.
        plan: What to read.
        workers: Number of loader processes; 0 reads in this process.
        pin: Put batches into page-locked memory.
        timeout: Seconds after which a worker that gives no batch counts as hanging.

    Raises:
        LwRetinaNetError: for an image that cannot be used.
        TrainingError: if a worker has died or hangs; it names the images that the workers were reading.
    """
    watch = WorkerWatch(dataset, workers)
    handler_before = signal.getsignal(_CHILD_ENDED) if _CHILD_ENDED else None
    loader = make_loader(
        watch if workers else dataset,
        plan,
        workers=workers,
        pin=pin,
        timeout=_LOOK_EVERY_SECONDS if workers else 0,
        worker_init_fn=partial(_begin_worker, watch.processes) if workers else None,
    )
    batches = iter(loader)
    if _CHILD_ENDED and threading.current_thread() is threading.main_thread():
        # torch's handler would raise a dead worker's error in the middle of whatever is running, a step of the optimiser included.
        is_torchs = getattr(handler_before, "__module__", "").startswith("torch.")  # of an earlier loader
        signal.signal(_CHILD_ENDED, signal.SIG_DFL if is_torchs else handler_before or signal.SIG_DFL)
    try:
        while (batch := watch.next_of(batches, timeout)) is not None:
            if isinstance(batch, LwRetinaNetError):
                raise batch
            yield batch
    finally:
        watch.end()


class WorkerWatch(Dataset["Sample | LwRetinaNetError"]):
    """A training set that notes which process reads which image.

    Args:
        dataset: The images.
        workers: Number of loader processes.
    """

    def __init__(self, dataset: TrainingSet, workers: int) -> None:
        self.dataset = dataset
        self.reading: Tensor = torch.full((max(1, workers),), -1, dtype=torch.int64).share_memory_()
        self.processes: Tensor = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> "Sample | LwRetinaNetError":
        worker = get_worker_info()
        assert worker is not None
        self.reading[worker.id] = key.index
        sample = self.dataset[key]
        self.reading[worker.id] = -1
        return sample

    def next_of(self, batches: "Iterator[Batch | LwRetinaNetError]", timeout: float) -> "Batch | LwRetinaNetError | None":
        """The next batch; None after the last one.

        Raises:
            TrainingError: if a worker has died or hangs.
        """
        started = time.monotonic()
        while True:
            try:
                return next(batches, None)
            except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:  # torch's, and what a dead worker's queue gives
                if not self.processes.any():
                    raise
                has_timed_out = str(error).startswith("DataLoader timed out")
                if dead := self._dead(0 if has_timed_out else _DYING_SECONDS):
                    rows = [row for row, process in enumerate(self.processes.tolist()) if process in dead]
                    raise TrainingError(
                        f"a loader worker was killed{self._while_reading(rows)}; "
                        "if memory ran out, set fewer data.workers, and resume the run"
                    ) from None
                if not has_timed_out:
                    raise
                if time.monotonic() - started >= timeout:
                    raise TrainingError(
                        f"no loader worker has given a batch for {timeout:g} s{self._while_reading(range(len(self.reading)))}; "
                        "check that file and its disk, or raise data.read_timeout, and resume the run"
                    ) from None

    def _dead(self, seconds: float) -> set[int]:
        """The workers that have ended. If there is none, look again for some seconds: sockets close before the process ends."""
        limit = time.monotonic() + seconds
        while True:
            dead = set(self.processes.tolist()) - {child.pid for child in multiprocessing.active_children()} - {0}
            if dead or time.monotonic() >= limit:
                return dead
            time.sleep(0.02)

    def end(self) -> None:
        """Kill the workers that are left. They hold nothing that must be saved, and one that hangs would not end otherwise."""
        ours = set(self.processes.tolist())
        for child in multiprocessing.active_children():
            if child.pid in ours:
                child.kill()

    def _while_reading(self, rows: "range | list[int]") -> str:
        images = sorted({index for row in rows if (index := int(self.reading[row])) >= 0})
        records = self.dataset.records
        return f" while it read {', '.join(f'{records.path(index)} (image {index})' for index in images)}" if images else ""


def _begin_worker(processes: Tensor, number: int) -> None:
    """In a new worker: only its parent ends it, by killing it or by its own death."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)
    if hasattr(signal, "SIGKILL"):  # not on Windows
        _prctl_pr_set_pdeathsig(signal.SIGKILL)
    processes[number] = os.getpid()
