"""CUDA graphs: all kernels of a computation launched at once, for inputs whose shapes repeat."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from lw_retinanet.errors import first_line

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[..., Tensor]
KEPT = 4  # graphs; each holds the memory of its feature maps
_REPEATS = 2  # calls without a graph: they choose kernels, and a shape that comes once is not worth a graph
_SEEN = 64  # shapes that were seen, but not often enough
_UNUSED_CALLS = 32  # after so many calls a graph may make room for another


class RepeatedShapes(Generic[T]):
    """Keeps recordings, which are costly to make, for shapes that repeat. Where every input has another shape, none is made.

    Args:
        kept: Largest number of recordings kept. One that was not asked for in many calls makes room for another.
        what: What goes on without recordings, after one could not be made; for the log.
    """

    def __init__(self, kept: int, *, what: str) -> None:
        self._kept = kept
        self._what = what
        self._is_off = False
        self._made: OrderedDict[Hashable, tuple[int, T]] = OrderedDict()  # with the call that last asked for it
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._calls = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T | None:
        """The recording for this key, made now if need be; None while the key came too rarely, or nothing can be recorded."""
        if self._is_off:
            return None
        self._calls += 1
        if key in self._made:
            made = self._made.pop(key)[1]
        else:
            count = self._seen[key] = self._seen.pop(key, 0) + 1
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
            if count <= _REPEATS or not self._has_room():
                return None
            del self._seen[key]
            try:
                made = make()
            except RuntimeError as error:  # not enough memory, or an operation that cannot be recorded
                self._is_off = True
                log.info("%s without CUDA graphs: %s", self._what, first_line(error))
                return None
        self._made[key] = (self._calls, made)
        return made

    def _has_room(self) -> bool:
        if len(self._made) >= self._kept:
            oldest = next(iter(self._made))
            if self._calls - self._made[oldest][0] <= _UNUSED_CALLS:
                return False
            del self._made[oldest]
        return True


class CudaGraphs:
    """Runs a computation, from its third call with the same shapes on as one CUDA graph.

    Recording takes as long as a few calls. The memory of a graph goes back to PyTorch when another one takes its place.

    Args:
        record: Makes a replay of a computation and its inputs; for tests.
        kept: Largest number of graphs.
    """

    def __init__(self, *, record: "Callable[[Work, tuple[Tensor, ...]], Work] | None" = None, kept: int = KEPT) -> None:
        self._record = record or record_graph
        self._replays: RepeatedShapes[Work] = RepeatedShapes(kept, what="the network runs")
        self._running = threading.Lock()

    @torch.inference_mode()
    def run(self, name: Hashable, work: Work, *inputs: Tensor) -> Tensor:
        """``work(*inputs)``, copied to the host.

        Args:
            name: Says what is computed; calls with the same name and shapes compute the same function.
            work: Shapes of its result depend on shapes alone, and it does not make the host wait.
            inputs: On the device.
        """
        key = (name, *((value.shape, value.dtype, value.stride()) for value in inputs))
        with self._running:  # a graph has one place for its inputs and one for its result
            replay = self._replays.get(key, lambda: self._record(work, inputs))
            return (replay or work)(*inputs).cpu()


def record_graph(work: Work, inputs: tuple[Tensor, ...]) -> Work:
    """A function that copies inputs of the same shapes to the graph's own, and launches the graph."""
    held = tuple(value.clone() for value in inputs)
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile; only what this thread does must fit into a graph.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = work(*held)

    def replay(*values: Tensor, _owner: Work = work) -> Tensor:  # the graph may read what belongs to the computation
        for own, value in zip(held, values, strict=True):
            own.copy_(value, non_blocking=True)
        graph.replay()
        return result

    return replay
