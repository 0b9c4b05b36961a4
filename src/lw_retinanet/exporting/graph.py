"""The network as a module of plain tensors, and its trace by ``torch.export``, for any batch, height and width."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from lw_retinanet.errors import ExportError, first_line
from lw_retinanet.exporting.extras import quiet
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet

TRACED_SIZE_HW = (288, 416)  # no side of any level is 1, which would be taken for a constant
TRACED_BATCH = 2
IMAGES, SIZES = "images", "sizes_hw"


class ExportGraph(nn.Module):
    """What every export target can write: a module with named inputs and outputs. The first input is ``images``."""

    inputs: ClassVar[tuple[str, ...]]
    outputs: ClassVar[tuple[str, ...]]


class RawGraph(ExportGraph):
    """(N, 3, H, W) normalised images -> (N, A, K) logits and (N, A, 4) deltas, with batch norm folded into the convolutions.

    Args:
        model: Not changed.
        full_head: Answer with the head that a lightened model had before.
    """

    inputs = (IMAGES,)
    outputs = ("logits", "deltas")

    def __init__(self, model: RetinaNet, *, full_head: bool = False) -> None:
        super().__init__()
        self.network = folded(model).cpu().float()
        self.full_head = full_head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and deltas of all anchors."""
        predictions = self.network(images, full_head=self.full_head)
        return predictions.logits, predictions.deltas


def trace(graph: ExportGraph) -> torch.export.ExportedProgram:
    """Trace a graph with a dynamic batch, height and width.

    Raises:
        ExportError: If the network is not one graph for all sizes, for instance because a backbone looks at them in Python.
    """
    dynamic = torch.export.Dim.DYNAMIC
    shapes = ({0: dynamic, 2: dynamic, 3: dynamic}, {0: dynamic})
    example = example_inputs(graph, TRACED_BATCH, TRACED_SIZE_HW)
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(graph.eval(), example, dynamic_shapes=shapes[: len(example)])
    except Exception as error:  # what a backbone of another package may raise here has no common base
        reason = first_line(error)
        raise ExportError(f"the network cannot be written as one graph for all sizes ({reason[:200]}); use a ResNet") from error


def example_inputs(graph: ExportGraph, batch: int, size_hw: tuple[int, int], *, seed: int = 0) -> tuple[Tensor, ...]:
    """Inputs that a graph takes: smooth noise, without padding."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((batch, 3, max(2, size_hw[0] // 24), max(2, size_hw[1] // 24)), generator=generator)
    images = nn.functional.interpolate(coarse, size=size_hw, mode="bilinear", align_corners=False)
    return with_sizes(graph.inputs, images)


def with_sizes(names: Sequence[str], images: Tensor) -> tuple[Tensor, ...]:
    """Values for a graph's inputs: the images and, if the graph asks for them, their own sizes, without padding."""
    return (images, full_sizes(images)) if len(names) > 1 else (images,)


def full_sizes(images: Tensor) -> Tensor:
    """(N, 2) int64 height and width of images that fill their tensor."""
    return torch.tensor([images.shape[2:]] * len(images))
