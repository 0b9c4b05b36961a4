"""Evaluations on the way: some are there at once, others are still being computed elsewhere while training goes on."""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

Score = Mapping[str, Any] | Future[dict[str, Any]]
"""Numbers by name, or the promise of them."""

log = logging.getLogger(__name__)


class Scores:
    """Writes each score down with the step that it belongs to, when it arrives.

    Args:
        write: takes an entry ``{"step": ..., **numbers}``.
    """

    def __init__(self, write: Callable[[dict[str, Any]], None]) -> None:
        self.write = write
        self._waiting: list[tuple[int, Score]] = []

    def add(self, step: int, score: Score) -> None:
        """A score of the weights after ``step`` steps."""
        self._waiting.append((step, score))
        self.write_arrived()

    def write_arrived(self, *, wait_before: int = 0) -> None:
        """Write what has arrived; wait for those of steps before ``wait_before``.

        A score that could not be computed is told of in one line of the log and not written: the training itself is none the worse.
        """
        left: list[tuple[int, Score]] = []
        for step, score in self._waiting:
            if isinstance(score, Future):
                if step >= wait_before and not score.done():
                    left.append((step, score))
                    continue
                try:
                    score = score.result()
                except Exception as error:  # whatever it was, hours of training are not lost for it
                    log.warning("step %d: not scored (%s); training goes on", step, str(error) or type(error).__name__)
                    continue
            self.write({"step": step, **score})
        self._waiting = left
