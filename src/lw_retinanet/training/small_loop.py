"""The loop of a small training: a part of a network, no checkpoints, a report every so many steps."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lw_retinanet.errors import TrainingError
from lw_retinanet.training.optimiser import Optimisation


class Stretch(NamedTuple):
    """Several steps in a row, as reported by :func:`small_loop`.

    Args:
        step: Number of steps done.
        losses: (S, L) the losses of each step since the last report.
        norms: (S,) the norm of the gradient in each of these steps, before clipping.
    """

    step: int
    losses: Tensor
    norms: Tensor

    def require_finite(self, what: str) -> None:
        """Stop if a gradient was not finite.

        Args:
            what: Name of the training, for the message.

        Raises:
            TrainingError: naming the first such step.
        """
        is_bad = ~self.norms.isfinite().cpu()
        if is_bad.any():
            step = self.step - len(self.norms) + 1 + int(is_bad.int().argmax())
            raise TrainingError(f"{what}, step {step}: the gradient is not finite; lower train.rate")


def small_loop(
    optimisation: Optimisation, backward: Callable[[], Tensor], *, steps: Iterable[int], total_steps: int, report_every: int
) -> Iterator[Stretch]:
    """Take optimiser steps, and yield after every ``report_every`` of them and after the last one.

    The host waits for the device only where the caller reads the numbers of a report.

    Args:
        optimisation: What a step consists of.
        backward: Computes the gradients of the next batch, and returns its (L,) losses.
        steps: The numbers 0 to ``total_steps`` - 1, possibly wrapped to show a progress bar.
        total_steps: Length of the training.
        report_every: Steps between two reports.
    """
    optimisation.optimiser.zero_grad(set_to_none=True)
    losses, norms = [], []
    for step in steps:
        optimisation.set_rate(step)
        losses.append(backward().detach())
        norms.append(optimisation.clip_gradients())
        optimisation.apply()
        done = step + 1
        if done % report_every == 0 or done == total_steps:
            yield Stretch(done, torch.stack(losses), torch.stack(norms))
            losses, norms = [], []
