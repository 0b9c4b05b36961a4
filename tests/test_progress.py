from collections.abc import Iterable
from typing import Any

from lw_retinanet.progress import tracked


def test_items_go_through_the_callable_if_there_is_one() -> None:
    seen = []

    def show(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        seen.append((total, what))
        return (10 * item for item in items)

    assert list(tracked([1, 2], 2, "fit P3", show)) == [10, 20]
    assert seen == [(2, "fit P3")]
    assert list(tracked([1, 2], 2, "fit P3", None)) == [1, 2]
