"""What a run writes down while it trains: a line of ``log.jsonl`` and TensorBoard scalars for each step and each evaluation."""

import time
from collections import deque
from types import TracebackType
from typing import Any, Self

from torch.utils.tensorboard import SummaryWriter

from lw_retinanet.training.progress import TrainingProgress
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.scores import Scores
from lw_retinanet.training.step import LOSS_PARTS, require_finite
from lw_retinanet.training.trainer import IssuedStep, Trainer


class RunLog:
    """Logs steps when their numbers have arrived from the device, and evaluations when their scores have arrived.

    Only the first process writes. Leaving the context writes the scores that have arrived and closes the files.

    Args:
        folder: Folder of the run.
        trainer: Training that is logged, before its first step.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer) -> None:
        self.folder = folder
        self.world = trainer.world
        self.steps_per_epoch = trainer.plan.steps_per_epoch
        self.file_names = trainer.records.file_names
        self.scores = Scores(self._write)
        self._writer = SummaryWriter(str(folder.tensorboard), purge_step=trainer.done + 1) if self.world.is_main else None
        self._waiting: deque[IssuedStep] = deque()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.scores.write_arrived()
        if self._writer:
            self._writer.close()

    def add(self, step: IssuedStep) -> None:
        """Remember a step until :meth:`write_steps`."""
        self._waiting.append(step)

    def write_steps(self, progress: TrainingProgress, *, may_wait: int) -> None:
        """Check and write the oldest steps, until ``may_wait`` are left for later.

        Raises:
            TrainingError: if a loss or a gradient is not finite.
        """
        while len(self._waiting) > may_wait:
            issued = self._waiting.popleft()
            losses, num_positive, norm = issued.numbers()
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
            progress.update(issued.step, loss=sum(losses), rate=issued.rate)

    def _write(self, entry: dict[str, Any]) -> None:
        self.folder.log(entry)
        if self._writer:
            for name, value in entry.items():
                if name not in ("step", "epoch", "seconds") and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, entry["step"])
