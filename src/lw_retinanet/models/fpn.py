"""The feature pyramid P3..P7 on torchvision's FPN."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from lw_retinanet.conventions import LEVELS


class P6P7(ExtraFPNBlock):
    """P6 by a stride-2 convolution of C5 or P5, P7 by another of P6. torchvision's own block has no choice about source and ReLU."""

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
        p6 = self.p6(c[-1] if self.source == "C5" else p[-1])
        p7 = self.p7(F.relu(p6) if self.relu else p6)
        return [*p, p6, p7], [*names, "P6", "P7"]


class FPN(FeaturePyramidNetwork):
    """C3..C5 -> P3..P7, all of one width.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: of every level.
        p6_source: ``C5`` or ``P5``.
        p7_relu: ReLU between P6 and P7.
    """

    def __init__(self, *, in_channels: Sequence[int], channels: int, p6_source: Literal["C5", "P5"], p7_relu: bool) -> None:
        extra = P6P7(c5_channels=in_channels[-1], channels=channels, source=p6_source, relu=p7_relu)
        super().__init__(list(in_channels), channels, extra_blocks=extra)
        self.out_channels = channels

    def forward(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Maps by ``C3``..``C5`` -> maps by ``P3``..``P7``."""
        named = OrderedDict((f"P{name[1:]}", stages[name]) for name in ("C3", "C4", "C5"))
        pyramid = super().forward(named)
        return {level: pyramid[level] for level in LEVELS}
