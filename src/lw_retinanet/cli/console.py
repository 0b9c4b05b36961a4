"""What the commands share: bars, JSON, and settings from the command line."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value))


def with_bar(items: Iterable[Item], total: int, *, what: str) -> Iterator[Item]:
    """Pass items on, with a bar on standard error if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield from progress.track(items, total=total)


def evaluation_bar(batches: Iterable[Item], total: int) -> Iterable[Item]:
    """The bar of an evaluation."""
    return with_bar(batches, total, what="evaluate")


def existing(path: Path, what: str) -> Path:
    """The path, if there is something.

    Raises:
        InputError: else.
    """
    from lw_retinanet.errors import InputError

    if not path.exists():
        raise InputError(f"{what} {path} does not exist")
    return path
