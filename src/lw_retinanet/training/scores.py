"""Scores of evaluations during a training. They may be computed in another process while the training goes on."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

Score = Mapping[str, Any] | Future[dict[str, Any]]
"""Numbers by name, or a future that will give them."""

log = logging.getLogger(__name__)


class Scores:
    """Writes each score with its step when it arrives.

    Args:
        write: Called with each entry ``{"step": ..., **numbers}``.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write
        self._waiting: list[tuple[int, Score]] = []

    def add(self, step: int, score: Score) -> None:
        """Add a score of the weights after ``step`` steps."""
        self._waiting.append((step, score))
        self.write_arrived()

    def write_arrived(self, *, wait_before: int = 0, seconds: float | None = None) -> None:
        """Write the scores that have arrived, and wait for those of steps before ``wait_before``, each for at most ``seconds``.

        A score that could not be computed becomes a warning, and the training goes on.
        """
        left: list[tuple[int, Score]] = []
        for step, score in self._waiting:
            if isinstance(score, Future):
                if step >= wait_before and not score.done():
                    left.append((step, score))
                    continue
                try:
                    score = score.result(seconds)
                except TimeoutError:
                    log.warning("step %d: not scored, since the run ends", step)
                    continue
                except Exception as error:  # no failed evaluation is worth hours of training
                    log.warning("step %d: not scored (%s); training goes on", step, str(error) or type(error).__name__)
                    continue
            self.write({"step": step, **score})
        self._waiting = left
