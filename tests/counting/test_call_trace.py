"""The tree of calls: every multiply-accumulate is booked once, to the innermost module whose code ran it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.counting.call_trace import trace
from lw_retinanet.errors import ConfigError

META = torch.device("meta")


class Functional(nn.Module):
    """Uses its linear layer's weight by itself, as torchvision's Swin does, then calls a convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        images = self.conv(self.conv(images))
        return F.linear(images, self.linear.weight)


def test_own_macs_of_every_call() -> None:
    with META:
        traced = trace(Functional(), torch.empty(1, 3, 8, 8))
    assert [(call.path, call.macs) for call in traced.calls] == [
        ((), 3 * 8 * 8 * 4),  # what its own code does, after the calls inside it
        (("conv",), 3 * 3 * 9 * 64),
        (("conv",), 3 * 3 * 9 * 64),
    ]
    assert traced.macs == 768 + 2 * 5184
    assert (traced.calls[0].input_side, traced.calls[0].output_side) == (8, 8)
    assert [call.path for call in traced.calls[1].chain()] == [(), ("conv",)]


def test_transposed_convolutions_count_by_their_input() -> None:
    with META:
        traced = trace(nn.ConvTranspose2d(4, 6, 2, stride=2), torch.empty(1, 4, 5, 5))
    assert traced.macs == 5 * 5 * 4 * 6 * 4
    assert traced.calls[0].output_side == 10


def test_hooks_are_gone_afterwards_even_when_it_fails() -> None:
    with META:
        network = nn.Sequential(nn.Conv2d(3, 3, 9))
        with pytest.raises(ConfigError, match="Sequential cannot be counted at this size, use another size"):
            trace(network, torch.empty(1, 3, 4, 4))
        assert trace(network, torch.empty(1, 3, 9, 9)).macs == 3 * 3 * 81
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
