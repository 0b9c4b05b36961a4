"""Triton kernels for post-processing on a CUDA device: each takes all images of a batch in one launch, and the host waits for none.

The steps that they replace are hundreds of PyTorch operations, whose launches alone take 8 ms. Import this module only where
:func:`lw_retinanet.devices.has_triton` is true. With ``TRITON_INTERPRET=1`` in the environment the kernels run on a CPU, for tests.
"""

import struct

import torch
import triton
import triton.language as tl
from torch import Tensor

_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20}  # leading bits of a float32 in which two values of the type can differ
_BLOCK, _WARPS = 8192, 32
_CAPACITY = 32768  # of the list of values of one level that pass the threshold; if more do, all values are read again
_EACH = 1024  # boxes that NMS looks at together
_EXACT = {"enable_fp_fusion": False}  # a product is rounded before it is added, as in PyTorch


@triton.jit
def _maxima_kernel(logits, maxima, rows, classes, block_rows: tl.constexpr, block_classes: tl.constexpr):  # type: ignore[no-untyped-def]
    """The largest logit of each anchor; NaN counts as the smallest."""
    row = tl.program_id(0).to(tl.int64) * block_rows + tl.arange(0, block_rows)
    column = tl.arange(0, block_classes)
    inside = (row < rows)[:, None] & (column < classes)[None, :]
    values = tl.load(logits + row[:, None] * classes + column[None, :], mask=inside, other=float("-inf")).to(tl.float32)
    values = tl.where(values == values, values, float("-inf"))
    tl.store(maxima + row, tl.max(values, axis=1), mask=row < rows)


