"""Balanced channels inside a light head, made before int8, which has one step between numbers for all channels of a tensor."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.lightening.towers import convolutions, ends_in_relu, has_norm
from lw_retinanet.models.fpn import OUTPUTS_APART
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
    links = _links(network)
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


def _links(network: RetinaNet) -> list[_Link]:
    """Behind new layers, and behind P3 and P4. What reads such a tensor must read no other one, and not be part of the full head."""
    writers: dict[nn.Module, set[nn.Module]] = {}
    readers: dict[nn.Module, dict[nn.Module, None]] = {}
    branches = (network.head.cls, network.head.bbox)
    for level in LEVELS:
        output = network.fpn.output(level) if level in OUTPUTS_APART else network.fpn
        for branch in branches:
            units, predict = branch.layers(level)
            for one, following in pairwise([output, *units, predict]):
                writers.setdefault(following, set()).add(one)
                readers.setdefault(one, {})[following] = None
    own = {layer for branch in branches for units in branch.own_units.values() for layer in units.children()}
    old = {layer for branch in branches for layer in (*branch.shared_units.children(), branch.shared_predict)}
    links = []
    for one, read in readers.items():
        is_output = one in network.fpn.layer_blocks.children()
        is_linear = is_output or (one in own and (ends_in_relu(one) or isinstance(one, nn.Conv2d)) and not has_norm(one))
        if is_linear and all(writers[each] == {one} and each not in old for each in read):
            links.append(_Link(output=one, writer=convolutions(one)[-1], readers=tuple(convolutions(each)[0] for each in read)))
    return links


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
