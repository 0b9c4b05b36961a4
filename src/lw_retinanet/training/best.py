"""Which evaluation of a run was the best, and how long ago that was."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class BestSoFar:
    """The best evaluation among those that were added. The first one of several with the same AP counts.

    Attributes:
        step: Its step; 0 before the first evaluation.
        ap: Its AP.
        since: Number of evaluations after it.
    """

    step: int = 0
    ap: float = float("-inf")
    since: int = 0

    @classmethod
    def of_log(cls, entries: Iterable[Mapping[str, Any]]) -> "BestSoFar":
        """The best evaluation in a run's log."""
        found = cls()
        for entry in entries:
            found.add(entry)
        return found

    def is_beaten_by(self, entry: Mapping[str, Any]) -> bool:
        """Whether an entry of the log is an evaluation with a higher AP."""
        ap = entry.get("AP")
        return isinstance(ap, int | float) and ap > self.ap

    def add(self, entry: Mapping[str, Any]) -> None:
        """Take in an entry of the log, in the order of the steps."""
        if self.is_beaten_by(entry):
            self.step, self.ap, self.since = entry["step"], entry["AP"], 0
        elif "AP" in entry:
            self.since += 1
