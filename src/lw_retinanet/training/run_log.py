"""What a run writes down while it trains: a line of ``log.jsonl`` and TensorBoard scalars for each step and each evaluation."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.files import not_written
from lw_retinanet.training.best import BestSoFar
from lw_retinanet.training.progress import TrainingProgress
from lw_retinanet.training.run_folder import RunFolder, read_log
from lw_retinanet.training.scores import Scores, Weights
from lw_retinanet.training.step import LOSS_PARTS, require_finite
from lw_retinanet.training.trainer import IssuedStep, Trainer

KeepBest = Callable[[Weights, Mapping[str, Any]], None]
"""Writes weights, with the entry of their evaluation, to where the best ones are kept."""


class RunLog:
    """Logs steps when their numbers have arrived from the device, and evaluations when their scores have arrived.

    Only the first process writes. Leaving the context writes the scores that have arrived and closes the files.

    Args:
        folder: Folder of the run.
        trainer: Training that is logged, before its first step.
        keep_best: Called for each evaluation with a higher AP than all before; None if no weights are kept.

    Attributes:
        best: The best evaluation in the log so far; of use in the first process only.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, keep_best: KeepBest | None = None) -> None:
        self.folder = folder
        self.keep_best = keep_best
        self.world = trainer.world
        self.steps_per_epoch = trainer.plan.steps_per_epoch
        self.file_names = trainer.records.file_names
        self.scores = Scores(self._write_score)
        self.best = BestSoFar.of_log(read_log(folder.log_file) if self.world.is_main else ())
        self._writer = None
        with self._explained():
            if self.world.is_main:
                self._writer = SummaryWriter(str(folder.tensorboard), purge_step=trainer.done + 1)
        self._waiting: deque[IssuedStep] = deque()
        self._last_step = trainer.done
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._thread_hook = threading.excepthook
        threading.excepthook = self._thread_ended
        return self

    def _thread_ended(self, ended: threading.ExceptHookArgs) -> None:
        # TensorBoard's thread ends if the disk is full; the next scalar raises its error here.
        if type(ended.thread).__name__ != "_AsyncWriterThread" or not isinstance(ended.exc_value, OSError):
            self._thread_hook(ended)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            with self._explained():
                self.scores.write_arrived()
                if self._writer:
                    self._writer.close()
        except LwRetinaNetError:
            if error is None:  # otherwise there is an error already, and perhaps the same one
                raise
        finally:
            threading.excepthook = self._thread_hook

    def add(self, step: IssuedStep) -> None:
        """Remember a step until :meth:`write_steps`."""
        self._waiting.append(step)
        self._last_step = step.step

    def write_steps(self, progress: TrainingProgress | None, *, may_wait: int) -> int:
        """Check and write the oldest steps, until ``may_wait`` are left for later.

        Returns:
            The number of processes that had been asked to end before the last of these steps.

        Raises:
            TrainingError: if a loss or a gradient is not finite.
            OutputError: if the log cannot be written.
        """
        stops = 0
        while len(self._waiting) > may_wait:
            issued = self._waiting.popleft()
            losses, num_positive, norm, stops = issued.numbers()
            require_finite(losses, norm, step=issued.step, images=[self.file_names[index] for index in issued.image_indices])
            if not self.world.is_main:
                continue
            entry = {
                "step": issued.step,
                "epoch": (issued.step - 1) // self.steps_per_epoch,
                "loss": sum(losses),
                **dict(zip(LOSS_PARTS[: len(losses)], losses, strict=True)),
                "positives": num_positive,
                "gradient_norm": norm,
                "rate": issued.rate,
                "seconds": round(time.monotonic() - self._started, 3),
            }
            self._write(entry)
            if progress:
                progress.update(issued.step, loss=sum(losses), rate=issued.rate)
        return stops

    def finish(self, seconds: float) -> None:
        """Write all that is known of the steps taken, and wait at most ``seconds`` for each score on its way.

        The errors are those of :meth:`write_steps`.
        """
        self.scores.write_arrived(wait_before=self._last_step + 1, seconds=seconds)
        self.write_steps(None, may_wait=0)

    def _write_score(self, entry: dict[str, Any], weights: Weights | None) -> None:
        # The weights first: of a score that is in the log they are known to be there.
        if self.keep_best and weights is not None and self.best.is_beaten_by(entry):
            self.keep_best(weights, entry)
        best_score = entry.pop("best_score", None)
        self.best.add(entry)
        self._write({**entry, "best_score": best_score["score"]} if best_score else entry)

    def _write(self, entry: dict[str, Any]) -> None:
        self.folder.log(entry)
        if self._writer:
            with self._explained():
                for name, value in entry.items():
                    if name not in ("step", "epoch", "seconds") and isinstance(value, int | float):
                        self._writer.add_scalar(name, value, entry["step"])

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what TensorBoard's writer raises into an error of ours."""
        try:
            yield
        except OSError as error:
            raise not_written(self.folder.tensorboard, error) from None
