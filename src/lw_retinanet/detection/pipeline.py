"""Many images in a row: read ahead in threads, run in groups, given back in order."""

import os
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Output = TypeVar("Output")
MAX_WORKERS = 8


def read_ahead(items: Iterable[Item], load: Callable[[Item], Output], *, number: int) -> Iterator[Output]:
    """Yield ``load(item)`` for each item, in order. Threads begin with it while the caller uses earlier ones.

    Args:
        items: Iterated over in the caller's thread.
        load: Called in another thread; what it raises is raised here in the item's turn.
        number: Items that may be loaded ahead; this bounds the memory.
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


def in_background(items: Iterator[Item], *, number: int) -> Generator[Item, None, None]:
    """Yield the items in order. One thread produces them while the caller uses earlier ones; closing the generator ends the thread.

    Args:
        items: Advanced in the thread; what this raises is raised here in its turn. Closed at the end, if it is a generator.
        number: Items that may be produced ahead; this bounds the memory.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="in_background")
    try:
        waiting = deque(pool.submit(next, items, None) for _ in range(number))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        if isinstance(items, Generator):
            items.close()


def in_groups(
    items: Iterable[Item], kind: Callable[[Item], Hashable], run: Callable[[list[Item]], Iterable[Output]], *, size: int
) -> Iterator[Output]:
    """Yield one output for each item, in the order of the items, computed for up to ``size`` items of one kind together.

    An item waits for others of its kind until at most ``4 * size`` items have come after it.

    Args:
        items: The items.
        kind: Items for which this differs never go together.
        run: Turns a group into as many outputs.
        size: Largest size of a group.
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
