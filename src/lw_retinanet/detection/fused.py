"""Convolutions fused with the ReLU, or the addition and the ReLU, that directly follow them; for CUDA by :mod:`.fused_cuda`.

On a CPU, PyTorch runs these as separate passes over the feature maps, which takes a third of the network's time in bf16. oneDNN, which
computes the convolutions, can do them before the output leaves the cache; we call the same operators as ``torch.compile``. Laying out the
weights for oneDNN only once saves another tenth of the time in fp32 and a sixth in bf16. In fp32 only the order of some sums changes; in
bf16 a sum is rounded once instead of twice.
"""

from itertools import pairwise
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from lw_retinanet.detection.fused_cuda import CudaConv, CudaFPN, CudaPool
from lw_retinanet.devices import has_triton
from lw_retinanet.models.backbone import ResNetBackbone
from lw_retinanet.models.fold import has_hooks
from lw_retinanet.models.retinanet import RetinaNet

_PACKED_SHAPES = 5  # input shapes, for instance the levels of a head; each keeps one more copy of the weights
_UNUSED_CALLS = 4 * _PACKED_SHAPES  # after so many calls without a shape, another one may take its place


class FusedConv(nn.Module):
    """A convolution, then an addition if there is something to add, then an activation.

    Args:
        conv: Zero-padded.
        activation: ``nn.ReLU``, None, or ``nn.ReLU6``, before which nothing can be added.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        assert isinstance(conv.padding, tuple)
        self.weight = conv.weight.detach()
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self._calls, self._last_call = 0, dict[tuple[int, ...], int]()
        self.bias = conv.bias
        self.how = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        # oneDNN calls clipping to 0..6 "hardtanh".
        self.activation: tuple[str, list[float]] = ("none", [])
        if activation is not None:
            self.activation = ("hardtanh", [0.0, 6.0]) if isinstance(activation, nn.ReLU6) else ("relu", [])

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        """``activation(conv(features) + added)``."""
        features = features.to(self.weight.dtype)
        self._calls += 1
        weight = self.packed.get(features.shape)
        if weight is None:
            weight = self._pack(features)
        else:
            self._last_call[features.shape] = self._calls
        operators: Any = torch.ops.mkldnn._convolution_pointwise
        name, scalars = self.activation
        if added is None:
            output: Tensor = operators.default(features, weight, self.bias, *self.how, name, scalars, "")
        else:
            added = added.to(weight.dtype)
            then = "relu" if name == "relu" else None
            output = operators.binary(features, added, weight, self.bias, *self.how, "add", 1.0, then, [], None)
        return output

    def _pack(self, features: Tensor) -> Tensor:
        """The weights in the layout that oneDNN needs for an input of this shape.

        Plain weights work too, but are laid out at every call. Weights in the layout of another shape are laid out far more slowly.
        Several threads may do this for the same shape."""
        shape = tuple(features.shape)
        if len(self.packed) >= _PACKED_SHAPES:
            last_call, oldest = min((call, known) for known, call in list(self._last_call.items()))
            if self._calls - last_call <= _UNUSED_CALLS:
                return self.weight
            self._last_call.pop(oldest, None)
            self.packed.pop(oldest, None)
        padding, stride, dilation, groups = self.how
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(self.weight, padding, stride, dilation, groups, list(shape))
        self.packed[shape], self._last_call[shape] = packed, self._calls
        return packed


class FusedBlock(nn.Module):
    """torchvision's ``BasicBlock`` or ``Bottleneck``, with its norms folded; the last convolution adds the shortcut."""

    def __init__(self, block: BasicBlock | Bottleneck, made: "type[FusedConv | CudaConv]") -> None:
        super().__init__()
        convs = _convs_of(block)
        self.downsample = block.downsample
        self.convs = nn.Sequential(*(made(conv, block.relu) for conv in convs[:-1]))
        self.last = made(convs[-1], block.relu)

    def forward(self, features: Tensor) -> Tensor:
        """What the block returns."""
        shortcut = features if self.downsample is None else self.downsample(features)
        output: Tensor = self.last(self.convs(features), shortcut)
        return output


@torch.no_grad()
def fuse(model: RetinaNet) -> bool:
    """Fuse ResNet blocks and stems, and pairs of convolution and ReLU in any ``nn.Sequential``, in place.

    Args:
        model: In evaluation mode, with batch norm folded (:func:`lw_retinanet.models.fold.folded`), and private to the caller.

    Returns:
        Whether anything changed. Nothing does if PyTorch was built without oneDNN, or on a CUDA device in fp32.
    """
    made = _maker(model)
    if made is None:
        return False
    before = _count(model, made)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) in (BasicBlock, Bottleneck) and _is_folded(child):
                setattr(parent, name, FusedBlock(child, made))
        if isinstance(parent, nn.Sequential):
            _fuse_sequence(parent, made)
        elif type(parent) is ResNetBackbone and isinstance(parent.bn1, nn.Identity) and _is_fusible(parent.conv1):
            parent.conv1, parent.relu = made(parent.conv1, parent.relu), nn.Identity()
    for parent in list(model.modules()):  # convolutions without an activation gain by the layout of their weights, or by their bias
        for name, child in parent.named_children():
            if _is_fusible(child):
                setattr(parent, name, made(child, None))
    if made is CudaConv:
        if isinstance(model.backbone, ResNetBackbone) and has_triton("cuda"):
            model.backbone.maxpool = CudaPool()
        if CudaFPN.fits(model.fpn):
            model.fpn = CudaFPN(model.fpn)  # type: ignore[assignment]
    return _count(model, made) > before


def _maker(model: nn.Module) -> "type[FusedConv | CudaConv] | None":
    weight = next(module.weight for module in model.modules() if isinstance(module, nn.Conv2d))
    if weight.device.type == "cpu":
        is_there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        return FusedConv if is_there else None
    return CudaConv if weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16) else None


def _count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in model.modules())


def _fuse_sequence(sequence: nn.Sequential, made: "type[FusedConv | CudaConv]") -> None:
    places = [place for place, module in enumerate(sequence) if not isinstance(module, nn.Identity)]
    for place, following in pairwise(places):
        conv, activation = sequence[place], sequence[following]
        if _is_fusible(conv) and type(activation) in (nn.ReLU, nn.ReLU6) and not has_hooks(activation):
            sequence[place], sequence[following] = made(conv, activation), nn.Identity()


def _is_fusible(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    is_plain = type(module) is nn.Conv2d and module.padding_mode == "zeros" and isinstance(module.padding, tuple)
    return is_plain and not has_hooks(module)


def _is_folded(block: nn.Module) -> bool:
    norms = [child for name, child in block.named_children() if name.startswith("bn")]
    plain = (
        type(block.relu) is nn.ReLU
        and all(isinstance(norm, nn.Identity) for norm in norms)
        and all(_is_fusible(conv) for conv in _convs_of(block))
    )
    return plain and not has_hooks(block) and not any(has_hooks(child) for child in block.children())


def _convs_of(block: nn.Module) -> list[Any]:
    return [child for name, child in block.named_children() if name.startswith("conv")]
