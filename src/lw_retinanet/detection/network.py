"""The network as predicting runs it: batch norm and ReLU inside the convolutions, channels last, in the precision that was chosen."""

import copy
import logging
import os
import shutil
import threading
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lw_retinanet.detection.fused import forget_shapes, fuse
from lw_retinanet.detection.precision import faster_precision
from lw_retinanet.devices import Precision, uses_bf16
from lw_retinanet.errors import InputError
from lw_retinanet.models.fold import folded
from lw_retinanet.models.frozen_norm import NormedConv2d
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Predictions

log = logging.getLogger(__name__)
_making = threading.Lock()


class InferenceNetwork:
    """Runs a private copy of a model, which is made at the first call and made anew when the model's weights have changed since.

    Changes are seen by the tensors themselves: training steps, ``load_state_dict``, ``to``, layers put in place of others. Only what is
    written through ``parameter.data`` leaves no trace; :meth:`forget` after that.

    Args:
        precision: ``bf16`` runs convolutions in bf16 and what needs more (group norm, for one) in fp32, as autocast does, with weights that
            were rounded once. ``auto`` is what runs faster, measured at the first call; fp32 where the device has no bf16 arithmetic.
        fold: False runs the model itself instead of a folded copy of it, for models that share parts. Then bf16 is autocast over it.
        compile: let ``torch.compile`` fuse the network, anew for each size of input and up to eight of them. It takes a minute each.
    """

    def __init__(self, *, precision: Precision = "fp32", fold: bool = True, compile: bool = False) -> None:  # noqa: A002
        self.precision: Precision = precision
        self.fold = fold
        self.compile = compile
        self.chosen: Literal["fp32", "bf16"] | None = None if precision == "auto" else precision
        self._made: tuple[tuple[Any, ...], Callable[..., Predictions]] | None = None

    def __call__(self, model: nn.Module, images: Tensor, *, full_head: bool = False) -> Predictions:
        """``model(images)``.

        Args:
            model: in evaluation mode; the same at every call, or the copy is made anew.
            images: (N, 3, H, W) normalised, on the model's device.
            full_head: as for :class:`~lw_retinanet.models.retinanet.RetinaNet`.

        Raises:
            InputError: if it is to be compiled and cannot be.
        """
        state = _state(model)
        made = self._made
        if made is None or made[0] != state:
            with _making:
                made = self._made  # by another thread, perhaps, while this one waited
                if made is None or made[0] != state:
                    made = self._made = (state, self._make(model, images))
        return made[1](images, **({"full_head": True} if full_head else {}))

    def forget(self) -> None:
        """Make the copy anew at the next call."""
        self._made = None

    def _make(self, model: nn.Module, images: Tensor) -> Callable[..., Predictions]:
        plain: nn.Module = model
        if self.fold and isinstance(model, RetinaNet):
            plain = folded(model).to(memory_format=torch.channels_last)
        runs: dict[str, Callable[..., Predictions]] = {}
        device = images.device
        if self.chosen is None and not uses_bf16("auto", device):
            self.chosen = "fp32"
        half = with_half_weights(plain) if plain is not model and self.chosen != "fp32" else plain
        if device.type == "cpu" and not self.compile:  # the compiler does it itself
            for copied in {plain, half} - {model}:
                if isinstance(copied, RetinaNet):
                    fuse(copied)
        if self.chosen != "fp32":
            runs["bf16"] = _autocast(half, device)
        if self.chosen != "bf16":
            runs["fp32"] = plain
        if self.chosen is None:
            self.chosen = faster_precision(runs["fp32"], runs["bf16"], images)
            forget_shapes(plain, half)  # the probe's
            log.info("precision auto: %s is faster here", self.chosen)
        run = runs[self.chosen]
        return _compiled(run, device) if self.compile else run


def with_half_weights(model: nn.Module) -> nn.Module:
    """A copy with the weights of its convolutions in bf16: what autocast makes of them at every call, once."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        # One that multiplies its norm in at every call does so in full precision.
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, NormedConv2d):
            module.bfloat16()
    return copied


def _autocast(model: nn.Module, device: torch.device) -> Callable[..., Predictions]:
    def run(images: Tensor, **how: bool) -> Predictions:
        with torch.autocast(device.type, torch.bfloat16):
            predictions: Predictions = model(images, **how)
        return predictions

    return run


def _compiled(run: Callable[..., Predictions], device: torch.device) -> Callable[..., Predictions]:
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "cl"))):
        raise InputError("compile=True needs a C++ compiler and found none; install g++ or clang, or leave compile out")
    from torch._dynamo.exc import TorchDynamoException

    # Weights are constants of the copy, so they can be laid out once as the convolutions want them.
    options: dict[str, Any] | None = {"freezing": True} if device.type == "cpu" else None
    fast = torch.compile(run, dynamic=False, options=options)

    def guarded(images: Tensor, **how: bool) -> Predictions:
        try:
            return fast(images, **how)
        except TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(f"compile=True: the network cannot be compiled here ({reason[:200]}); leave compile out") from error

    return guarded


def _state(model: nn.Module) -> tuple[Any, ...]:
    """What changes when weights do: which tensors there are, where their values lie, and how often they were written to."""
    state: list[Any] = []
    modules: list[nn.Module | None] = [model]
    while modules:  # five times as fast as parameters() and buffers(), and asked at every call
        module = modules.pop()
        if module is None:
            continue
        modules.extend(module._modules.values())
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                state += (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return tuple(state)
