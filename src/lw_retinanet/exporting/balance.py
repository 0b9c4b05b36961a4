"""Balanced channels inside a light head, made before int8, which has one step between numbers for all channels of a tensor."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lw_retinanet.lightening.towers import convolutions, ends_in_relu, has_norm
from lw_retinanet.models.head import Branch
from lw_retinanet.models.retinanet import RetinaNet

NUM_IMAGES = 16
_SMALLEST = 1e-3  # of the largest: a channel that is always zero must not get endless weights


@dataclass(frozen=True, kw_only=True, eq=False)
class _Link:
    """A tensor between convolutions that nothing else reads. A ReLU may lie between: it commutes with positive factors.

    Args:
        output: The module whose output the tensor is.
        writer: The convolution that makes its channels.
        readers: The convolutions that read them.
    """

    output: nn.Module
    writer: nn.Conv2d
    readers: tuple[nn.Conv2d, ...]


@torch.no_grad()
def balance_channels(network: RetinaNet, inputs: Iterable[Tensor]) -> int:
    """Move the differences between the channels inside the light towers half into the weights that read them, in place.

    The network computes what it did before, but for rounding. The towers of a lightened model need this: their closed form gives channels
    very different ranges, since some imitate features and others carry the estimate of the outputs. Moving all of the difference would
    give the weights of a row the ranges that the channels had.

    Args:
        network: A folded network.
        inputs: (N, 3, H, W) images as the network takes them, to measure ranges on.

    Returns:
        The number of tensors whose channels were scaled; 0 for a network without a light head.

    Source: Xiao et al., SmoothQuant (2022), equation 4 with alpha = 0.5, for convolutions. The factors cost nothing here, because a
        convolution before takes them over.
    """
    links = [*_pyramid_links(network), *_tower_links(network.head.cls), *_tower_links(network.head.bbox)]
    if not links:
        return 0
    for link, largest in zip(links, _ranges(network, links, inputs), strict=True):
        read = torch.stack([_largest_weights(reader) for reader in link.readers]).amax(dim=0)
        scale = (_relative(largest) / _relative(read)).sqrt()
        link.writer.weight /= scale[:, None, None, None]
        if link.writer.bias is not None:
            link.writer.bias /= scale
        for reader in link.readers:
            reader.weight *= scale[:, None, None, None] if reader.groups > 1 else scale[None, :, None, None]
    return len(links)


def _largest_weights(reader: nn.Conv2d) -> Tensor:
    """(C,) largest absolute weight of each input channel; a depthwise convolution has one row for each."""
    return reader.weight.abs().amax(dim=(1, 2, 3) if reader.groups > 1 else (0, 2, 3))


def _relative(values: Tensor) -> Tensor:
    return (values / values.max().clamp(min=1e-30)).clamp(min=_SMALLEST)


def _tower_links(branch: Branch) -> Iterator[_Link]:
    """Between the own layers of a level, of which neither has a norm."""
    for level, plan in branch.plans.items():
        if plan is None:
            continue
        units, predict = branch.layers(level)
        own = {id(module) for modules in (branch.own_units[level], branch.own_predict) for module in modules.modules()}
        for unit, following in pairwise([*units, predict]):
            is_linear = ends_in_relu(unit) or isinstance(unit, nn.Conv2d)
            if is_linear and {id(unit), id(following)} <= own and not has_norm(unit):
                yield _Link(output=unit, writer=convolutions(unit)[-1], readers=(convolutions(following)[0],))


def _pyramid_links(network: RetinaNet) -> Iterator[_Link]:
    """P3, where its convolution serves new towers only."""
    first = [(branch, branch.layers("P3")[0][0]) for branch in (network.head.cls, network.head.bbox)]
    if all(branch.plans["P3"] is not None and unit in branch.own_units["P3"].children() for branch, unit in first):
        output = network.fpn.layer_blocks[0]
        yield _Link(output=output, writer=convolutions(output)[0], readers=tuple(convolutions(unit)[0] for _, unit in first))


def _ranges(network: RetinaNet, links: list[_Link], inputs: Iterable[Tensor]) -> list[Tensor]:
    """(C,) largest absolute value of each link's channels."""
    largest: dict[nn.Module, Tensor] = {}

    def note(module: nn.Module, _: object, output: Tensor) -> None:
        found = output.abs().amax(dim=(0, 2, 3))
        largest[module] = torch.maximum(largest.get(module, found), found)

    handles = [link.output.register_forward_hook(note) for link in links]
    try:
        for images in inputs:
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    return [largest[link.output] for link in links]
