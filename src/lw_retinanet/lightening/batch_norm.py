"""Batch norms directly behind the convolutions of a unit. In evaluation mode such a pair is one linear map."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lw_retinanet.lightening.towers import LevelPair, convolutions, norm_behind
from lw_retinanet.models.fold import fold_norm

_MAX_MAPS = 32  # that statistics are taken from: some 10^5 cells


def as_affine(module: nn.Module, conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weights and offsets of a convolution together with the batch norm behind it, if there is one; float32, on the CPU."""
    norm = norm_behind(module, conv)
    if norm is None:
        return conv.weight.float().cpu(), torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.float().cpu()
    weight, bias = fold_norm(conv.weight, conv.bias, norm)
    return weight.float().cpu(), bias.float().cpu()


def set_offset(module: nn.Module, conv: nn.Conv2d, offset: Tensor) -> None:
    """Let a convolution whose weights are set add (outputs,) offsets. A norm behind it adds them, and is otherwise the identity.

    If the convolution has neither bias nor norm, the offsets are dropped.
    """
    norm = norm_behind(module, conv)
    if norm is not None:
        norm.reset_parameters()  # mean 0, variance 1
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        norm.bias.copy_(offset)
    elif conv.bias is not None:
        conv.bias.copy_(offset)


@torch.no_grad()
def settle(unit: nn.Module, maps: Sequence[Tensor]) -> None:
    """Set the statistics of a unit's batch norms to those of their inputs, and adapt weights and biases so that the outputs stay the same.

    Training, where batch norms use the statistics of the batch, then starts from the same function.

    Args:
        unit: A unit in evaluation mode.
        maps: (1, C, H, W) maps that enter it.
    """
    if not any(norm_behind(unit, conv) for conv in convolutions(unit)):
        return
    assert isinstance(unit, nn.Sequential)
    for layer, norm in zip(list(unit), [*list(unit)[1:], nn.Identity()], strict=True):
        maps = [layer(item) for item in maps]
        if isinstance(layer, nn.Conv2d) and norm is norm_behind(unit, layer):
            _set_statistics(norm, torch.cat([item.flatten(2)[0] for item in maps], dim=1))


@torch.no_grad()
def settle_new(level: LevelPair, maps: Sequence[Tensor]) -> None:
    """:func:`settle` the new units of a level, with some of the maps that enter the level."""
    for pair in level.pairs:
        units = pair.student.units
        if not any(isinstance(part, nn.BatchNorm2d) for unit in units for part in unit.modules()):
            continue
        weight = convolutions(units[0])[0].weight
        seen = [level.new_maps(item.to(weight)) for item in maps[:_MAX_MAPS]]
        for unit in units:
            if not pair.is_shared(unit):
                settle(unit, seen)
            seen = [unit(item) for item in seen]


def _set_statistics(norm: nn.BatchNorm2d, values: Tensor) -> None:
    """Set the statistics of a norm to those of (C, n) input values."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = values.double().mean(dim=1)
    variance = values.double().var(dim=1, correction=0)
    factor = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    norm.bias.copy_(norm.bias.double() + (mean - norm.running_mean.double()) * factor)
    norm.weight.copy_(factor * (variance + norm.eps).sqrt())
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@contextmanager
def fixed_statistics(level: LevelPair) -> Iterator[None]:
    """Put all batch norms of a level's towers into evaluation mode for a while, whatever mode the model is in."""
    towers = [*level.old.values(), *(pair.student for pair in level.pairs)]
    norms = {part for tower in towers for layer in tower.layers for part in layer.modules() if isinstance(part, nn.BatchNorm2d)}
    flags = {norm: norm.training for norm in norms}
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm, flag in flags.items():
            norm.train(flag)
