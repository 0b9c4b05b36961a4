"""Many pictures in a row: read ahead in threads, put together those that need no padding for each other, given back in order."""

import os
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Output = TypeVar("Output")
MAX_WORKERS = 8


def read_ahead(items: Iterable[Item], load: Callable[[Item], Output], *, number: int) -> Iterator[Output]:
    """``load`` of each item in order, begun in threads while earlier ones are in use.

    Args:
        items: taken in the caller's thread.
        load: may run in another thread; what it raises is raised here in the item's turn.
        number: of items to be ahead; bounds the memory.
    """
    workers = max(1, min(number, MAX_WORKERS, (os.cpu_count() or 1) // 2))
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        waiting: deque[Future[Output]] = deque()
        for item in items:
            waiting.append(pool.submit(load, item))
            if len(waiting) > number:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_groups(
    items: Iterable[Item], kind: Callable[[Item], Hashable], run: Callable[[list[Item]], Iterable[Output]], *, size: int
) -> Iterator[Output]:
    """One output an item, in the order of the items, computed for up to ``size`` items of one kind together.

    An item waits for others of its kind no longer than until ``4 * size`` items came after it.

    Args:
        items: in order.
        kind: items of different kinds never go together.
        run: of a group, to as many outputs.
        size: of a group at most.
    """
    groups: dict[Hashable, list[tuple[int, Item]]] = {}
    outputs: dict[int, Output] = {}
    following = 0

    def finish(key: Hashable) -> None:
        group = groups.pop(key)
        outputs.update(zip([place for place, _ in group], run([item for _, item in group]), strict=True))

    for place, item in enumerate(items):
        key = kind(item)
        groups.setdefault(key, []).append((place, item))
        if len(groups[key]) == size:
            finish(key)
        if place - following >= 4 * size and following not in outputs:
            finish(next(key for key, group in groups.items() if group[0][0] == following))
        while following in outputs:
            yield outputs.pop(following)
            following += 1
    for key in list(groups):
        finish(key)
    while following in outputs:
        yield outputs.pop(following)
        following += 1
