"""How long work tells its caller how far it is."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """A function that passes on the items of a loop, for instance behind a progress bar."""

    def __call__(self, items: Iterable[Item], total: int, what: str, /) -> Iterable[Item]:
        """Return the same items in the same order.

        Args:
            items: The items of the loop.
            total: The number of items.
            what: What the loop does, in a few words.
        """
        ...


def tracked(items: Iterable[Item], total: int, what: str, progress: Progress | None) -> Iterable[Item]:
    """Pass the items through ``progress``, if there is one."""
    return items if progress is None else progress(items, total, what)
