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

OUTPUTS_APART = ("P3", "P4")  # levels whose output convolutions run last, because nothing but the head reads what they make


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
        full_output: Levels, of P3 and P4, with a second convolution that makes the level's map, the one that the full head was trained
            with. Only D3 reads P3 and only D4 reads P4, so a light D3 can have a convolution of its own at no cost, and everything else
            stays as it was.
    """

    def __init__(
        self, *, in_channels: Sequence[int], channels: int, p6_source: Literal["C5", "P5"], p7_relu: bool, full_output: Sequence[str] = ()
    ) -> None:
        extra = P6P7(c5_channels=in_channels[-1], channels=channels, source=p6_source, relu=p7_relu)
        super().__init__(list(in_channels), channels, extra_blocks=extra)
        self.out_channels = channels
        self.full_output = nn.Conv2d(channels, channels, 3, padding=1) if "P3" in full_output else None  # named as in files of 0.1.0
        self.full_outputs = nn.ModuleDict({name: nn.Conv2d(channels, channels, 3, padding=1) for name in full_output if name != "P3"})

    def forward(self, stages: Mapping[str, Tensor], *, full: bool = False) -> dict[str, Tensor]:
        """Maps by ``C3``..``C5`` -> maps by ``P3``..``P7``. ``full`` uses the full head's own convolutions, where there are some."""
        pyramid = self.merged(stages)
        return {**pyramid, **{level: self.output(level, full=full)(pyramid[level]) for level in OUTPUTS_APART}}

    def merged(self, stages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """All levels, with P3 and P4 as they are before their output convolutions."""
        named = OrderedDict((f"P{name[1:]}", stages[name]) for name in ("C3", "C4", "C5"))
        pyramid = super().forward(named)
        return {level: pyramid[level] for level in LEVELS}

    def output(self, level: str, *, full: bool = False) -> nn.Module:
        """The convolution that makes the map of P3 or P4."""
        return (self.full_convolutions().get(level) if full else None) or self.layer_blocks[OUTPUTS_APART.index(level)]

    def full_convolutions(self) -> dict[str, nn.Module]:
        """The full head's own convolutions, by level."""
        return ({} if self.full_output is None else {"P3": self.full_output}) | dict(self.full_outputs.items())

    def give_full_output(self, level: str, convolution: nn.Module) -> None:
        """Keep a level's convolution for the full head."""
        if level == "P3":
            self.full_output = convolution  # type: ignore[assignment]
        else:
            self.full_outputs[level] = convolution

    def drop_full_outputs(self) -> None:
        """Remove the full head's own convolutions."""
        self.full_output, self.full_outputs = None, nn.ModuleDict()

    def get_result_from_layer_blocks(self, x: Tensor, idx: int) -> Tensor:
        """Apply the output convolution of a level. P3 and P4 get theirs in :meth:`forward`.

        torchvision calls this method, with -1 for P5.
        """
        return x if 0 <= idx < len(OUTPUTS_APART) else self.layer_blocks[idx](x)
