"""Checking the files of many images by their headers: whether they exist, and what their sizes are."""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_files import is_file, is_safe_name
from lw_retinanet.data.images import decode, read_size, too_large
from lw_retinanet.data.orientation import SWAPS_SIDES, orientation
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError, ImageError, printable, shown

HeaderSize = tuple[int, int] | ImageError | None
_MISSING_REMEDY = "put it there or take it out of the annotations (`lw-retinanet data check` lists all)"
_MOST_CHARACTERS = 300  # of a path in a message
_END_MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}  # of JPEG and PNG, by how they start
_TAIL_BYTES = 4096
_NUM_THREADS = 8  # more than processors, because reading waits for the disk or the network


def _size(path: Path, *, decoded: bool) -> HeaderSize:
    if not is_file(path):
        return None
    try:
        height, width = decode(path).shape[:2] if decoded else read_size(path)
    except ImageError as error:
        return error
    return height, width


def header_sizes(paths: Sequence[Path]) -> list[HeaderSize]:
    """(height, width) in displayed orientation for each path; None if there is no file, the error if it cannot be read."""
    return list(image_sizes(paths))


def image_sizes(paths: Sequence[Path], *, decoded: bool = False) -> Iterator[HeaderSize]:
    """What `header_sizes` gives, one after another; ``decoded`` decodes every image, and finds those that are cut off."""
    look, num_threads = partial(_size, decoded=decoded), (os.cpu_count() or 1) if decoded else _NUM_THREADS
    if len(paths) < 2 * num_threads:
        yield from map(look, paths)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        yield from pool.map(look, paths)


def require_whole(records: Records) -> None:
    """Check that no image is cut off: one without the end mark of its format is decoded, since some sound ones have none.

    Raises:
        ImageError: for an image that is cut off.
    """
    paths = [records.path(image) for image in range(records.num_images)]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for path, has_end in zip(paths, pool.map(_has_end_mark, paths), strict=True):
            if not has_end:
                decode(path, max_pixels=records.max_pixels)


def _has_end_mark(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            mark = next((end for head, end in _END_MARKS.items() if start.startswith(head)), None)
            if mark is None:
                return True
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return mark in file.read()
    except OSError:
        return False


def measure_sizes(root: Path, file_names: Sequence[str], problems: Problems) -> NDArray[np.int32]:
    """(I, 2) height and width from the headers, (0, 0) for a missing, unreadable or unsafe image, which is added to ``problems``."""
    sizes_hw = np.zeros((len(file_names), 2), dtype=np.int32)
    rows = [row for row, name in enumerate(file_names) if is_safe_name(name)]
    for row, size in zip(rows, header_sizes([root / file_names[row] for row in rows]), strict=True):
        if size is None:
            problems.add("missing_image", str(root / file_names[row]))
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
    missing = [image for image in range(records.num_images) if not is_file(records.path(image))]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ImageError(f"{shown(str(records.path(missing[0])), most=_MOST_CHARACTERS)} is missing{more}; {_MISSING_REMEDY}")


def require_decodable(records: Records) -> None:
    """Check that no image has more pixels than are decoded.

    Raises:
        ImageError: naming the first that has.
    """
    num_pixels = records.sizes_hw.astype(np.int64).prod(axis=1)
    for row in np.flatnonzero(num_pixels > (records.max_pixels or MAX_PIXELS))[:1].tolist():
        height, width = records.sizes_hw[row].tolist()
        raise ImageError(f"{printable(records.path(row))}: {too_large((height, width), records.max_pixels)}")


def require_size(path: Path, size_hw: tuple[int, int], annotated_hw: tuple[int, int]) -> None:
    """Check that an image has the size that its annotation says (if any), since its boxes lie in the wrong places otherwise.

    Raises:
        DataError: naming both sizes.
    """
    if annotated_hw == size_hw[::-1] != size_hw and orientation(path) in SWAPS_SIDES:
        raise DataError(
            f"{path} has boxes that fit its stored pixels, and is displayed turned by its EXIF tag; turn the boxes or drop the tag: "
            "`lw-retinanet data convert` does either (turned: boxes or images)"
        )
    if annotated_hw not in ((0, 0), size_hw):
        raise DataError(
            f"{path} is {size_hw[1]}x{size_hw[0]} pixels, its annotation says {annotated_hw[1]}x{annotated_hw[0]}; "
            "run `lw-retinanet data check` and correct the annotation or the file"
        )


def require_sizes(records: Records, *, unread: bool = True, but: Collection[Path] = ()) -> None:
    """Check every image's header against its annotation.

    Args:
        records: What was read.
        unread: Whether an image whose header cannot be read is an error, too.
        but: Images that are not looked at.

    Raises:
        ImageError: for an image whose header cannot be read.
        DataError: for an image of another size.
    """
    rows = [image for image in range(records.num_images) if records.path(image) not in but] if but else range(records.num_images)
    paths = [records.path(image) for image in rows]
    for path, size, annotated in zip(paths, header_sizes(paths), records.sizes_hw[rows].tolist(), strict=True):
        if isinstance(size, ImageError) and unread:
            raise size
        if isinstance(size, tuple):
            require_size(path, size, (annotated[0], annotated[1]))
