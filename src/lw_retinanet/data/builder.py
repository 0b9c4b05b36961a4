"""From unsorted columns, in whatever order a file lists its boxes, to `Records`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.data.records import Category, Id, Records

MAX_COORDINATE = 1e9  # no image has as many pixels a side; larger numbers overflow later


def build_records(
    *,
    root: Path,
    file_names: Sequence[str],
    sizes_hw: ArrayLike,
    image_of_box: ArrayLike,
    boxes_xywh: ArrayLike,
    labels: ArrayLike,
    categories: Sequence[Category],
    image_ids: Sequence[Id] | None = None,
    areas: NDArray[np.float64] | None = None,
    is_crowd: ArrayLike | None = None,
    is_difficult: ArrayLike | None = None,
    annotation_ids: NDArray[np.int64] | None = None,
) -> Records:
    """Sort the boxes by image, keeping the file's order within an image.

    Args:
        image_of_box: (B,) row 0..I-1 of each box's image.
        image_ids: 1..I if not given.
        areas: width times height if not given.
        annotation_ids: 1..B in the sorted order if not given.
    """
    num_images = len(file_names)
    image_rows = np.asarray(image_of_box, dtype=np.int64).reshape(-1)
    num_boxes = len(image_rows)
    order = np.argsort(image_rows, kind="stable")
    boxes = np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4)[order]
    offsets = np.zeros(num_images + 1, dtype=np.int64)
    np.cumsum(np.bincount(image_rows, minlength=num_images), out=offsets[1:])

    def flags(values: ArrayLike | None) -> NDArray[np.bool_]:
        return np.zeros(num_boxes, dtype=np.bool_) if values is None else np.asarray(values, dtype=np.bool_).reshape(-1)[order]

    return Records(
        root=root,
        file_names=tuple(file_names),
        image_ids=tuple(range(1, num_images + 1)) if image_ids is None else tuple(image_ids),
        sizes_hw=np.asarray(sizes_hw, dtype=np.int32).reshape(-1, 2),
        offsets=offsets,
        boxes_xywh=boxes,
        labels=np.asarray(labels, dtype=np.int32).reshape(-1)[order],
        is_crowd=flags(is_crowd),
        is_difficult=flags(is_difficult),
        areas=boxes[:, 2] * boxes[:, 3] if areas is None else areas[order],
        annotation_ids=np.arange(1, num_boxes + 1, dtype=np.int64) if annotation_ids is None else annotation_ids[order],
        categories=tuple(categories),
    )
