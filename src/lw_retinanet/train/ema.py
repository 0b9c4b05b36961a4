"""A moving average of the weights, which is evaluated and saved instead of the last ones."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An average with ``decay``, which starts short: after n updates it remembers about n / 10 steps at most.

    Buffers (batch norm statistics) are averaged like parameters.
    """

    @torch.no_grad()
    def average(averages: Sequence[Tensor], current: Sequence[Tensor], num_averaged: Tensor | int) -> None:
        number = int(num_averaged)
        weight = 1 - min(decay, (1 + number) / (10 + number))
        # torch calls this once for each device and dtype; counters of batch norm are integers.
        if averages[0].is_floating_point():
            torch._foreach_lerp_(list(averages), list(current), weight)
        else:
            torch._foreach_copy_(list(averages), list(current))

    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)
