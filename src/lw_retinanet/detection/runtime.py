"""What runs a detector's network: the protocol that every runtime follows, and PyTorch's runtime.

PyTorch's runtime folds batch norm and ReLU into the convolutions, and runs them channels last, in the precision that was chosen.
"""

import copy
import os
import shutil
import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lw_retinanet.detection.cuda_graphs import CudaGraphs
from lw_retinanet.detection.fused import fuse
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import HALF_TYPES, ChosenPrecision, Precision
from lw_retinanet.errors import InputError, first_line
from lw_retinanet.models.fold import folded
from lw_retinanet.models.frozen_norm import NormedConv2d
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Detections, Predictions

_making = threading.Lock()


class Runtime(Protocol):
    """What runs a network. All else is the detector's, so that every runtime gives the same boxes; only a network that ends with NMS
    (``gives_boxes``) brings its own decoding and NMS."""

    @property
    def device(self) -> torch.device:
        """Where images have to be, and where answers are."""
        ...

    @property
    def precision(self) -> Precision:
        """What was asked for."""
        ...

    @property
    def gives_boxes(self) -> bool:
        """Whether the network ends with NMS. If so, only :meth:`detect` can be called; otherwise only :meth:`forward`."""
        ...

    @property
    def chosen_precision(self) -> ChosenPrecision | None:
        """What the network computes in; None while ``auto`` has not been measured. int8 networks name what is not quantised."""
        ...

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """Run the network.

        Args:
            images: (N, 3, H, W) float32, normalised, on the device.
            full_head: Answer with the head that a lightened model had before.
        """
        ...

    def detect(self, images: Tensor, sizes_hw: Tensor) -> Detections:
        """Run a network that ends with NMS.

        Args:
            images: As for :meth:`forward`.
            sizes_hw: (N, 2) int64 image size inside the padding.

        Returns:
            Detections in pixels of the padded input.
        """
        ...


