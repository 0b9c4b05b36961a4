import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lw_retinanet.detection.pipeline import in_background, in_groups, read_ahead


def test_read_in_order_and_not_too_far_ahead() -> None:
    begun: list[int] = []

    def load(item: int) -> int:
        begun.append(item)
        time.sleep(0.003 * (item % 3))
        return item * item

    outputs = read_ahead(range(20), load, number=4)
    for item in range(20):
        assert next(outputs) == item * item
        assert max(begun) <= item + 4
    assert list(outputs) == []


def test_reading_goes_on_while_the_caller_works() -> None:
    begun = threading.Event()

    def load(item: int) -> int:
        if item == 1:
            begun.set()
        return item

    outputs = read_ahead(range(3), load, number=2)
    assert next(outputs) == 0
    assert begun.wait(timeout=5)  # nobody has asked for it yet


def test_an_error_comes_in_its_turn() -> None:
    def load(item: int) -> int:
        if item == 2:
            raise ValueError("the third")
        return item

    outputs = read_ahead(range(5), load, number=3)
    assert [next(outputs), next(outputs)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(outputs)


def test_leaving_early_ends_the_threads() -> None:
    outputs = read_ahead(iter(range(1000)), lambda item: item, number=3)
    assert next(outputs) == 0
    outputs.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in_background")]


@settings(deadline=None)
@given(kinds=st.lists(st.integers(0, 3), max_size=60), size=st.integers(1, 5))
def test_every_item_is_answered_in_order_with_its_like(kinds: list[int], size: int) -> None:
    groups: list[list[tuple[int, int]]] = []

    def run(group: list[tuple[int, int]]) -> list[tuple[int, int]]:
        groups.append(group)
        return group

    items = list(enumerate(kinds))
    assert list(in_groups(items, lambda item: item[1], run, size=size)) == items
    assert all(len(group) <= size and len({kind for _, kind in group}) == 1 for group in groups)


def test_items_of_one_kind_fill_groups_and_rare_ones_do_not_wait_for_ever() -> None:
    sizes: list[int] = []

    def run(group: list[int]) -> list[int]:
        sizes.append(len(group))
        return group

    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for item in [7, *[0] * 100]:
            taken += 1
            yield item

    outputs = in_groups(items(), lambda item: item, run, size=4)
    assert next(outputs) == 7
    assert taken == 17  # it, and four groups after it
    assert list(outputs) == [0] * 100
    assert sorted(sizes) == [1] + [4] * 25


def test_in_background_is_a_bounded_number_ahead() -> None:
    begun: list[int] = []

    def count() -> Iterator[int]:
        for number in range(100):
            begun.append(number)
            yield number

    items = in_background(count(), number=3)
    assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
    items.close()
    assert len(begun) <= 5 + 3
    assert list(in_background(count(), number=3)) == list(range(100))
    assert list(in_background(iter(()), number=2)) == []


def test_in_background_raises_in_turn_and_ends_its_thread() -> None:
    closed: list[bool] = []

    def broken() -> Iterator[int]:
        try:
            yield 1
            raise ValueError("broken")
        finally:
            closed.append(threading.current_thread() is threading.main_thread())

    items = in_background(broken(), number=4)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
    assert closed == [False]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in_background")]
