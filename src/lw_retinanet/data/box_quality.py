"""Which boxes a detector can learn from."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError

_FEWEST_BOXES = 8  # by which wrong numbers can be told from a few odd boxes
_SHARE_OUTSIDE = 0.25  # of boxes taken as width and height though they are corners, half or more reach out of the image


def clipped_sides(records: Records) -> NDArray[np.float64]:
    """(B, 2) width and height of every box after clipping to its image, zero or negative where nothing is left.

    A box whose image has no known size is taken as it is.
    """
    if records.num_boxes == 0:
        return np.zeros((0, 2), dtype=np.float64)
    sizes_wh = records.sizes_hw[records.image_of_box, ::-1].astype(np.float64)
    is_known = (sizes_wh > 0).all(axis=1, keepdims=True)
    low = records.boxes_xywh[:, :2]
    high = low + records.boxes_xywh[:, 2:]
    clipped: NDArray[np.float64] = np.minimum(high, sizes_wh) - np.maximum(low, 0.0)
    return np.where(is_known, clipped, records.boxes_xywh[:, 2:])


def are_corners(records: Records) -> bool:
    """Whether the boxes seem to be two corners that were written where a format wants width and height.

    Many reach out of their image by more than a pixel, and every one would fit as corners, in COCO's order or about YOLO's centre.
    """
    is_known = (records.sizes_hw[records.image_of_box] > 0).all(axis=1)
    if is_known.sum() < _FEWEST_BOXES:
        return False
    sizes_wh = records.sizes_hw[records.image_of_box, ::-1].astype(np.float64)[is_known]
    low, sides = records.boxes_xywh[is_known, :2], records.boxes_xywh[is_known, 2:]
    reaches_out = ((low < -1) | (low + sides > sizes_wh + 1)).any(axis=1)
    if reaches_out.mean() < _SHARE_OUTSIDE:
        return False
    return any(bool(((first >= 0) & (first < sides) & (sides <= sizes_wh + 1)).all()) for first in (low, low + sides / 2))


def usable(records: Records) -> NDArray[np.bool_]:
    """(B,) True for boxes of which at least 1 x 1 pixel lies in the image. Training drops the others; scoring keeps them."""
    sides = clipped_sides(records)
    return np.logical_and(sides[:, 0] >= 1.0, sides[:, 1] >= 1.0)


def require_boxes(records: Records, where: Path | str) -> None:
    """Refuse a data set from which nothing can be learned or measured.

    Args:
        where: What an error message calls the data set.

    Raises:
        DataError: if there are no images, no boxes, none of at least 1 x 1 pixel inside its image that is
            neither a crowd region nor difficult.
    """
    if records.num_images == 0:
        raise DataError(f"{where}: no images at all; check that this is the right file or split")
    if records.num_boxes == 0:
        raise DataError(f"{where}: {records.num_images:,} images but no boxes at all; check that this is the annotation file")
    if not usable(records).any():
        raise DataError(f"{where}: none of the {records.num_boxes:,} boxes covers 1 x 1 pixel of its image; check the box format")
    if not (usable(records) & ~records.is_ignored).any():
        kinds = [name for name, flags in (("crowd", records.is_crowd), ("difficult", records.is_difficult)) if flags.any()]
        num_open = int((~records.is_ignored).sum())
        rest = f", and the other {num_open:,} cover less than 1 x 1 pixel of their image" if num_open else ""
        raise DataError(
            f"{where}: {records.num_boxes - num_open:,} of the {records.num_boxes:,} boxes are {' or '.join(kinds)}{rest}, "
            "so nothing can be learned or measured; clear these flags where they are wrong"
        )
