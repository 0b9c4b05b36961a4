"""The progress of a training: a bar on a terminal, a log line now and then elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_SECONDS = 15.0
log = logging.getLogger(__name__)


class TrainingProgress:
    """Shows loss, rate, images a second and the time left. Made by :func:`training_progress`.

    Args:
        total_steps: Length of the run.
        first_step: Number of steps that were done before this process started.
        images_per_step: Images of a step over all processes.
        steps_per_epoch: Steps of one pass over the images.
        bar: Progress bar and its task; None writes log lines instead.
    """

    def __init__(
        self, *, total_steps: int, first_step: int, images_per_step: int, steps_per_epoch: int, bar: tuple[Progress, TaskID] | None
    ) -> None:
        self.total_steps = total_steps
        self.first_step = first_step
        self.images_per_step = images_per_step
        self.steps_per_epoch = steps_per_epoch
        self.bar = bar
        self.started = self.last_line = time.monotonic()

    def update(self, step: int, *, loss: float, rate: float) -> None:
        """Show loss and rate of a step, counted from 1."""
        now = time.monotonic()
        per_second = (step - self.first_step) / max(now - self.started, 1e-9)
        if self.bar:
            progress, task = self.bar
            progress.update(task, completed=step, loss=f"{loss:.3f}", rate=f"{rate:.1e}", speed=f"{per_second * self.images_per_step:.1f}")
        elif now - self.last_line >= LINE_EVERY_SECONDS or step == self.total_steps:
            self.last_line = now
            left = timedelta(seconds=round((self.total_steps - step) / per_second))
            speed = per_second * self.images_per_step
            epoch, epochs = (-(-number // self.steps_per_epoch) for number in (step, self.total_steps))
            text = "epoch %d/%d  step %d/%d  loss %.3f  rate %.1e  %.1f images/s  %s left"
            log.info(text, epoch, epochs, step, self.total_steps, loss, rate, speed, left)


@contextmanager
def training_progress(
    *, total_steps: int, first_step: int, images_per_step: int, steps_per_epoch: int, shown: bool
) -> Iterator[TrainingProgress]:
    """A bar on standard error if that is a terminal and ``shown``, else log lines."""
    console = Console(stderr=True)
    values = {"total_steps": total_steps, "first_step": first_step, "images_per_step": images_per_step, "steps_per_epoch": steps_per_epoch}
    if not (shown and console.is_terminal):
        if shown:
            epochs = f"{total_steps / steps_per_epoch:.4g} epochs of {steps_per_epoch}"
            log.info("%d steps of %d images, %s; %d steps are done", total_steps, images_per_step, epochs, first_step)
        yield TrainingProgress(**values, bar=None)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  rate {task.fields[rate]}  {task.fields[speed]} images/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("train", total=total_steps, completed=first_step, loss="-", rate="-", speed="-")
        yield TrainingProgress(**values, bar=(progress, task))
