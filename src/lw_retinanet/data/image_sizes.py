"""Checking the files of many images by their headers: whether they exist, and what their sizes are."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.images import read_size
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError, ImageError

HeaderSize = tuple[int, int] | ImageError | None
_MISSING_REMEDY = "put it there or take it out of the annotations (`lw-retinanet data check` lists all)"
_NUM_THREADS = 8  # more than processors, because reading waits for the disk or the network


def _header_size(path: Path) -> HeaderSize:
    if not path.is_file():
        return None
    try:
        height, width = read_size(path)
    except ImageError as error:
        return error
    return height, width


def header_sizes(paths: Sequence[Path]) -> list[HeaderSize]:
    """(height, width) in displayed orientation for each path; None if there is no file, the error if it cannot be read."""
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


def known_sizes(records: Records) -> NDArray[np.int32]:
    """(I, 2) the sizes of the images, read from the header where the annotations do not say them; (0, 0) where that fails, too."""
    unknown = np.flatnonzero(~records.sizes_hw.all(axis=1)).tolist()
    sizes_hw = records.sizes_hw.copy() if unknown else records.sizes_hw
    for row, size in zip(unknown, header_sizes([records.path(row) for row in unknown]), strict=True):
        sizes_hw[row] = size if isinstance(size, tuple) else (0, 0)
    return sizes_hw


def with_sizes(records: Records) -> Records:
    """The same records with every unknown size read from the image's header.

    Raises:
        ImageError: for an image that is missing or unreadable.
    """
    sizes_hw = known_sizes(records)
    for row in np.flatnonzero(~sizes_hw.all(axis=1)).tolist():
        read_size(records.path(row))  # raises what is wrong with the first of them
    return records if sizes_hw is records.sizes_hw else replace(records, sizes_hw=sizes_hw)


def require_files(records: Records) -> None:
    """Check that every image file exists.

    Raises:
        ImageError: naming the first missing image and how many are missing.
    """
    missing = [image for image in range(records.num_images) if not records.path(image).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ImageError(f"{records.path(missing[0])} is missing{more}; {_MISSING_REMEDY}")


def require_size(path: Path, size_hw: tuple[int, int], annotated_hw: tuple[int, int]) -> None:
    """Check that an image has the size that its annotation says (if any), since its boxes lie in the wrong places otherwise.

    Raises:
        DataError: naming both sizes.
    """
    if annotated_hw not in ((0, 0), size_hw):
        raise DataError(
            f"{path} is {size_hw[1]}x{size_hw[0]} pixels, its annotation says {annotated_hw[1]}x{annotated_hw[0]}; "
            "run `lw-retinanet data check` and correct the annotation or the file"
        )


def require_sizes(records: Records) -> None:
    """Check every image's header against its annotation.

    Raises:
        ImageError: for an image whose header cannot be read.
        DataError: for an image of another size.
    """
    paths = [records.path(image) for image in range(records.num_images)]
    for path, size, annotated in zip(paths, header_sizes(paths), records.sizes_hw.tolist(), strict=True):
        if isinstance(size, ImageError):
            raise size
        if size is not None:
            require_size(path, size, (annotated[0], annotated[1]))
