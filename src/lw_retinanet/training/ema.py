"""A moving average of the weights, which is evaluated and saved instead of the last ones."""

from collections import defaultdict
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """torch's container with an update that never waits for the device: torch's own sends its counter there, to be read again.

    Args:
        model: copied.
        decay: of the average, once that is long enough.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's present weights in; the first time they are copied."""
        number = int(self.n_averaged)  # on the CPU, wherever the model is
        weight = 1 - min(self.decay, (1 + number) / (10 + number))
        averages = chain(self.module.parameters(), self.module.buffers())
        groups: defaultdict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for average, current in zip(averages, chain(model.parameters(), model.buffers()), strict=True):
            group = groups[average.dtype]
            group[0].append(average.detach())
            group[1].append(current.detach())
        for dtype, (average_of_dtype, current_of_dtype) in groups.items():
            # Counters of batch norm are integers.
            if number and dtype.is_floating_point:
                torch._foreach_lerp_(average_of_dtype, current_of_dtype, weight)
            else:
                torch._foreach_copy_(average_of_dtype, current_of_dtype)
        self.n_averaged += 1


def make_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An average with ``decay``, which starts short: after n updates it remembers about n / 10 steps at most.

    Buffers (batch norm statistics) are averaged like parameters.
    """
    return MovingAverage(model, decay)
