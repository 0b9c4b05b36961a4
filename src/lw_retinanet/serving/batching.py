"""Micro-batching: what waits for the one worker thread goes through it in groups of one kind."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Output = TypeVar("Output")


@dataclass(kw_only=True, eq=False)
class _Waiting(Generic[Item, Output]):
    item: Item
    kind: Hashable
    future: asyncio.Future[Output]


class Batcher(Generic[Item, Output]):
    """Runs items in groups, in one thread, the oldest first.

    An item whose caller has gone is never run. If a group fails, each of its items runs alone, so that only the bad one fails.

    Args:
        run: Called in the worker thread with items of one kind; gives as many outputs.
        kind: Items for which this differs never go together.
        worker: A pool of one thread.
        size: Largest size of a group.
        wait_s: How long the first item waits for others of its kind.
        on_run: Told the number of items and the seconds of each call.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Output]],
        *,
        kind: Callable[[Item], Hashable],
        worker: ThreadPoolExecutor,
        size: int,
        wait_s: float = 0.0,
        on_run: Callable[[int, float], None] = lambda _number, _seconds: None,
    ) -> None:
        self._run = run
        self._kind = kind
        self._worker = worker
        self._size = size
        self._wait_s = wait_s
        self._on_run = on_run
        self._queue: deque[_Waiting[Item, Output]] = deque()
        self._arrived = asyncio.Event()

    async def submit(self, item: Item) -> Output:
        """Wait for the output of an item. Cancelling this takes the item out of the queue.

        Raises:
            Exception: What ``run`` raised for this item alone.
        """
        waiting = _Waiting[Item, Output](item=item, kind=self._kind(item), future=asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        self._arrived.set()
        return await waiting.future

    async def run_forever(self) -> None:
        """Work until cancelled."""
        while True:
            await self._arrived.wait()
            first = next((waiting for waiting in self._queue if not waiting.future.done()), None)
            if first is None:
                self._queue.clear()
                self._arrived.clear()
                continue
            if self._wait_s:
                await self._wait_for_more(first.kind)
            if group := self._take(first.kind):
                await self._answer(group)

    async def _wait_for_more(self, kind: Hashable) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._wait_s
        while sum(waiting.kind == kind for waiting in self._queue) < self._size and (left := end - loop.time()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break
        self._arrived.set()

    def _take(self, kind: Hashable) -> list[_Waiting[Item, Output]]:
        group: list[_Waiting[Item, Output]] = []
        rest: deque[_Waiting[Item, Output]] = deque()
        for waiting in self._queue:
            if waiting.future.done():
                continue
            (group if waiting.kind == kind and len(group) < self._size else rest).append(waiting)
        self._queue = rest
        return group

    async def _answer(self, group: list[_Waiting[Item, Output]]) -> None:
        try:
            outputs = await self._call([waiting.item for waiting in group])
        except Exception as error:
            if len(group) > 1:
                for waiting in group:
                    if not waiting.future.done():
                        await self._answer([waiting])
            elif not group[0].future.done():
                group[0].future.set_exception(error)
            return
        for waiting, output in zip(group, outputs, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(output)

    async def _call(self, items: list[Item]) -> Sequence[Output]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            return await loop.run_in_executor(self._worker, self._run, items)
        finally:
            self._on_run(len(items), loop.time() - started)
