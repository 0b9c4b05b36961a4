"""Refusing files that hold less than they promise, before memory is taken for their pixels."""

import errno
import os
from typing import BinaryIO

from lw_retinanet.errors import ImageError

_SMALL = 2**16  # bytes; file systems keep files of this size in whole blocks
_MAX_EXTENTS = 1000


def require_bytes(stream: BinaryIO, needed: int, size: tuple[int, int]) -> None:
    """Check that the rest of a file can hold the pixels; the position in the file stays.

    Args:
        stream: The file, at the first byte that may belong to the pixels.
        needed: The fewest bytes that the pixels can take.
        size: (width, height) that the header promises.

    Raises:
        ImageError: if the rest is shorter.
    """
    position = stream.tell()
    left = stream.seek(0, os.SEEK_END) - position
    stream.seek(position)
    if left < needed:
        raise cut_short(f"{size[0]} x {size[1]} pixels cannot be in the {max(0, left):,} bytes that are left of the file")


def cut_short(reason: str) -> ImageError:
    """The error for a file that ends too early."""
    return ImageError(f"is cut short ({reason}); replace the file")


def require_no_holes(descriptor: int) -> None:
    """Check that a file was written throughout. A download that stopped leaves a hole, whose zero bytes could be taken for pixels.

    Raises:
        ImageError: if less than half of the file was ever written.
    """
    num_bytes = os.fstat(descriptor).st_size
    if num_bytes <= _SMALL or not hasattr(os, "SEEK_HOLE"):
        return
    written = end = 0
    try:
        for _ in range(_MAX_EXTENTS):
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            written += end - start
            if 2 * written >= num_bytes:
                return
    except OSError as error:
        if error.errno != errno.ENXIO:  # ENXIO: nothing but a hole follows; otherwise the file system does not say
            return
    else:
        return  # too scattered to look at all of it
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    raise cut_short(f"only {written:,} of its {num_bytes:,} bytes were ever written")
