"""Convolutions fused with what follows them, for bf16 and fp16 on a CUDA device.

PyTorch adds the bias, adds the shortcut and clips in passes of their own, which take longer than many of the convolutions. cuDNN, cuBLAS
and Triton can do all that before the output leaves the chip. Which of them is the fastest depends on the shape, so it is measured once.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.devices import has_triton
from lw_retinanet.models.fpn import FPN, OUTPUTS_APART

log = logging.getLogger(__name__)
Way = Callable[[Tensor, Tensor | None], Tensor]
_RUNS = 5
_chosen: dict[tuple[Any, ...], str] = {}
_choosing = threading.Lock()


class CudaConv(nn.Module):
    """A convolution, then an addition if there is something to add, then an activation.

    Args:
        conv: Zero-padded, with weights in bf16 or fp16.
        activation: ``nn.ReLU``, ``nn.ReLU6`` or None.
    """

    def __init__(self, conv: nn.Conv2d, activation: nn.Module | None) -> None:
        super().__init__()
        weight = conv.weight.detach()
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.rows = weight.flatten(1).contiguous().t() if weight.shape[2:] == (1, 1) else None
        self.bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach()
        assert isinstance(conv.padding, tuple)
        self.stride, self.padding, self.dilation, self.groups = conv.stride, conv.padding, conv.dilation, conv.groups
        self.activation = activation
        self.relu = activation is not None and not isinstance(activation, nn.ReLU6)
        self.blocks = _of_blocks(weight) if self._takes_blocks(conv) else None
        self._known: dict[tuple[int, str], Way] = {}

    @staticmethod
    def _takes_blocks(conv: nn.Conv2d) -> bool:
        side = conv.kernel_size[0]
        is_stem = conv.in_channels <= 4 and conv.stride == (2, 2) and conv.groups == 1 and conv.dilation == (1, 1)
        return is_stem and conv.kernel_size == (side, side) and side % 4 == 3 and conv.padding == (side // 2, side // 2)

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        """``activation(conv(features) + added)``; what is added to a 1x1 convolution may be smaller, and is enlarged by repeating cells."""
        features = features.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
        if added is not None:
            added = added.to(self.weight.dtype).contiguous(memory_format=torch.channels_last)
        # What is fastest changes slowly with the number of pixels, so images of many sizes are not measured one by one.
        pixels = (features.shape[0] * features.shape[2] * features.shape[3]).bit_length()
        kind = "none" if added is None else "same"
        if added is not None and self.rows is not None and self.stride == (1, 1) and added.shape[2:] != features.shape[2:]:
            kind = "smaller"
        way = self._known.get((pixels, kind))
        if way is None:
            way = self._known[(pixels, kind)] = self._choose(pixels, kind, features, added)
        return way(features, added)

    def ways(self, *, is_added: bool) -> dict[str, Way]:
        """All that compute it, by name."""
        ways: dict[str, Way] = {"convolution": self._plain}
        if isinstance(self.activation, nn.ReLU6):
            return ways
        if self.relu and self.groups == 1:
            ways["cudnn"] = self._cudnn
        if has_triton(self.weight.device.type):
            ways["one pass"] = self._one_pass
        if self.blocks is not None and self.relu and not is_added:
            ways["blocks"] = self._by_blocks
        if self.rows is None or self.groups > 1 or self.padding != (0, 0) or self.stride[0] != self.stride[1]:
            return ways
        if self.stride == (1, 1) and not is_added:
            ways["product"] = self._product
        if has_triton(self.weight.device.type):
            sizes = [size for size in (64, 128) if size <= max(64, len(self.weight))]
            ways |= {f"triton {size}": self._triton(size) for size in sizes}
        return ways

    def _choose(self, pixels: int, kind: str, features: Tensor, added: Tensor | None) -> Way:
        ways = self.ways(is_added=added is not None)
        key = (
            features.device, features.dtype, tuple(self.weight.shape), self.stride, self.padding, self.dilation, self.groups, self.relu,
            pixels, kind,
        )  # fmt: skip
        with _choosing:  # no other measurement at the same time
            if key not in _chosen:
                _chosen[key] = fastest({name: partial(way, features, added) for name, way in ways.items()}, features.device)
        return ways.get(_chosen[key], self._plain)

    def _plain(self, features: Tensor, added: Tensor | None) -> Tensor:
        output = F.conv2d(features, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if added is not None:
            output += _enlarged(added, output)
        return output if self.activation is None else self.activation(output)

    def _cudnn(self, features: Tensor, added: Tensor | None) -> Tensor:
        how = (self.bias, self.stride, self.padding, self.dilation, self.groups)
        if added is None:
            return torch.cudnn_convolution_relu(features, self.weight, *how)
        return torch.cudnn_convolution_add_relu(features, self.weight, added, 1.0, *how)

    def _by_blocks(self, features: Tensor, _: Tensor | None) -> Tensor:
        """The convolution of a stem as one without a stride over blocks of 2 x 2 pixels, since few channels fit no matrix unit."""
        assert self.blocks is not None
        num_images, channels, height, width = features.shape
        if height % 2 or width % 2:
            return self._plain(features, None)
        before, after = (self.blocks.shape[2] + 1) // 2, (self.blocks.shape[2] - 1) // 2
        shape = (num_images, height // 2 + before + after, width // 2 + before + after, self.blocks.shape[1])
        cells = features.new_zeros(shape)
        inner = cells[:, before : before + height // 2, before : before + width // 2, : 4 * channels]
        pixels = features.permute(0, 2, 3, 1).reshape(num_images, height // 2, 2, width // 2, 2 * channels)
        inner.unflatten(3, (2, 2 * channels)).copy_(pixels.permute(0, 1, 3, 2, 4))
        return torch.cudnn_convolution_relu(cells.permute(0, 3, 1, 2), self.blocks, self.bias, (1, 1), (0, 0), (1, 1), 1)

    def _one_pass(self, features: Tensor, added: Tensor | None) -> Tensor:
        from lw_retinanet.detection.pointwise import finish

        output = F.conv2d(features, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return finish(output, self.bias, None if added is None else _enlarged(added, output), relu=self.relu)

    def _product(self, features: Tensor, added: Tensor | None) -> Tensor:
        assert self.rows is not None
        num_images, channels, height, width = features.shape
        cells = features.permute(0, 2, 3, 1).reshape(-1, channels)
        product = torch._addmm_activation if self.relu else torch.addmm
        output = product(self.bias, cells, self.rows)
        return output.view(num_images, height, width, -1).permute(0, 3, 1, 2)

    def _triton(self, block_columns: int) -> Way:
        from lw_retinanet.detection.pointwise import pointwise

        def way(features: Tensor, added: Tensor | None) -> Tensor:
            return pointwise(features, self.weight, self.bias, added, stride=self.stride[0], relu=self.relu, block_columns=block_columns)

        return way


class CudaPool(nn.Module):
    """Max pooling of a ResNet's stem by one kernel; PyTorch's also writes where each maximum was."""

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> the largest of 3 x 3 cells at every second one."""
        from lw_retinanet.detection.pointwise import max_pool

        return max_pool(features.contiguous(memory_format=torch.channels_last))


