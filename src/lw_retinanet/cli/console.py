"""What the commands share: bars, JSON, and settings from the command line."""

import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from lw_retinanet.errors import ConfigError, nearest, printable, shown

if TYPE_CHECKING:
    from lw_retinanet.detection.display_score import SmallestScore
    from lw_retinanet.devices import Precision

Item = TypeVar("Item")
Number = TypeVar("Number", int, float)
Word = TypeVar("Word", bound=str)
SECONDS_BETWEEN_LINES = 15.0
log = logging.getLogger(__name__)


def names(text: str | None) -> tuple[str, ...]:
    """Names separated by commas; none without a text."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def say(text: str) -> None:
    """Print lines on standard output, without the control characters that names of files and classes may hold."""
    print(printable_lines(text))


def say_error(text: str) -> None:
    """Print a line that begins with ``error:`` on standard error, without control characters."""
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)


def printable_lines(text: str) -> str:
    """Lines that are fit for a terminal, each by itself."""
    return "\n".join(map(printable, text.split("\n")))


class PrintableFormatter(logging.Formatter):
    """Log lines without control characters."""

    def format(self, record: logging.LogRecord) -> str:
        """The message alone."""
        return printable_lines(super().format(record))


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value))


def with_bar(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Pass items on, with a bar on standard error if that is a terminal, else with a log line now and then."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class PerSecond(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.1f}/s" if task.speed else "")

    console = Console(stderr=True)
    if not console.is_terminal:
        yield from _with_lines(items, total, what)
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), PerSecond(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total or None)  # an unknown total makes the bar pulse


def _with_lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    started = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = round((now - started) / max(1, done) * max(0, total - done))
            log.info("%s: %d/%d, %.1f/s, %d:%02d left", what, done, total, done / (now - started), left // 60, left % 60)
        yield item


def one_of(known: Sequence[Word], text: str, option: str) -> Word:
    """The value of an option that is one of a few words.

    Raises:
        ConfigError: if it is none of them.
    """
    for word in known:
        if text == word:
            return word
    raise ConfigError(f"--{option} {text}: expected {', '.join(known)}{nearest(text, known)}")


def numbers(text: str | None, kind: Callable[[str], Number], option: str) -> tuple[Number, ...] | None:
    """The value of an option that lists numbers with commas between them; None if it was not given.

    Raises:
        ConfigError: if it is none.
    """
    try:
        return None if text is None else tuple(map(kind, text.split(",")))
    except ValueError:
        raise ConfigError(f"--{option} {text}: expected numbers with commas between them, without spaces") from None


def checked_score(text: str | float) -> "SmallestScore":
    """The value of ``--score``.

    Raises:
        ConfigError: if it is neither a number from 0 to below 1 nor ``best``.
    """
    try:
        score = text if text == "best" else float(text)
    except ValueError:
        score = -1.0
    if score != "best" and not 0 <= float(score) < 1:
        raise ConfigError(f"--score {shown(str(text))}: expected a number from 0 to below 1, or best")
    return score  # type: ignore[return-value]


def checked_precision(text: str) -> "Precision":
    """The value of ``--precision``.

    Raises:
        ConfigError: if it is none.
    """
    known: tuple[Precision, ...] = ("fp32", "bf16", "fp16", "auto")
    return one_of(known, text, "precision")
