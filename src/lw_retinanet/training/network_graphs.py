"""Forward and backward of a network in training as CUDA graphs, for shapes that repeat.

A step launches some 2,000 kernels. On a fast GPU the host needs twice as long to launch them as the GPU needs to run them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lw_retinanet.detection.cuda_graphs import RepeatedShapes
from lw_retinanet.models.backbone import ResNetBackbone
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Predictions

_KEPT = 2  # shapes; each keeps all feature maps of a step
_LARGEST_DIFFERENCE = 0.05  # relative; in bf16, sums in another order differ by about 0.01
_Replay = Callable[[Tensor], Predictions]


class NetworkGraphs:
    """Runs a network, from the third call with the same shape on by graphs, which give the same numbers.

    The gradients of a graph always lie in the same memory. Therefore every backward pass must find the gradients of the parameters unset,
    and a step of several micro-batches cannot be taken in this way.

    Args:
        model: Network on a CUDA device that :meth:`fits`, trained in place. Its parameters must stay where they are.
        use_bf16: Whether it runs under autocast.
        record: For tests, see :func:`record_passes`.
    """

    def __init__(self, model: RetinaNet, *, use_bf16: bool, record: "Callable[[Any, RetinaNet, Tensor], _Replay] | None" = None) -> None:
        self.model = model
        self.use_bf16 = use_bf16
        self._record = record or record_passes
        self._replays: RepeatedShapes[_Replay] = RepeatedShapes(_KEPT, what="steps run")

    @staticmethod
    def fits(model: RetinaNet) -> bool:
        """Whether a graph gives what the network gives: batch norm counts the recording, other backbones are random."""
        is_plain = isinstance(model.backbone, ResNetBackbone) and not any(isinstance(module, _BatchNorm) for module in model.modules())
        return is_plain and next(model.parameters()).device.type == "cuda"

    def __call__(self, images: Tensor) -> Predictions:
        """``model(images)``."""
        replay = None
        if torch.is_grad_enabled():
            replay = self._replays.get((images.shape, images.stride()), lambda: self._recorded(images))
        return self._run(images) if replay is None else replay(images)

    def _recorded(self, images: Tensor) -> _Replay:
        """A replay whose answers and gradients were compared with the network's, on other images than those of the recording."""
        replay, images = self._record(self._run, self.model, images), 0.5 * images
        found = (answers_and_gradients(run, self.model, images) for run in (replay, self._run))
        for ours, theirs in zip(*found, strict=True):
            difference = (ours - theirs).norm() / theirs.norm()
            if not difference <= _LARGEST_DIFFERENCE:
                raise RuntimeError(f"a recorded step differs by {float(difference):.2g}")
        return replay

    def _run(self, images: Tensor) -> Predictions:
        # Weights that autocast keeps from one use to the next would be those of the recording.
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.use_bf16, cache_enabled=False):
            predictions: Predictions = self.model(images)
        return predictions


def answers_and_gradients(run: Callable[[Tensor], Predictions], model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """All answers, and all gradients of their sum, as vectors."""
    outputs = run(images)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(tuple(outputs), learned, [torch.ones_like(output) for output in outputs], allow_unused=True)
    answers = torch.cat([output.detach().float().flatten() for output in outputs])
    return answers, torch.cat([value.float().flatten() for value in found if value is not None])


def record_passes(run: Callable[[Tensor], Predictions], model: nn.Module, images: Tensor) -> _Replay:
    """Record ``run`` and the gradients of all trained parameters; returns a function like ``run`` that autograd can go through."""
    held, learned = images.clone(), [parameter for parameter in model.parameters() if parameter.requires_grad]
    forward, backward, pool = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    # Only this thread is watched: the loader's threads may allocate memory meanwhile.
    with torch.cuda.graph(forward, pool=pool, capture_error_mode="thread_local"):
        outputs = run(held)
    given = [torch.empty_like(output) for output in outputs]
    with torch.cuda.graph(backward, pool=pool, capture_error_mode="thread_local"):
        found = torch.autograd.grad(tuple(outputs), learned, given, allow_unused=True)
    results = [output.detach() for output in outputs]

    class Replayed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, images: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
            held.copy_(images)
            forward.replay()
            return tuple(result.detach() for result in results)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> Any:
            for own, gradient in zip(given, gradients, strict=True):
                own.copy_(gradient)
            backward.replay()
            return (None, *(None if value is None else value.detach() for value in found))

    return lambda images: Predictions(*Replayed.apply(images, *learned))
