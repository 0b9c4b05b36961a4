"""Places for the names of points, so that no name covers a point or another name."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]

_STEP = 4.0  # of the grid of places that are tried
_PAD = 1.5  # free space around every name
_ON_MARK, _LEADER_ON_NAME, _LEADER_ON_POINT = 30.0, 60.0, 12.0  # penalties, in the unit of the distance from the point
_COVERS = 1e6  # penalty of a place on a point or a name
_LOOKED_AT = 600  # number of nearest places that are compared


def place_labels(
    anchors: NDArray[np.float64],
    sizes: NDArray[np.float64],
    frame: Box,
    *,
    radius: float,
    marks: Sequence[Box] = (),
) -> NDArray[np.float64]:
    """Choose a place for each name: near its point, inside the frame, beside all points and names, and beside other marks if possible.

    If the frame is full, names cover each other; some forty names of usual length fit.

    Args:
        anchors: (N, 2) x and y of the points, y upwards. All lengths are in one unit.
        sizes: (N, 2) width and height of the names.
        frame: Left, lower, right and upper end of the space for names.
        radius: Radius of a point's marker.
        marks: Boxes that names should not cover if possible, such as bars and pieces of lines.

    Returns:
        (N, 2) lower left corner of each name.
    """
    points = np.concatenate([anchors - radius, anchors + radius], axis=1)
    soft = np.array(marks, dtype=np.float64).reshape(-1, 4)
    placed: list[NDArray[np.float64]] = []
    corners = np.zeros_like(anchors)
    # Points with many neighbours choose first, while there is space beside them.
    gaps = np.linalg.norm(anchors[:, None] - anchors[None], axis=2)
    for number in np.argsort((gaps < 8 * radius).sum(axis=1), kind="stable")[::-1]:
        anchor, names = anchors[number], np.array(placed).reshape(-1, 4)
        boxes = _candidates(anchor, sizes[number], frame, radius)
        covers = _overlaps(boxes, points).any(axis=1) | _overlaps(boxes, names).any(axis=1)
        far = np.linalg.norm(np.clip(anchor, boxes[:, :2], boxes[:, 2:]) - anchor, axis=1) + _COVERS * covers
        nearest = np.argsort(far, kind="stable")[:_LOOKED_AT]
        boxes, cost = boxes[nearest], far[nearest]
        ends = np.clip(anchor, boxes[:, :2], boxes[:, 2:])  # where a leader line would start
        leaders = ends[:, None] + np.linspace(0, 0.8, 9)[None, :, None] * (anchor - ends)[:, None]
        cost += _ON_MARK * _overlaps(boxes, soft).sum(axis=1)
        cost += _LEADER_ON_NAME * _crossings(leaders, names) + _LEADER_ON_POINT * _crossings(leaders, np.delete(points, number, axis=0))
        best = boxes[int(np.argmin(cost))]
        corners[number] = best[:2] + _PAD
        placed.append(best)
    return corners


def _candidates(anchor: NDArray[np.float64], size: NDArray[np.float64], frame: Box, radius: float) -> NDArray[np.float64]:
    """(M, 4) boxes: eight close to the point, as far as they lie in the frame, then a grid over the frame."""
    size = size + 2 * _PAD
    width, height = size
    away = radius + _PAD
    beside = [away, -away - width, -width / 2]
    above = [-height / 2, away, -away - height]
    near = np.array([(anchor[0] + x, anchor[1] + y) for x in beside for y in above])
    xs = np.arange(frame[0], max(frame[2] - width, frame[0]) + 1e-6, _STEP)
    ys = np.arange(frame[1], max(frame[3] - height, frame[1]) + 1e-6, _STEP)
    grid = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    inside = (near >= frame[:2]).all(axis=1) & (near + size <= frame[2:]).all(axis=1)
    corners = np.concatenate([near[inside], grid])
    return np.concatenate([corners, corners + size], axis=1)


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(M, K) bool, whether two boxes overlap."""
    a, b = boxes[:, None], others[None]
    return np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), axis=2)


def _crossings(lines: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.int64]:
    """(M,) how many of the (K, 4) boxes hold one of the (M, S, 2) points of each line."""
    a, b = lines[:, :, None], boxes[None, None]
    inside = np.all((a > b[..., :2]) & (a < b[..., 2:]), axis=3)
    return np.sum(np.any(inside, axis=1), axis=1)