class TorchRuntime:
    """Runs a folded copy of a model, which is made at the first call and made again when the model's weights have changed since.

    Changes are seen by the tensors themselves: training steps, ``load_state_dict``, ``to``, replaced layers. Writing through
    ``parameter.data`` leaves no trace; call :meth:`release` after that.

    Args:
        model: Itself moved to the device, and put into evaluation mode and channels last. It can be trained and saved as before.
        device: To compute on.
        precision: ``bf16``, or ``fp16`` on a GPU, runs convolutions in it and layers that need more (such as group norm) in fp32, as
            autocast does, with weights that were rounded once. ``auto`` is what runs faster on this machine, by a measurement.
        fold: False runs the model itself instead of a folded copy of it, for models that share parts. bf16 then means autocast.
        compile: Let ``torch.compile`` fuse the network. It takes a minute for each input size, up to eight of them.
    """

    gives_boxes = False

    def __init__(
        self,
        model: RetinaNet,
        *,
        device: torch.device | str = "cpu",
        precision: Precision = "fp32",
        fold: bool = True,
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.precision: Precision = precision
        self.fold = fold
        self.compile = compile
        self._chosen: ChosenPrecision | None = None if precision == "auto" else precision
        self._made: tuple[tuple[Any, ...], Callable[..., Predictions]] | None = None
        self._graphs: tuple[object, CudaGraphs] | None = None

    @property
    def chosen_precision(self) -> ChosenPrecision | None:
        """What the network computes in; None while ``auto`` has not been measured."""
        return self._chosen

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """``model(images)``; see :class:`Runtime`.

        Raises:
            InputError: If it is to be compiled and cannot be.
        """
        return self._network(images)(images, **({"full_head": True} if full_head else {}))

    def _network(self, images: Tensor) -> Callable[..., Predictions]:
        """The copy of the model as it is now."""
        state = _state(self.model)
        made = self._made
        if made is None or made[0] != state:
            with _making:
                made = self._made  # another thread may have made it while this one waited
                if made is None or made[0] != state:
                    made = self._made = (state, self._make(images))
        return made[1]

    def repeated(self, name: Hashable, work: Callable[..., Tensor], images: Tensor, *rest: Tensor) -> Tensor:
        """A computation that begins with the network, on a CUDA device, as one CUDA graph if the same shapes come again and again.

        Args:
            name: Says what ``work`` computes.
            work: Takes the network, the images and the rest; see :meth:`~lw_retinanet.detection.cuda_graphs.CudaGraphs.run`.
            images: As for :meth:`forward`.
            rest: Further inputs, on the device.

        Returns:
            The result, on the host.
        """
        network = self._network(images)
        graphs = self._graphs
        if graphs is None or graphs[0] is not network:
            graphs = self._graphs = (network, CudaGraphs())  # those of earlier weights are dropped

        def bound(images: Tensor, *rest: Tensor) -> Tensor:
            return work(network, images, *rest)

        return graphs[1].run(name, bound, images, *rest)

    def detect(self, images: Tensor, sizes_hw: Tensor) -> Detections:
        """Not for this runtime: its networks end with logits and deltas."""
        raise NotImplementedError

    def release(self) -> None:
        """Drop the copy and its CUDA graphs; the next call makes them again."""
        self._made = self._graphs = None

    def _make(self, images: Tensor) -> Callable[..., Predictions]:
        model: nn.Module = self.model
        folded_model = model
        if self.fold and isinstance(model, RetinaNet):
            folded_model = folded(model).to(memory_format=torch.channels_last)
        device = images.device
        self._chosen = choose_precision(self.precision, device, "inference")
        half = HALF_TYPES.get(self._chosen)
        if folded_model is not model:
            if half:
                folded_model = with_half_weights(folded_model, half)
            if not self.compile and isinstance(folded_model, RetinaNet):  # the compiler does it itself
                fuse(folded_model)
        run: Callable[..., Predictions] = _autocast(folded_model, device, half) if half else folded_model
        return _compiled(run, device) if self.compile else run


def with_half_weights(model: nn.Module, half: torch.dtype = torch.bfloat16) -> nn.Module:
    """A copy with the weights of its convolutions in bf16 or fp16: what autocast makes of them at every call, once."""
    copied = copy.deepcopy(model)
    for module in copied.modules():
        # A convolution that multiplies its norm in at every call does so in full precision.
        if isinstance(module, nn.Conv2d | nn.Linear) and not isinstance(module, NormedConv2d):
            module.to(half)
    return copied


def _autocast(model: nn.Module, device: torch.device, half: torch.dtype) -> Callable[..., Predictions]:
    def run(images: Tensor, **how: bool) -> Predictions:
        with torch.autocast(device.type, half):
            predictions: Predictions = model(images, **how)
        return predictions

    return run


def _compiled(run: Callable[..., Predictions], device: torch.device) -> Callable[..., Predictions]:
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX") or "g++", "g++", "clang++", "cl"))):
        raise InputError("compile=True needs a C++ compiler and found none; install g++ or clang, or leave compile out")
    from torch._dynamo.exc import TorchDynamoException

    # Weights are constants of the copy, so the compiler may lay them out once as the convolutions need them.
    options: dict[str, Any] | None = {"freezing": True} if device.type == "cpu" else None
    fast = torch.compile(run, dynamic=False, options=options)

    def guarded(images: Tensor, **how: bool) -> Predictions:
        try:
            return fast(images, **how)
        except TorchDynamoException as error:
            raise InputError(f"compile=True: the network cannot be compiled here ({first_line(error)[:200]}); leave compile out") from error

    return guarded


def _state(model: nn.Module) -> tuple[Any, ...]:
    """What changes when weights do: which tensors there are, where their values lie, and how often they were written to."""
    state: list[Any] = []
    modules: list[nn.Module | None] = [model]
    while modules:  # this runs at every call, and is five times as fast as parameters() and buffers()
        module = modules.pop()
        if module is None:
            continue
        modules.extend(module._modules.values())
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                state += (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
    return tuple(state)
