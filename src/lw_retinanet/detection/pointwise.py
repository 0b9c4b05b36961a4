"""Triton kernels around convolutions on a CUDA device: a 1x1 convolution with all that follows it, and what follows any other in one pass.

Import this module only where :func:`lw_retinanet.devices.has_triton` is true. With ``TRITON_INTERPRET=1`` in the environment they run
on a CPU, for tests.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _INNER = 128, 64  # of a tile of the product
_VALUES = 2048


@triton.jit
def _product_kernel(  # type: ignore[no-untyped-def]
    features, weight, bias, added, output, rows, columns, inner, in_height, in_width, out_height, out_width, added_height, added_width,
    stride: tl.constexpr, has_added: tl.constexpr, is_enlarged: tl.constexpr, relu: tl.constexpr, is_whole: tl.constexpr,
    block_rows: tl.constexpr, block_columns: tl.constexpr, block_inner: tl.constexpr,
):  # fmt: skip
    """One tile of ``relu(features @ weight.T + bias + added)``.

    A stride leaves cells of the features out; what is added is enlarged to the size of the output by repeating cells.
    """
    tiles = tl.cdiv(columns, block_columns)
    row = (tl.program_id(0) // tiles) * block_rows + tl.arange(0, block_rows)
    column = (tl.program_id(0) % tiles) * block_columns + tl.arange(0, block_columns)
    source = row
    line = row // out_width
    if stride > 1:
        source = ((line // out_height) * in_height + (line % out_height) * stride) * in_width + (row % out_width) * stride
    within = tl.arange(0, block_inner)
    left = features + source.to(tl.int64)[:, None] * inner + within[None, :]
    right = weight + column[None, :] * inner + within[:, None]
    is_row, is_column = (row < rows)[:, None], (column < columns)[None, :]
    total = tl.zeros((block_rows, block_columns), tl.float32)
    for begin in range(0, inner, block_inner):
        if is_whole:
            a, b = tl.load(left, mask=is_row, other=0.0), tl.load(right, mask=is_column, other=0.0)
        else:
            a = tl.load(left, mask=is_row & (begin + within < inner)[None, :], other=0.0)
            b = tl.load(right, mask=is_column & (begin + within < inner)[:, None], other=0.0)
        total = tl.dot(a, b, total)
        left += block_inner
        right += block_inner
    total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    place = row.to(tl.int64)[:, None] * columns + column[None, :]
    inside = is_row & is_column
    if is_enlarged:
        cell = ((line // out_height) * added_height + (line % out_height) * added_height // out_height) * added_width
        cell += (row % out_width) * added_width // out_width
        total += tl.load(added + cell.to(tl.int64)[:, None] * columns + column[None, :], mask=inside, other=0.0).to(tl.float32)
    elif has_added:
        total += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
    if relu:
        total = tl.maximum(total, 0.0)
    tl.store(output + place, total.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _finish_kernel(output, bias, added, number, channels, has_added: tl.constexpr, relu: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = place < number
    value = tl.load(output + place, mask=inside, other=0.0).to(tl.float32) + tl.load(bias + place % channels, mask=inside, other=0.0).to(
        tl.float32
    )
    if has_added:
        value += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
    if relu:
        value = tl.maximum(value, 0.0)
    tl.store(output + place, value.to(output.dtype.element_ty), mask=inside)


@triton.jit
def _pool_kernel(  # type: ignore[no-untyped-def]
    features, output, cells, channels, in_height, in_width, out_height, out_width, block_cells: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    cell, channel = tl.program_id(0) * block_cells + tl.arange(0, block_cells), tl.arange(0, block_channels)
    line = cell // out_width
    best = tl.full((block_cells, block_channels), float("-inf"), tl.float32)
    for window in tl.static_range(9):
        y, x = 2 * (line % out_height) - 1 + window // 3, 2 * (cell % out_width) - 1 + window % 3
        inside = (y >= 0) & (y < in_height) & (x >= 0) & (x < in_width) & (cell < cells)
        place = ((line // out_height * in_height + y) * in_width + x).to(tl.int64)[:, None] * channels + channel[None, :]
        values = tl.load(features + place, mask=inside[:, None] & (channel < channels)[None, :], other=float("-inf"))
        best = tl.maximum(best, values.to(tl.float32))
    place = cell.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(output + place, best.to(output.dtype.element_ty), mask=(cell < cells)[:, None] & (channel < channels)[None, :])


def pointwise(
    features: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, *, stride: int, relu: bool, block_columns: int = 128
) -> Tensor:
    """A 1x1 convolution, then an addition if there is something to add, then a ReLU if asked for.

    Args:
        features: (N, C, H, W) bf16 or fp16, channels last in memory.
        weight: (D, C, 1, 1) of the same type.
        bias: (D,).
        added: (N, D, H', W'), channels last in memory; if it is smaller, its cells are repeated, as ``nearest`` of PyTorch does.
        stride: Of the convolution.
        relu: Whether negative sums become 0.
        block_columns: Channels of the output that one program computes, a power of 2 from 16.
    """
    num_images, inner, height, width = features.shape
    columns, out_height, out_width = len(weight), -(-height // stride), -(-width // stride)
    shape = (num_images, columns, out_height, out_width)
    output = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=torch.channels_last)
    rows, other = num_images * out_height * out_width, output if added is None else added
    is_enlarged = other.shape != output.shape
    grid = (triton.cdiv(rows, _ROWS) * triton.cdiv(columns, block_columns),)
    _product_kernel[grid](
        features, weight, bias, other, output, rows, columns, inner, height, width, out_height, out_width, *other.shape[2:],
        stride, added is not None, is_enlarged, relu, inner % _INNER == 0, _ROWS, block_columns, _INNER,
        num_warps=8 if block_columns > 64 else 4, num_stages=3,
    )  # fmt: skip
    return output


def finish(output: Tensor, bias: Tensor, added: Tensor | None, *, relu: bool) -> Tensor:
    """Add the bias (D,), and what is to be added, to the output (N, D, H, W) of a convolution, apply the ReLU if asked for, in place.

    All are channels last in memory.
    """
    grid = (triton.cdiv(output.numel(), _VALUES),)
    other = output if added is None else added
    _finish_kernel[grid](output, bias, other, output.numel(), len(bias), added is not None, relu, _VALUES, num_warps=8)
    return output


def max_pool(features: Tensor) -> Tensor:
    """The largest of 3 x 3 cells at every second one, with a border of one cell: the pooling of a ResNet's stem.

    Args:
        features: (N, C, H, W), channels last in memory.
    """
    num_images, channels, height, width = features.shape
    out_height, out_width = (height + 1) // 2, (width + 1) // 2
    shape = (num_images, channels, out_height, out_width)
    output = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=torch.channels_last)
    cells, columns = num_images * out_height * out_width, triton.next_power_of_2(channels)
    block = max(1, _VALUES // columns)
    _pool_kernel[(triton.cdiv(cells, block),)](
        features, output, cells, channels, height, width, out_height, out_width, block, columns, num_warps=4
    )
    return output