@triton.jit
def _key(value):  # type: ignore[no-untyped-def]
    """int32 that is ordered as the float32 values are; never the smallest int32."""
    bits = tl.where(value == 0.0, 0.0, value).to(tl.int32, bitcast=True)  # -0 and 0 are equal
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _read(values, chosen, at, classes, e, inside, of_pairs: tl.constexpr):  # type: ignore[no-untyped-def]
    """The value of element ``e``: of an anchor of the level, or of a pair of a chosen anchor and a class."""
    place = at + e
    if of_pairs:
        place = at + tl.load(chosen + e // classes, mask=inside, other=0).to(tl.int64) * classes + e % classes
    value = tl.load(values + place, mask=inside, other=float("-inf")).to(tl.float32)
    return tl.where(value == value, value, float("-inf"))


@triton.jit
def _read_again(values, chosen, at, classes, floor, near, near_keys, is_listed, length, begin, of_pairs: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Elements and keys, from the list of those near the best if it is complete. An element that does not pass has the smallest key."""
    place = begin + tl.arange(0, block)
    inside = place < length
    if is_listed:
        key = tl.load(near_keys + place, mask=inside, other=-2147483648)
        e = tl.load(near + place, mask=inside, other=0)
    else:
        value = _read(values, chosen, at, classes, place, inside, of_pairs)
        key = tl.where((value >= floor) & inside, _key(value), -2147483648)
        e = place
    return e, key


@triton.jit
def _limit(  # type: ignore[no-untyped-def]
    values, chosen, at, classes, floor, near, near_keys, is_listed, length, passing, number,
    key_bits: tl.constexpr, of_pairs: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The key of the last value that is taken, and how many of the values that equal it are."""
    limit = tl.full([], -2147483648, tl.int32)
    rest = tl.full([], 0, tl.int32) + number
    if passing > number:
        # Two bits of the limit at a time, the highest first: the largest key that at least ``number`` values reach.
        above = tl.full([], 0, tl.int32)
        for step in range(0, key_bits // 2):
            unit = tl.full([], 1, tl.int32) << (30 - 2 * step)
            one, two, three = tl.zeros([block], tl.int32), tl.zeros([block], tl.int32), tl.zeros([block], tl.int32)
            for begin in range(0, length, block):
                _, key = _read_again(values, chosen, at, classes, floor, near, near_keys, is_listed, length, begin, of_pairs, block)
                one += (key >= limit + unit).to(tl.int32)
                two += (key >= limit + 2 * unit).to(tl.int32)
                three += (key >= limit + 3 * unit).to(tl.int32)
            ones, twos, threes = tl.sum(one, axis=0), tl.sum(two, axis=0), tl.sum(three, axis=0)
            # Of the values that reach the next higher limit the last such count is that of the values above the final one.
            above = tl.where(threes < number, tl.where(twos < number, tl.where(ones < number, ones, twos), threes), above)
            limit += unit * ((ones >= number).to(tl.int32) + (twos >= number).to(tl.int32) + (threes >= number).to(tl.int32))
        rest = number - above
    return limit, rest


@triton.jit
def _select_kernel(  # type: ignore[no-untyped-def]
    values, chosen, counts, out_places, out_values, near, starts, floors, anchors_of_image, classes, number, capacity,
    key_bits: tl.constexpr, of_pairs: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """The ``number`` best values of one level of one image that are not below the floor, in ascending places. Of equal ones the first."""
    level, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = image * tl.num_programs(0) + level
    chosen += row * number
    near += row * 2 * capacity
    near_keys = near + capacity
    first = tl.load(starts + level)
    if of_pairs:
        length = tl.load(counts + row) * classes
        at = image * anchors_of_image * classes
    else:
        length = tl.load(starts + level + 1) - first
        at = image * anchors_of_image + first
    floor = tl.load(floors + level)
    passing = tl.full([], 0, tl.int32)
    for begin in range(0, length, block):
        e = begin + tl.arange(0, block)
        value = _read(values, chosen, at, classes, e, e < length, of_pairs)
        is_near = ((value >= floor) & (e < length)).to(tl.int32)
        found = tl.sum(is_near, axis=0)
        if found > 0:
            column = passing + tl.cumsum(is_near, axis=0) - 1
            tl.store(near + column, e, mask=(is_near > 0) & (column < capacity))
            tl.store(near_keys + column, _key(value), mask=(is_near > 0) & (column < capacity))
            passing += found
    tl.debug_barrier()  # what one thread wrote, others read
    is_listed = passing <= capacity
    if is_listed:
        length = passing
    limit, rest = _limit(
        values, chosen, at, classes, floor, near, near_keys, is_listed, length, passing, number, key_bits, of_pairs, block
    )  # fmt: skip
    shift = 32 - key_bits
    limit = limit >> shift
    written = tl.full([], 0, tl.int32)
    for begin in range(0, length, block):
        e, key = _read_again(values, chosen, at, classes, floor, near, near_keys, is_listed, length, begin, of_pairs, block)
        is_there = key != -2147483648
        equal = (((key >> shift) == limit) & is_there).to(tl.int32)
        taken = (((key >> shift) > limit) & is_there) | ((equal > 0) & (tl.cumsum(equal, axis=0) <= rest))
        rest -= tl.sum(equal, axis=0)
        column = row * number + written + tl.cumsum(taken.to(tl.int32), axis=0) - 1
        if of_pairs:
            anchor = tl.load(chosen + e // classes, mask=taken, other=0)
            tl.store(out_places + column, anchor.to(tl.int64) * classes + e % classes, mask=taken)
            bits = key ^ ((key >> 31) & 0x7FFFFFFF)
            tl.store(out_values + column, bits.to(tl.float32, bitcast=True), mask=taken)
        else:
            tl.store(out_places + column, first + e, mask=taken)
        written += tl.sum(taken.to(tl.int32), axis=0)
    if not of_pairs:
        tl.store(counts + row, written)


@triton.jit
def _sort_kernel(scores, places, out_scores, out_places, length, block: tl.constexpr, block_others: tl.constexpr):  # type: ignore[no-untyped-def]
    """Put scores in descending order, equal ones in their order before: a value's new place is the number of values before it."""
    image = tl.program_id(1).to(tl.int64) * length
    mine = tl.program_id(0) * block + tl.arange(0, block)
    score = tl.load(scores + image + mine, mask=mine < length, other=-1.0)
    before = tl.zeros([block, block_others], tl.int32)
    for begin in range(0, length, block_others):
        other = begin + tl.arange(0, block_others)
        rival = tl.load(scores + image + other, mask=other < length, other=-1.0)
        is_before = (rival[None, :] > score[:, None]) | ((rival[None, :] == score[:, None]) & (other[None, :] < mine[:, None]))
        before += is_before.to(tl.int32)
    rank = tl.sum(before, axis=1)
    tl.store(out_scores + image + rank, score, mask=mine < length)
    tl.store(out_places + image + rank, tl.load(places + image + mine, mask=mine < length), mask=mine < length)


@triton.jit
def _overlaps(boxes, labels, place, x1, y1, x2, y2, area, label, iou):  # type: ignore[no-untyped-def]
    """Whether boxes overlap the one at ``place`` by more than ``iou`` and are of its class."""
    other_x1, other_y1 = tl.load(boxes + 4 * place).to(tl.float64), tl.load(boxes + 4 * place + 1).to(tl.float64)
    other_x2, other_y2 = tl.load(boxes + 4 * place + 2).to(tl.float64), tl.load(boxes + 4 * place + 3).to(tl.float64)
    width = tl.minimum(x2, other_x2) - tl.maximum(x1, other_x1)
    height = tl.minimum(y2, other_y2) - tl.maximum(y1, other_y1)
    common = tl.where((width > 0) & (height > 0), width * height, 0.0)
    other_area = (other_x2 - other_x1) * (other_y2 - other_y1)
    union = area + other_area - common
    return (common / tl.where(union > 0, union, 1.0) > iou) & (label == tl.load(labels + place))


@triton.jit
def _suppress_kernel(boxes, labels, passed, kept, iou_bits, length, most, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """Greedy NMS of one image: the best box that is left is kept, and removes those of its class that overlap it."""
    image = tl.program_id(0).to(tl.int64)
    boxes += image * length * 4
    labels += image * length
    passed += image * length
    kept += image * most
    iou = iou_bits.to(tl.float64, bitcast=True)
    number = tl.full([], 0, tl.int32)
    begin = tl.full([], 0, tl.int32)
    while (begin < length) & (number < most):
        place = begin + tl.arange(0, block)
        inside = place < length
        x1 = tl.load(boxes + 4 * place, mask=inside, other=0.0).to(tl.float64)
        y1 = tl.load(boxes + 4 * place + 1, mask=inside, other=0.0).to(tl.float64)
        x2 = tl.load(boxes + 4 * place + 2, mask=inside, other=0.0).to(tl.float64)
        y2 = tl.load(boxes + 4 * place + 3, mask=inside, other=0.0).to(tl.float64)
        label = tl.load(labels + place, mask=inside, other=-1)
        is_left = tl.load(passed + place, mask=inside, other=0).to(tl.int32) != 0
        area = (x2 - x1) * (y2 - y1)
        for earlier in range(0, number):
            other = tl.load(kept + earlier)
            is_left = is_left & (_overlaps(boxes, labels, other, x1, y1, x2, y2, area, label, iou) == 0)
        best = tl.min(tl.where(is_left, place, length), axis=0)
        while (best < length) & (number < most):
            tl.store(kept + number, best.to(tl.int64))
            number += 1
            is_left = is_left & (place != best) & (_overlaps(boxes, labels, best, x1, y1, x2, y2, area, label, iou) == 0)
            best = tl.min(tl.where(is_left, place, length), axis=0)
        tl.debug_barrier()  # the next boxes are compared with all that were kept
        begin += block


def select(logits: Tensor, starts: Tensor, floors: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The ``number`` best pairs of anchor and class of each level, of those whose logit is not below the level's floor.

    Args:
        logits: (N, A, K) of any floating type, contiguous, on a CUDA device. NaN is never chosen.
        starts: (L + 1,) int32 first anchor of each of L levels, then A, on the device.
        floors: (L,) float32 smallest logit of each level, on the device.
        number: Of pairs of a level.

    Returns:
        ``(values, places)``, (N, L * number) float32 logits and int64 ``anchor * K + class``. A level has its places in ascending order,
        then -inf and 0.
    """
    num_images, num_anchors, classes = logits.shape
    levels, device = len(floors), logits.device
    maxima = torch.empty((num_images, num_anchors), device=device)
    rows, columns = num_images * num_anchors, triton.next_power_of_2(classes)
    block_rows = max(1, 4096 // columns)
    _maxima_kernel[(triton.cdiv(rows, block_rows),)](logits, maxima, rows, classes, block_rows, columns, num_warps=4)
    anchors = torch.empty((num_images, levels * number), dtype=torch.int32, device=device)
    counts = torch.empty((num_images, levels), dtype=torch.int32, device=device)
    values = torch.full((num_images, levels * number), float("-inf"), device=device)
    places = torch.zeros((num_images, levels * number), dtype=torch.int64, device=device)
    near = torch.empty((num_images, levels, 2, _CAPACITY), dtype=torch.int32, device=device)
    rest = (near, starts, floors, num_anchors, classes, number, _CAPACITY, _KEY_BITS.get(logits.dtype, 32))
    grid = (levels, num_images)
    _select_kernel[grid](maxima, anchors, counts, anchors, values, *rest, False, _BLOCK, num_warps=_WARPS)
    _select_kernel[grid](logits, anchors, counts, places, values, *rest, True, _BLOCK, num_warps=_WARPS)
    return values, places


def sort_by_score(scores: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Both in descending order of the scores (N, S), not negative, without NaN; equal scores keep their order."""
    number, length = scores.shape
    sorted_scores, sorted_places = torch.empty_like(scores), torch.empty_like(places)
    _sort_kernel[(triton.cdiv(length, 32), number)](scores, places, sorted_scores, sorted_places, length, 32, 128, num_warps=4)
    return sorted_scores, sorted_places


def suppress(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> Tensor:
    """:func:`lw_retinanet.models.suppression.suppress` on a CUDA device, in one launch."""
    kept = torch.full((len(boxes), most), -1, dtype=torch.int64, device=boxes.device)
    (bits,) = struct.unpack("q", struct.pack("d", iou))  # a kernel's own float parameters are float32
    arguments = (boxes.contiguous(), labels.contiguous(), is_real.contiguous().view(torch.uint8), kept, bits, boxes.shape[1], most)
    _suppress_kernel[(len(boxes),)](*arguments, _EACH, num_warps=8, **_EXACT)
    return kept
