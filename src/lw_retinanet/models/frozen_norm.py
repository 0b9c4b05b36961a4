"""Batch norm with fixed statistics, applied to the kernel of the convolution before it instead of to the feature map after it.

The parameters and their names stay those of convolution and norm, so weights load and train as usual. Multiplying the kernel takes less
time than two passes over the feature map, and bf16 autocast does not have to return to fp32.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d


class FrozenNorm(FrozenBatchNorm2d):
    """torchvision's FrozenBatchNorm2d. Once a convolution has taken over its arithmetic, it only applies its activation."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.taken_over = False
        self.act: nn.Module | None = None  # timm's norms contain the activation that follows them

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Factors (C,) and offsets (C,) of the norm."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, features: Tensor) -> Tensor:
        """Normalise unless a convolution does it, then apply the activation."""
        if not self.taken_over:
            features = super().forward(features)
        return features if self.act is None else self.act(features)


class NormedConv2d(nn.Conv2d):
    """A convolution without bias that also applies the frozen norm after it. Only :func:`fold_frozen_norms` makes it."""

    norm_holder: tuple[FrozenNorm]  # in a tuple, so that the norm is not registered a second time

    def forward(self, features: Tensor) -> Tensor:
        """Convolution and norm in one step."""
        scale, shift = self.norm_holder[0].scale_and_shift()
        weight = self.weight * scale[:, None, None, None]
        return F.conv2d(features, weight, shift, self.stride, self.padding, self.dilation, self.groups)


def fold_frozen_norms(module: nn.Module) -> None:
    """Let every plain convolution inside ``module`` apply the FrozenNorm that directly follows it in the same parent module."""
    for parent in list(module.modules()):
        children = list(parent.children())
        for conv, norm in pairwise(children):
            if type(conv) is nn.Conv2d and conv.bias is None and type(norm) is FrozenNorm and conv.padding_mode == "zeros":
                conv.__class__ = NormedConv2d
                conv.norm_holder = (norm,)  # type: ignore[assignment]
                norm.taken_over = True


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every BatchNorm2d inside ``module`` by a FrozenNorm with the same statistics and affine parameters."""
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
