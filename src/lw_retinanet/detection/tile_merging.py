"""One box for each object, from the boxes that overlapping tiles gave.

Within a tile, detections are different objects: its NMS has seen to that. So only boxes of different tiles can be the same object, and
only if they are of one class. Three rules say when:

1. **Joining.** Of an object that is cut by both tiles, each gives a part. The parts are joined if both reach the border that cuts them
   and they agree where both tiles look: their IoU there is large.
2. **Same box.** Two boxes with a large IoU are the same object. Each box can be the same as at most one box of another tile.
3. **Part.** A box that reaches an inner border of its tile is a part of a box that goes across this border and covers more than half
   of it.

A box that no border cuts is preferred to one that is cut, whatever their scores. Objects that touch share no area, so no rule applies.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

REACH = 0.01  # of a tile's side: boxes of a cut object end so near to the border
_COVERED = 0.5
_PAIRS_AT_A_TIME = 2**21


@dataclass(frozen=True, kw_only=True)
class TileBoxes:
    """M boxes of all tiles, in pixels of the whole image.

    Args:
        boxes: (M, 4) xyxy.
        scores: (M,) scores.
        labels: (M,) classes.
        tile_of: (M,) numbers of the tiles.
        tiles: (T, 4) xyxy of the tiles.
        size_hw: Size of the whole image.
    """

    boxes: Floats
    scores: Floats
    labels: Ints
    tile_of: Ints
    tiles: Floats
    size_hw: tuple[int, int]


def merge(found: TileBoxes, *, iou: float, class_agnostic: bool = False) -> tuple[Floats, Floats, Ints]:
    """Boxes (D, 4), scores (D,) and labels (D,), the best first. A joined box has the best score of its parts.

    Args:
        found: The boxes of all tiles.
        iou: From which overlap on two boxes are the same object; the detector's own NMS has the same limit.
        class_agnostic: Whether boxes of two classes can be the same object.
    """
    frames = found.tiles[found.tile_of]
    reach = REACH * (frames[:, 2:] - frames[:, :2])
    height, width = found.size_hw
    # (M, 4): the left, upper, right, lower border of the tile is inside the image, and the box reaches it.
    is_cut = np.concatenate(
        [
            (frames[:, :2] > 0) & (found.boxes[:, :2] <= frames[:, :2] + reach),
            (frames[:, 2:] < (width, height)) & (found.boxes[:, 2:] >= frames[:, 2:] - reach),
        ],
        axis=1,
    )
    boxes, scores = _joined(found, frames, is_cut, iou)
    pairs = _pairs(boxes, np.zeros_like(found.labels) if class_agnostic else found.labels, found.tile_of)
    rank = _ranks(boxes, scores, is_cut)
    kept = _kept(_same_objects(boxes, found.tile_of, pairs, iou, rank), _parts(boxes, frames, is_cut, reach, pairs, rank), len(boxes))
    order = kept[np.argsort(-scores[kept], kind="stable")]
    return boxes[order], scores[order], found.labels[order]


def _joined(found: TileBoxes, frames: Floats, is_cut: Bools, iou: float) -> tuple[Floats, Floats]:
    """Boxes and scores in which all parts of a joined object have its whole box and best score."""
    cut = np.flatnonzero(is_cut.any(axis=1))
    first, second = (cut[side] for side in _pairs(found.boxes[cut], found.labels[cut], found.tile_of[cut]))
    # In x or in y, the tile that begins first cuts its box at its end, and the other one cuts its box at its start.
    is_facing = np.zeros(len(first), dtype=np.bool_)
    for start, end in ((0, 2), (1, 3)):
        is_facing |= is_cut[first, end] & is_cut[second, start] & (frames[first, start] < frames[second, start])
        is_facing |= is_cut[second, end] & is_cut[first, start] & (frames[second, start] < frames[first, start])
    first, second = first[is_facing], second[is_facing]
    common = np.concatenate([np.maximum(frames[first, :2], frames[second, :2]), np.minimum(frames[first, 2:], frames[second, 2:])], axis=1)
    overlap = _iou(_clipped(found.boxes[first], common), _clipped(found.boxes[second], common))
    chosen = _one_to_one(first, second, overlap, found.tile_of, iou)
    first, second = first[chosen], second[chosen]
    boxes, scores = found.boxes.copy(), found.scores.copy()
    group = np.arange(len(boxes))
    while True:  # each box takes the smallest number among the boxes that it is joined with
        before = group.copy()
        np.minimum.at(group, first, before[second])
        np.minimum.at(group, second, before[first])
        if (group == before).all():
            break
    for side, extreme in ((0, np.minimum), (1, np.minimum), (2, np.maximum), (3, np.maximum)):
        extreme.at(boxes[:, side], group, found.boxes[:, side])
    np.maximum.at(scores, group, found.scores)
    return boxes[group], scores[group]


def _ranks(boxes: Floats, scores: Floats, is_cut: Bools) -> Ints:
    """(M,) places in the order of preference: whole boxes by score, then cut ones by area."""
    is_whole = ~is_cut.any(axis=1)
    order = np.lexsort((-scores, np.where(is_whole, 0, -_areas(boxes)), ~is_whole))
    rank = np.empty(len(boxes), np.int64)
    rank[order] = np.arange(len(boxes))
    return rank


def _same_objects(boxes: Floats, tile_of: Ints, pairs: tuple[Ints, Ints], iou: float, rank: Ints) -> tuple[Ints, Ints]:
    """Pairs (better, worse) of boxes that are the same object by their IoU."""
    first, second = pairs
    chosen = _one_to_one(first, second, _iou(boxes[first], boxes[second]), tile_of, iou)
    first, second = first[chosen], second[chosen]
    is_better = rank[first] < rank[second]
    return np.where(is_better, first, second), np.where(is_better, second, first)


def _parts(boxes: Floats, frames: Floats, is_cut: Bools, reach: Floats, pairs: tuple[Ints, Ints], rank: Ints) -> tuple[Ints, Ints]:
    """Pairs (better, worse) in which the worse box is a part of the better one that a border has cut off."""
    first, second = pairs
    is_better = rank[first] < rank[second]
    whole, part = np.where(is_better, first, second), np.where(is_better, second, first)
    crosses = (is_cut[part, :2] & (boxes[whole, :2] <= frames[part, :2] + reach[part])).any(axis=1)
    crosses |= (is_cut[part, 2:] & (boxes[whole, 2:] >= frames[part, 2:] - reach[part])).any(axis=1)
    whole, part = whole[crosses], part[crosses]
    is_covered = _intersections(boxes[whole], boxes[part]) > _COVERED * _areas(boxes[part])
    return whole[is_covered], part[is_covered]


def _kept(same: tuple[Ints, Ints], parts: tuple[Ints, Ints], number: int) -> Ints:
    """The boxes that are removed by no better box that is kept itself."""
    better, worse = np.concatenate([same[0], parts[0]]), np.concatenate([same[1], parts[1]])
    is_kept = np.ones(number, dtype=np.bool_)
    while True:  # each round settles one more link of every chain, and ranks only fall along a chain
        now = np.ones(number, dtype=np.bool_)
        now[worse[is_kept[better]]] = False
        if (now == is_kept).all():
            return np.flatnonzero(is_kept)
        is_kept = now


def _one_to_one(first: Ints, second: Ints, overlap: Floats, tile_of: Ints, least: float) -> Ints:
    """The pairs of more than ``least`` overlap in which each box is the best one for the other among all boxes of its tile."""
    enough = np.flatnonzero(overlap > least)
    enough = enough[np.argsort(-overlap[enough], kind="stable")]
    number = int(tile_of.max(initial=0)) + 1
    best_of_first = np.unique(first[enough] * number + tile_of[second[enough]], return_index=True)[1]
    best_of_second = np.unique(second[enough] * number + tile_of[first[enough]], return_index=True)[1]
    return enough[np.intersect1d(best_of_first, best_of_second, assume_unique=True)]


def _pairs(boxes: Floats, labels: Ints, tile_of: Ints) -> tuple[Ints, Ints]:
    """All pairs of boxes of one class and different tiles that share some area; the first one's tile has the lower number.

    Boxes are put into the cells of a grid, and compared within a cell. A pair counts in the cell of the upper left corner of what the two
    share.
    """
    nothing = np.zeros(0, np.int64)
    if not len(boxes):
        return nothing, nothing
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    cell = max(16.0, 2 * float(np.sqrt(np.mean(sides.prod(axis=1)))), float(boxes.max()) / 2**20)
    lowest = np.floor(boxes[:, :2] / cell).astype(np.int64)
    spans = np.floor(boxes[:, 2:] / cell).astype(np.int64) - lowest + 1
    counts = spans.prod(axis=1)
    rows = np.repeat(np.arange(len(boxes)), counts)
    inside = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    column = lowest[rows, 0] + inside % spans[rows, 0]
    line = lowest[rows, 1] + inside // spans[rows, 0]
    key = (labels[rows] * (int(line.max()) + 1) + line) * (int(column.max()) + 1) + column
    order = np.argsort(key, kind="stable")
    rows, key, column, line = rows[order], key[order], column[order], line[order]
    followers = np.searchsorted(key, key, side="right") - np.arange(len(key)) - 1
    found = [(nothing, nothing)]
    ends = np.cumsum(followers)
    start = 0
    while start < len(rows):
        stop = max(start + 1, int(np.searchsorted(ends, (ends[start - 1] if start else 0) + _PAIRS_AT_A_TIME, side="right")))
        number = followers[start:stop]
        one = np.repeat(np.arange(start, stop), number)
        other = one + 1 + np.arange(len(one)) - np.repeat(np.cumsum(number) - number, number)
        here, there = rows[one], rows[other]
        corner = np.maximum(boxes[here, :2], boxes[there, :2])
        shares = (corner < np.minimum(boxes[here, 2:], boxes[there, 2:])).all(axis=1) & (tile_of[here] != tile_of[there])
        shares &= (np.floor(corner[:, 0] / cell) == column[one]) & (np.floor(corner[:, 1] / cell) == line[one])
        found.append((here[shares], there[shares]))
        start = stop
    first, second = (np.concatenate(side) for side in zip(*found, strict=True))
    is_ordered = tile_of[first] < tile_of[second]
    return np.where(is_ordered, first, second), np.where(is_ordered, second, first)


def _clipped(boxes: Floats, frames: Floats) -> Floats:
    return np.concatenate([np.maximum(boxes[:, :2], frames[:, :2]), np.minimum(boxes[:, 2:], frames[:, 2:])], axis=1)


def _areas(boxes: Floats) -> Floats:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 0).prod(axis=1)


def _intersections(one: Floats, other: Floats) -> Floats:
    return _areas(_clipped(one, other))


def _iou(one: Floats, other: Floats) -> Floats:
    """(P,) of pairs; 0 for empty boxes."""
    shared = _intersections(one, other)
    return shared / np.maximum(_areas(one) + _areas(other) - shared, np.finfo(np.float64).tiny)
