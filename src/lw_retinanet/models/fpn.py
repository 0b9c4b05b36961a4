"""The feature pyramid P3..P7 on torchvision's FPN."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from lw_retinanet.conventions import LEVELS


class P6P7(ExtraFPNBlock):
    """P6 is a convolution of stride 2 of C5 or P5, P7 another one of P6. torchvision's own block has a fixed source and ReLU."""

    def __init__(self, *, c5_channels: int, channels: int, source: Literal["C5", "P5"], relu: bool) -> None:
        super().__init__()
        self.source = source
        self.relu = relu
        self.p6 = nn.Conv2d(c5_channels if source == "C5" else channels, channels, 3, 2, 1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, 1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the pyramid ``p`` and its names; ``c`` are C3..C5."""
        p6 = _conv(self.p6, c[-1] if self.source == "C5" else p[-1])
        p7 = _conv(self.p7, F.relu(p6) if self.relu else p6)
        return [*p, p6, p7], [*names, "P6", "P7"]


def _conv(conv: nn.Module, maps: Tensor) -> Tensor:
    """``conv(maps)``; in fp32 for maps one cell wide or high that are trained on a CPU under autocast.

    There, on processors with AVX512-BF16 and without AMX, PyTorch's bf16 gradient of these weights is uninitialised memory (torch 2.14).
    """
    if maps.device.type == "cpu" and 1 in maps.shape[-2:] and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
        with torch.autocast("cpu", enabled=False):
            exact: Tensor = conv(maps.float())
        return exact
    output: Tensor = conv(maps)
    return output


class FPN(FeaturePyramidNetwork):
    """C3..C5 -> P3..P7, all with the same number of channels.

    Args:
        in_channels: Channels of C3, C4, C5.
        channels: Channels of every level.
        p6_source: ``C5`` or ``P5``.
        p7_relu: Apply a ReLU between P6 and P7.
        full_output: Keep a second convolution that makes P3, the one that the full head was trained with. Only D3 reads P3, so a light D3
            can have its own at no cost, and everything else stays as it was.
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: int, p6_source: Literal["C5", "P5"], p7_relu: bool, full_output: bool = False
    ) -> None:
        extra = P6P7(c5_channels=in_channels[-1], channels=channels, source=p6_source, relu=p7_relu)
        super().__init__(list(in_channels), channels, extra_blocks=extra)
        self.out_channels = channels
        self.full_output = nn.Conv2d(channels, channels, 3, padding=1) if full_output else None

    def forward(self, stages: Mapping[str, Tensor], *, full: bool = False) -> dict[str, Tensor]:
        """Maps by ``C3``..``C5`` -> maps by ``P3``..``P7``. ``full`` uses the full head's own convolution for P3, if there is one."""
        pyramid = self.merged(stages)
        convolution = self.full_output if full and self.full_output is not None else self.layer_blocks[0]
        return {**pyramid, "P3": convolution(pyramid["P3"])}

    def merged(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All levels, with P3 as it is before its output convolution."""
        named = OrderedDict((f"P{name[1:]}", stages[name]) for name in ("C3", "C4", "C5"))
        pyramid = super().forward(named)
        return {level: pyramid[level] for level in LEVELS}

    def get_result_from_layer_blocks(self, x: Tensor, idx: int) -> Tensor:
        """Apply the output convolution of a level; torchvision calls this method. P3 gets its convolution in :meth:`forward`."""
        return x if idx == 0 else self.layer_blocks[idx](x)
