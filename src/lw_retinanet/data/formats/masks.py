"""The boxes around COCO's masks: polygons, and run lengths as numbers or as text."""

import math
from collections.abc import Iterator, Sequence

_MOST_RUNS = 10_000_000
_MOST_BITS = 60  # of a run's length


def box_of_mask(mask: object) -> list[float] | None:
    """x, y, width and height of the box around a mask; None if it is empty, or no mask that can be understood."""
    try:
        if isinstance(mask, dict):
            height, width = mask["size"]
            return _box_of_runs(list(_run_lengths(mask["counts"])), int(height), int(width))
        if isinstance(mask, list):
            return _box_of_polygons([mask] if mask and not isinstance(mask[0], list) else mask)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        pass
    return None


def _box_of_polygons(polygons: Sequence[Sequence[float]]) -> list[float] | None:
    xs = [float(x) for polygon in polygons for x in polygon[::2]]
    ys = [float(y) for polygon in polygons for y in polygon[1::2]]
    if not ys or len(xs) != len(ys) or not all(map(math.isfinite, (*xs, *ys))):
        return None
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def _run_lengths(counts: str | Sequence[int]) -> Iterator[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns. As text they have five bits a character, from the third on as a difference.

    Source: pycocotools, rleFrString.
    """
    if not isinstance(counts, str):
        yield from map(int, counts)
        return
    if len(counts) > _MOST_RUNS:
        raise ValueError("too many runs")
    lengths: list[int] = []
    place = 0
    while place < len(counts):
        value, shift, code = 0, 0, 0x20
        while code & 0x20:
            if shift > _MOST_BITS:
                raise ValueError("a run without an end")
            code = ord(counts[place]) - 48
            value |= (code & 0x1F) << shift
            place, shift = place + 1, shift + 5
        if code & 0x10:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
    yield from lengths


def _box_of_runs(lengths: Sequence[int], height: int, width: int) -> list[float] | None:
    if height < 1 or min(lengths, default=-1) < 0 or sum(lengths) > height * width:
        return None
    x0, y0, x1, y1 = width, height, 0, 0
    start = 0
    for number, length in enumerate(lengths):
        if number % 2 and length:
            (first, top), (last, bottom) = divmod(start, height), divmod(start + length - 1, height)
            if first != last:  # the run goes on at the top of the next column
                top, bottom = 0, height - 1
            x0, y0, x1, y1 = min(x0, first), min(y0, top), max(x1, last + 1), max(y1, bottom + 1)
        start += length
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)] if x1 else None
