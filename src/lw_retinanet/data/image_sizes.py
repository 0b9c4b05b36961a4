"""Sizes of many images from their headers, read side by side."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import ImageError

HeaderSize = tuple[int, int] | ImageError | None
_NUM_THREADS = 8  # the wait is for the disk or the network, not for the processor


def _header_size(path: Path) -> HeaderSize:
    from lw_retinanet.data.images import read_size

    if not path.is_file():
        return None
    try:
        height, width = read_size(path)
    except ImageError as error:
        return error
    return height, width


def header_sizes(paths: Sequence[Path]) -> list[HeaderSize]:
    """For each path (height, width) in displayed orientation, None where there is no file, the error where it cannot be read."""
    if len(paths) < 2 * _NUM_THREADS:
        return [_header_size(path) for path in paths]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        return list(pool.map(_header_size, paths))


def measure_sizes(root: Path, file_names: Sequence[str], problems: Problems) -> NDArray[np.int32]:
    """(I, 2) height and width from the headers, (0, 0) for a missing, unreadable or unsafe image, which is added to ``problems``."""
    sizes_hw = np.zeros((len(file_names), 2), dtype=np.int32)
    for row, (name, size) in enumerate(zip(file_names, header_sizes([root / name for name in file_names]), strict=True)):
        if size is None:
            problems.add("missing_image", str(root / name))
        elif isinstance(size, ImageError):
            problems.add("unreadable_image", str(size))
        else:
            sizes_hw[row] = size
    return sizes_hw
