"""Folding: every batch norm becomes part of the convolution before it, which gives the same outputs with fewer layers.

Which convolution a norm follows is not guessed from names. The network is run once on the meta device, and a norm is folded only if its
input is always the output of one convolution, and nothing else reads that output.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.models.build import meta_copy
from lw_retinanet.models.frozen_norm import FrozenNorm, NormedConv2d
from lw_retinanet.models.retinanet import RetinaNet

Norm = nn.BatchNorm2d | nn.SyncBatchNorm | FrozenNorm  # or torchvision's, the base class of FrozenNorm
_PROBE_HW = (224, 288)  # multiples of 32, which every backbone takes


@torch.no_grad()
def folded(model: RetinaNet) -> RetinaNet:
    """Return a copy for inference in which every batch norm that follows a convolution is part of that convolution.

    Except for rounding, its outputs are those of the model in evaluation mode. Products are computed in float64. Some layers stay as they
    are: group norms; norms whose input does not come directly from a convolution, or is read by something else, too; layers with hooks;
    and layers that are not known to be a plain convolution or norm.

    Args:
        model: The model, on any device and in any precision. It is not changed.

    Returns:
        A copy in evaluation mode without gradients. It must not be written to a model file, whose record describes a network with norms.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    modules = list(copied.modules())
    shadow = meta_copy(copied)  # its modules come in the same order
    places = {module: place for place, module in enumerate(shadow.modules())}
    for shadow_conv, shadow_norm in _pairs(shadow):
        conv, norm = modules[places[shadow_conv]], cast(Norm, modules[places[shadow_norm]])
        assert isinstance(conv, nn.Conv2d)
        _take_over(copied, conv, norm)
    for module in modules:
        if type(module) is NormedConv2d:  # multiplies its weight by the norm in every call
            (norm,) = module.norm_holder
            del module.norm_holder
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            _take_over(copied, module, norm)
    return copied


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution joined with the norm after it, in evaluation mode.

    Args:
        weight: (outputs, inputs, height, width) weight of the convolution.
        bias: (outputs,) bias of the convolution, or None.
        norm: A norm with running statistics, on the device of the weight.

    Returns:
        ``(weight, bias)`` in float64.
    """
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    scale = (variance.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    offset = -mean.double() if bias is None else bias.double() - mean.double()
    shift = torch.zeros_like(scale) if norm.bias is None else norm.bias.double()
    return weight.double() * scale[:, None, None, None], offset * scale + shift


def _take_over(model: nn.Module, conv: nn.Conv2d, norm: Norm) -> None:
    weight, bias = fold_norm(conv.weight, conv.bias, norm)
    conv.bias = nn.Parameter(bias.to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
    rest = _activation(norm)
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is norm:
                setattr(parent, name, rest)


def _activation(norm: nn.Module) -> nn.Module:
    """The activation that timm's norms contain, else an identity."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity().eval()


def _pairs(model: RetinaNet) -> list[tuple[nn.Conv2d, Norm]]:
    """Convolutions and the norms that belong to them, from one run of each path through the model on the meta device."""
    watch = _Watch()
    with watch.modules(model.modules()), watch:
        images = torch.empty(1, 3, *_PROBE_HW, device="meta", dtype=next(model.parameters()).dtype)
        model(images)
        if _has_full_head(model):
            model(images, full_head=True)
    return watch.pairs()


def _has_full_head(model: RetinaNet) -> bool:
    branches = (model.head.cls, model.head.bbox)
    return all(branch.shared_predict is not None and len(branch.shared_units) == branch.num_shared_units for branch in branches)


class _Watch(TorchDispatchMode):
    """Records which operations read the output of each convolution. Tensors are recognised by their identity."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps the tensors alive, so that no id is used twice
        self.readers: dict[int, list[Norm | None]] = {}  # for each output, one entry a reader: the norm that read it, or None
        self.inputs: dict[Norm, list[int]] = {}
        self.running: list[Norm] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self.made:
                self.readers[id(leaf)].append(self.running[-1] if self.running else None)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def modules(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Watch all layers that could be folded."""
        handles = []
        for module in modules:
            if _is_plain_conv(module):
                handles.append(module.register_forward_hook(self._note_output))
            elif _is_plain_norm(module):
                handles += [module.register_forward_pre_hook(self._enter), module.register_forward_hook(self._leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note_output(self, conv: nn.Module, _: Any, output: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        self.made[id(output)] = (output, conv)
        self.readers[id(output)] = []

    def _enter(self, norm: Any, inputs: tuple[Tensor, ...]) -> None:
        self.inputs.setdefault(norm, []).append(id(inputs[0]))
        self.running.append(norm)

    def _leave(self, *_: Any) -> None:
        self.running.pop()

    def pairs(self) -> list[tuple[nn.Conv2d, Norm]]:
        """Convolutions and norms of which every call of the one is read by exactly one call of the other, and by nothing else."""
        calls = Counter(conv for _, conv in self.made.values())
        found = []
        for norm, inputs in self.inputs.items():
            convs = {self.made[key][1] if key in self.made else None for key in inputs}
            conv = convs.pop()
            if not convs and conv is not None and calls[conv] == len(inputs) and all(self.readers[key] == [norm] for key in inputs):
                found.append((conv, norm))
        return found


def _is_plain_conv(module: nn.Module) -> bool:
    # A subclass or a hook may change the weights (weight norm does). timm's Conv2dSame only pads, as TensorFlow does.
    return (type(module) is nn.Conv2d or _is_timms(module, "Conv2dSame")) and not has_hooks(module)


def _is_plain_norm(module: nn.Module) -> bool:
    if has_hooks(module) or getattr(module, "running_mean", None) is None:
        return False
    if type(module) is FrozenNorm:
        return not module.taken_over
    return _is_timms(module, "BatchNormAct2d") or type(module) in (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def _is_timms(module: nn.Module, name: str) -> bool:
    return type(module).__name__ == name and type(module).__module__.startswith("timm.")


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, which must still be called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
