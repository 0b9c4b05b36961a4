from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lw_retinanet.detection.cuda_graphs import CudaGraphs, RepeatedShapes, Work

recorded: list[tuple[int, ...]] = []


def pretend(work: Work, inputs: tuple[Tensor, ...]) -> Work:
    """As a graph does: from now on only the values of the inputs count."""
    recorded.append(tuple(inputs[0].shape))
    held = tuple(value.clone() for value in inputs)

    def replay(*values: Tensor) -> Tensor:
        for own, value in zip(held, values, strict=True):
            own.copy_(value)
        return work(*held)

    return replay


@pytest.fixture
def graphs() -> CudaGraphs:
    recorded.clear()
    return CudaGraphs(record=pretend, kept=4)


def double(values: Tensor) -> Tensor:
    return 2 * values


def test_a_shape_that_repeats_is_recorded_once(graphs: CudaGraphs) -> None:
    for call in range(6):
        assert graphs.run("double", double, torch.full((2, 3), float(call))).tolist() == [[2.0 * call] * 3] * 2
        assert recorded == ([] if call < 2 else [(2, 3)])


def test_other_names_and_layouts_are_other_graphs(graphs: CudaGraphs) -> None:
    works: list[tuple[str, Callable[[Tensor], Tensor]]] = [("double", double), ("negative", torch.neg)]
    for _ in range(4):
        assert [float(graphs.run(name, work, torch.ones(1))) for name, work in works] == [2, -1]
    for _ in range(3):
        graphs.run("double", double, torch.ones(1, 3, 2, 2))
        graphs.run("double", double, torch.ones(1, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    assert recorded == [(1,), (1,), (1, 3, 2, 2), (1, 3, 2, 2)]


def test_where_every_image_has_another_shape_nothing_is_recorded(graphs: CudaGraphs) -> None:
    for _ in range(4):
        for side in range(1, 100):
            graphs.run("double", double, torch.zeros(side))
    assert recorded == []


def test_a_shape_that_was_not_asked_for_makes_room() -> None:
    shapes: RepeatedShapes[str] = RepeatedShapes(2, what="it runs")

    def get(name: str) -> str | None:
        return shapes.get(name, lambda: name)

    assert [get(name) for name in "aaabbb"] == [None, None, "a", None, None, "b"]
    # Three shapes in turns: making each anew whenever it comes would take longer than doing without one of them.
    assert {get(name) for name in "abc" * 20} == {"a", "b", None}
    assert [get(name) for name in "ca" * 40][-2:] == ["c", "a"]
    assert get("b") is None


def test_a_device_that_cannot_record_runs_without_graphs() -> None:
    def refuse(work: Work, inputs: tuple[Tensor, ...]) -> Work:
        recorded.append(tuple(inputs[0].shape))
        raise RuntimeError("operation not permitted when stream is capturing")

    recorded.clear()
    graphs = CudaGraphs(record=refuse)
    for call in range(6):
        assert graphs.run("double", double, torch.full((2,), float(call))).tolist() == [2.0 * call] * 2
    assert recorded == [(2,)]  # tried once
