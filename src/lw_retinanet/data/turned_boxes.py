"""Boxes that fit the stored pixels of images that are displayed turned by an EXIF tag."""

from dataclasses import replace

import numpy as np

from lw_retinanet.data.image_sizes import header_sizes
from lw_retinanet.data.orientation import SWAPS_SIDES, UPRIGHT, orientation
from lw_retinanet.data.records import Records


def turned_images(records: Records) -> dict[int, int]:
    """The orientation of each image, by number, whose boxes fit the stored pixels and not the displayed image.

    The size tells it where the tag swaps the sides. Where it does so for one image, all other images with a tag are taken so, too.
    """
    sizes = header_sizes([records.path(image) for image in range(records.num_images)])
    tags = {image: orientation(records.path(image)) for image, size in enumerate(sizes) if isinstance(size, tuple)}
    tags = {image: tag for image, tag in tags.items() if tag != UPRIGHT}
    annotated = [(int(height), int(width)) for height, width in records.sizes_hw]
    swapped = {image for image, tag in tags.items() if tag in SWAPS_SIDES and sizes[image] != annotated[image] != annotated[image][::-1]}
    return {image: tag for image, tag in tags.items() if image in swapped or sizes[image] == annotated[image]} if swapped else {}


def with_turned_boxes(records: Records) -> Records:
    """The same records, with the boxes and sizes of turned images as they are displayed."""
    boxes, sizes_hw = records.boxes_xywh.copy(), records.sizes_hw.copy()
    for image, tag in turned_images(records).items():
        height, width = (int(side) for side in records.sizes_hw[image])
        x0, y0, x1, y1 = records.boxes(image).T
        if tag in (2, 3, 7, 8):
            x0, x1 = width - x1, width - x0
        if tag in (3, 4, 6, 7):
            y0, y1 = height - y1, height - y0
        if tag in SWAPS_SIDES:
            x0, y0, x1, y1 = y0, x0, y1, x1
            sizes_hw[image] = width, height
        boxes[records.rows(image)] = np.stack([x0, y0, x1 - x0, y1 - y0], axis=1)
    return replace(records, boxes_xywh=boxes, sizes_hw=sizes_hw)
