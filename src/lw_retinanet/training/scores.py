"""Scores of evaluations during a training. They may be computed in another process while the training goes on."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

from torch import Tensor

Score = Mapping[str, Any] | Future[dict[str, Any]]
"""Numbers by name, or a future that will give them."""
Weights = Mapping[str, Tensor]

log = logging.getLogger(__name__)


class _Scored(NamedTuple):
    step: int
    score: Score
    weights: Weights | None


class Scores:
    """Writes each score with its step when it arrives.

    Args:
        write: Called with each entry ``{"step": ..., **numbers}`` and the weights that were scored.

    Attributes:
        missed: Step and weights of the evaluations whose scores the run could not wait for.
    """

    def __init__(self, write: Callable[[dict[str, Any], Weights | None], None]) -> None:
        self.write = write
        self.missed: list[tuple[int, Weights]] = []
        self._waiting: list[_Scored] = []

    def add(self, step: int, score: Score, weights: Weights | None = None) -> None:
        """Add a score of the weights after ``step`` steps, which training must not change any more."""
        self._waiting.append(_Scored(step, score, weights))
        self.write_arrived()

    def write_arrived(self, *, wait_before: int = 0, seconds: float | None = None) -> None:
        """Write the scores that have arrived, and wait for those of steps before ``wait_before``, each for at most ``seconds``.

        A score that could not be computed becomes a warning, and the training goes on.
        """
        left: list[_Scored] = []
        for waiting in self._waiting:
            step, score, weights = waiting
            if isinstance(score, Future):
                if step >= wait_before and not score.done():
                    left.append(waiting)
                    continue
                try:
                    score = score.result(seconds)
                except TimeoutError:
                    log.warning("step %d: not scored, since the run ends", step)
                    self.missed += [(step, weights)] if weights is not None else []
                    continue
                except Exception as error:  # no failed evaluation is worth hours of training
                    log.warning("step %d: not scored (%s); training goes on", step, str(error) or type(error).__name__)
                    continue
            self.write({"step": step, **score}, weights)
        self._waiting = left
