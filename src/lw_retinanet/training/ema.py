"""The moving average of the weights, which is evaluated and saved instead of the last weights."""

from collections import defaultdict
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """Moving average of all weights, and of buffers such as batch norm statistics. Its first updates weigh recent weights more.

    torch's own update keeps its counter on the device and reads it back; this one never waits for the device.

    Args:
        model: Network to average; it is copied.
        decay: Decay of the average. After n updates it is at most (1 + n) / (10 + n), so that the average forgets the first weights soon.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Add the present weights of the model; the first call copies them."""
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
