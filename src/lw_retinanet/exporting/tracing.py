"""A graph module -> torch's exported program, of any batch, height and width."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.extras import quiet

TRACED_SIZE_HW = (288, 416)  # no side of any level is 1, which would be taken for a constant
TRACED_BATCH = 2


def trace(graph: nn.Module) -> Any:
    """``torch.export`` of a :class:`~lw_retinanet.exporting.raw_graph.RawGraph` or an ``EndToEnd``: a ``torch.export.ExportedProgram``.

    Raises:
        ExportError: if the network is not one graph for all sizes, as of a backbone with code of its own.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic})
    example = example_inputs(graph, TRACED_BATCH, TRACED_SIZE_HW)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(graph.eval(), example, dynamic_shapes=shapes[: len(example)])
    except Exception as error:  # what a backbone of another package may raise here has no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"the network cannot be written as one graph for all sizes ({reason[:200]}); use a ResNet") from error


def example_inputs(graph: nn.Module, batch: int, size_hw: tuple[int, int], *, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs of the shapes that the graph takes: smooth noise, and pictures that fill all of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, max(2, size_hw[0] // 24), max(2, size_hw[1] // 24)), generator=generator)
    images = nn.functional.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    return with_sizes(graph.inputs, images)


def with_sizes(names: Any, images: Tensor) -> tuple[Tensor, ...]:
    """Images, and their own sizes where a graph's inputs ask for them."""
    names = tuple(names) if isinstance(names, Sequence) else ()
    return (images, torch.tensor([images.shape[2:]] * len(images))) if len(names) > 1 else (images,)
