"""Batch norm multiplied into the convolution before it, for good: the same answers with fewer layers.

Which convolution a norm follows is not guessed from names or places: the network is run once on shapes alone, and a norm is folded only if
all it ever sees are outputs of one convolution that nothing else reads.
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

from lw_retinanet.models.frozen_norm import FrozenNorm, NormedConv2d
from lw_retinanet.models.retinanet import RetinaNet

Norm = nn.BatchNorm2d | nn.SyncBatchNorm | FrozenNorm  # or torchvision's, of which FrozenNorm is one
_PROBE_HW = (224, 288)  # any backbone takes it: multiples of 32, as pictures are padded to


@torch.no_grad()
def folded(model: RetinaNet) -> RetinaNet:
    """A copy for inference in which every batch norm that follows a convolution is part of it.

    Its outputs are the model's in evaluation mode but for rounding, and its convolutions are as many and as large; those that took over a
    norm have a bias. Products are computed in float64. What cannot be folded stays as it is: group norm, a norm whose input does not come
    straight from a convolution or is read by something else too, and layers with hooks or of a kind that is not known to be one plain
    convolution or norm.

    Args:
        model: on any device and in any precision; not changed.

    Returns:
        In evaluation mode, with no parameter that requires a gradient. It is not for model files: these describe the network with its
        norms, which can be trained on.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    modules = list(copied.modules())
    shadow = _on_meta(copied)  # its modules come in the same order
    places = {module: place for place, module in enumerate(shadow.modules())}
    for shadow_conv, shadow_norm in _pairs(shadow):
        conv, norm = modules[places[shadow_conv]], cast(Norm, modules[places[shadow_norm]])
        assert isinstance(conv, nn.Conv2d)
        _take_over(copied, conv, norm)
    for module in modules:
        if type(module) is NormedConv2d:  # multiplies its norm in at every call
            (norm,) = module.norm_holder
            del module.norm_holder
            module.__class__ = nn.Conv2d  # type: ignore[assignment]
            _take_over(copied, module, norm)
    return copied


def fold_norm(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor]:
    """Weights and offsets of a convolution together with the norm behind it, in evaluation mode.

    Args:
        weight: (outputs, inputs, height, width).
        bias: (outputs,), None for none.
        norm: with running statistics, on the device of the weights.

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
    """What a norm does beside normalising: timm's carry the activation behind them."""
    activation = getattr(norm, "act", None)
    return activation if isinstance(activation, nn.Module) else nn.Identity().eval()


def _on_meta(model: RetinaNet) -> RetinaNet:
    """A copy without numbers, which runs in no time."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): _without_numbers(tensor) for tensor in tensors})


def _without_numbers(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _pairs(model: RetinaNet) -> list[tuple[nn.Conv2d, Norm]]:
    """Convolutions and the norms that belong to them, from one run of each path through the model."""
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
    """Follows what convolutions give, by the identity of the tensors, to all operations that read it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, nn.Conv2d]] = {}  # keeps the tensors alive, so that no id comes twice
        self.readers: dict[int, list[Norm | None]] = {}  # of what was made: the norm inside which an operation read it, if any
        self.inputs: dict[Norm, list[int]] = {}
        self.running: list[Norm] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs or {})):
            if isinstance(leaf, Tensor) and id(leaf) in self.made:
                self.readers[id(leaf)].append(self.running[-1] if self.running else None)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def modules(self, modules: Iterable[nn.Module]) -> Iterator[None]:
        """Hooks on all that could be folded."""
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
        """Those where every call of the one fed exactly one call of the other, and nothing else."""
        calls = Counter(conv for _, conv in self.made.values())
        found = []
        for norm, inputs in self.inputs.items():
            convs = {self.made[key][1] if key in self.made else None for key in inputs}
            conv = convs.pop()
            if not convs and conv is not None and calls[conv] == len(inputs) and all(self.readers[key] == [norm] for key in inputs):
                found.append((conv, norm))
        return found


def _is_plain_conv(module: nn.Module) -> bool:
    # A subclass may do anything with its weights, and so may a hook (weight norm is one). TensorFlow's padding leaves them alone.
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
    """Whether somebody watches this module's calls, which it has to go on making then."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
