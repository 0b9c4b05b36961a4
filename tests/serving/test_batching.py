"""Batches by hand: who goes together, who is never run, who fails alone."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from lw_retinanet.serving.batching import Batcher

Run = Callable[[Sequence[int]], Sequence[int]]


def with_batcher(run: Run, use: Callable[[Batcher[int, int]], Awaitable[None]], *, wait_s: float = 0.0) -> None:
    """Numbers of one parity are of one kind; at most four go together."""

    async def main() -> None:
        with ThreadPoolExecutor(1) as worker:
            batcher = Batcher[int, int](run, kind=lambda item: item % 2, worker=worker, size=4, wait_s=wait_s)
            working = asyncio.create_task(batcher.run_forever())
            await use(batcher)
            working.cancel()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_the_oldest_goes_first_with_others_of_its_kind() -> None:
    groups: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int]:
        groups.append(list(items))
        return [10 * item for item in items]

    async def use(batcher: Batcher[int, int]) -> None:
        assert await asyncio.gather(*map(batcher.submit, [1, 2, 3, 5, 7, 9, 4])) == [10, 20, 30, 50, 70, 90, 40]

    with_batcher(run, use)
    assert groups == [[1, 3, 5, 7], [2, 4], [9]]


def test_a_bad_item_fails_alone() -> None:
    calls: list[list[int]] = []

    def run(items: Sequence[int]) -> list[int]:
        calls.append(list(items))
        if 4 in items:
            raise MemoryError
        return list(items)

    async def use(batcher: Batcher[int, int]) -> None:
        outcomes = await asyncio.gather(*map(batcher.submit, [2, 4, 6]), return_exceptions=True)
        assert isinstance(outcomes.pop(1), MemoryError)
        assert outcomes == [2, 6]
        assert await batcher.submit(8) == 8

    with_batcher(run, use)
    assert calls == [[2, 4, 6], [2], [4], [6], [8]]


def test_nobody_works_for_a_caller_who_has_gone() -> None:
    calls: list[list[int]] = []

    async def use(batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 3, 5)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        tasks[2].cancel()
        assert await tasks[1] == 3
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]

    with_batcher(lambda items: calls.append(list(items)) or list(items), use)  # type: ignore[func-returns-value]
    assert calls == [[3]]


def test_the_first_may_wait_for_more() -> None:
    calls: list[list[int]] = []

    async def use(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        assert list(await asyncio.gather(first, batcher.submit(3))) == [1, 3]

    with_batcher(lambda items: calls.append(list(items)) or list(items), use, wait_s=0.5)  # type: ignore[func-returns-value]
    assert calls == [[1, 3]]
