"""Batch norm with fixed statistics, multiplied into the convolution before it instead of into every pixel after it.

The parameters and their names stay those of convolution and norm, so weights load and train as usual; only the arithmetic moves: one
product of the size of the kernel instead of two passes over the feature map, and no step back to fp32 under bf16 autocast.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d; only applies its activation once a convolution has taken the rest over."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.taken_over = False
        self.act: nn.Module | None = None  # timm's norms carry the activation behind them

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(C,) factors and offsets."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, features: Tensor) -> Tensor:
        if not self.taken_over:
            features = super().forward(features)
        return features if self.act is None else self.act(features)


class NormedConv2d(nn.Conv2d):
    """A bias-free convolution that applies the frozen norm behind it. Made by :func:`fold_frozen_norms` only."""

    norm_holder: tuple[FrozenNorm]  # in a tuple, so that the norm's parameters stay registered under their own name alone

    def forward(self, features: Tensor) -> Tensor:
        scale, shift = self.norm_holder[0].scale_and_shift()
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(features, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def fold_frozen_norms(module: nn.Module) -> None:
    """Let every plain convolution inside ``module`` take over the FrozenNorm that directly follows it among its siblings."""
    for parent in list(module.modules()):
        children = list(parent.children())
        for conv, norm in pairwise(children):
            if type(conv) is nn.Conv2d and conv.bias is None and type(norm) is FrozenNorm and conv.padding_mode == "zeros":
                conv.__class__ = NormedConv2d
                conv.norm_holder = (norm,)  # type: ignore[assignment]
                norm.taken_over = True


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside ``module`` by a FrozenNorm with the same statistics and affine."""
    for name, child in module.named_children():
        if not isinstance(child, nn.BatchNorm2d):
            freeze_batch_norms(child)
            continue
        frozen = FrozenNorm(child.num_features, eps=child.eps)
        with torch.no_grad():
            for key in ("weight", "bias", "running_mean", "running_var"):
                getattr(frozen, key).copy_(getattr(child, key))
        activation = getattr(child, "act", None)
        if isinstance(activation, nn.Module) and not isinstance(activation, nn.Identity):
            frozen.act = activation
        setattr(module, name, frozen)