class CudaFPN(nn.Module):
    """The pyramid with the convolution of a stage, the enlarged level above it and their sum as one step.

    Args:
        fpn: Its convolutions of the stages are fused already.
    """

    def __init__(self, fpn: FPN) -> None:
        super().__init__()
        self.fpn = fpn

    @staticmethod
    def fits(fpn: nn.Module) -> bool:
        """Whether this pyramid can be taken over."""
        if not isinstance(fpn, FPN):
            return False
        inner = [list(block) for block in fpn.inner_blocks if isinstance(block, nn.Sequential)]
        return len(inner) == 3 and all(len(block) == 1 and isinstance(block[0], CudaConv) for block in inner)

    def forward(self, stages: Mapping[str, Tensor], *, full: bool = False) -> dict[str, Tensor]:
        """As :meth:`lw_retinanet.models.fpn.FPN.forward`."""
        fpn, given = self.fpn, [stages[name] for name in ("C3", "C4", "C5")]
        sums: list[Tensor] = []
        for block, features in zip(reversed(list(fpn.inner_blocks)), reversed(given), strict=True):
            sums.insert(0, block[0](features, sums[0] if sums else None))
        levels = [*(fpn.output(name, full=full)(sums[place]) for place, name in enumerate(OUTPUTS_APART)), fpn.layer_blocks[2](sums[2])]
        assert fpn.extra_blocks is not None
        levels, _ = fpn.extra_blocks(levels, given, ["P3", "P4", "P5"])
        return dict(zip(LEVELS, levels, strict=True))


def _enlarged(added: Tensor, output: Tensor) -> Tensor:
    if added.shape == output.shape:
        return added
    with torch.autocast(added.device.type, enabled=False):  # which would enlarge it in fp32
        return F.interpolate(added, size=output.shape[2:], mode="nearest")


def _of_blocks(weight: Tensor) -> Tensor:
    """Weights (D, C, k, k) of stride 2 for blocks of 2 x 2 pixels: (D, 16, (k + 1) / 2, (k + 1) / 2), channels last."""
    outputs, channels, side, _ = weight.shape
    half = (side + 1) // 2
    wide = F.pad(weight, (1, 0, 1, 0))  # the first block begins a pixel before the kernel does
    blocks = wide.view(outputs, channels, half, 2, half, 2).permute(0, 3, 5, 1, 2, 4).reshape(outputs, 4 * channels, half, half)
    return F.pad(blocks, (0, 0, 0, 0, 0, 16 - 4 * channels)).contiguous(memory_format=torch.channels_last)


def fastest(ways: dict[str, Callable[[], object]], device: torch.device) -> str:
    """Name of the way that took the least time; one that the device or its libraries cannot take is left out."""
    times = {}
    for name, way in ways.items():
        try:
            way()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            way()
            start.record()
            for _ in range(_RUNS):
                way()
            end.record()
            end.synchronize()
        except Exception as error:  # cuDNN, cuBLAS and Triton's compiler have no common class of errors
            if name == "convolution":
                raise
            log.debug("%s cannot compute a convolution here: %s", name, error)
            continue
        times[name] = start.elapsed_time(end)
    return min(times, key=lambda name: times[name])
