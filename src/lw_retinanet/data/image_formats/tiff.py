"""TIFF files: what their tags say, and refusing what Pillow would read wrongly or in part."""

import os
import struct
from collections.abc import Mapping
from typing import BinaryIO

import numpy as np
from PIL import TiffImagePlugin

from lw_retinanet.data.image_formats.promise import cut_short
from lw_retinanet.errors import ImageError

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _SAMPLES, _PLANES, _KIND = 256, 257, 258, 259, 262, 277, 284, 339
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 273, 278, 279, 322, 323, 324, 325
_READ = frozenset(
    {_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _SAMPLES, _PLANES, _KIND, _STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_BYTES}
    | {_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES}
)
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the whole numbers among the types of a tag
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MAX_TAGS = 4096
_MAX_PARTS = 2**20  # strips or tiles
_KINDS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
# At most so many bytes of pixels come from one: PackBits, LZW, deflate. Other methods have no such bound.
_PACKING = {1: 1, 32773: 64, 5: 2731, 8: 1032, 32946: 1032}

Tags = Mapping[int, tuple[int, ...]]


def open_tiff(stream: BinaryIO) -> TiffImagePlugin.TiffImageFile:
    """Read the header of a TIFF; of several pages the first one counts.

    Raises:
        ImageError: for samples or an arrangement that cannot be turned into an RGB image, and for missing parts.
        ValueError: if the tags cannot be read.
    """
    file_size = stream.seek(0, os.SEEK_END)
    tags = _read_tags(stream, file_size)
    _require_samples(tags)
    _require_parts(tags, file_size)
    stream.seek(0)
    try:
        return TiffImagePlugin.TiffImageFile(stream, "")
    except SyntaxError:
        bits, samples = tags.get(_BITS, (1,)), tags.get(_SAMPLES, (1,))[0]
        raise ImageError(
            f"has {samples} bands of {'/'.join(map(str, sorted(set(bits))))} bits, which is not read; save three of them as RGB with 8 bits"
        ) from None


def _read_tags(stream: BinaryIO, file_size: int) -> Tags:
    """The values of the tags in `_READ`, of the first page."""
    stream.seek(0)
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    is_big = start[2:4] in (b"+\0", b"\0+")
    place_code, count_code, entry_bytes = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    (place,) = struct.unpack_from(order + place_code, start, 8 if is_big else 4)
    stream.seek(place)
    (num_tags,) = struct.unpack(order + count_code, stream.read(8 if is_big else 2))
    if num_tags > _MAX_TAGS:
        raise ValueError(f"{num_tags:,} tags")
    entries, values, num_bytes = stream.read(entry_bytes * num_tags), {}, 0
    room = 8 if is_big else 4
    for row in range(num_tags):
        tag, kind, count = struct.unpack_from(order + "HH" + place_code, entries, entry_bytes * row)
        size = count * _TYPE_BYTES.get(kind, 0)
        num_bytes += size if size > room else 0
        if num_bytes > file_size or (tag in _READ and count > _MAX_PARTS):  # Pillow would read all of them
            raise ValueError("its tags are too long")
        if tag not in _READ or kind not in _CODES:
            continue
        data = entries[entry_bytes * row + entry_bytes - room :][:room]
        if size > room:
            stream.seek(struct.unpack(order + place_code, data)[0])
            data = stream.read(size)
        values[tag] = struct.unpack_from(f"{order}{count}{_CODES[kind]}", data)
    return values


def _require_samples(tags: Tags) -> None:
    """Refuse samples of which Pillow makes a wrong image or no image."""
    kind = max(tags.get(_KIND, (1,)))
    bits = max(tags.get(_BITS, (1,)))
    if kind in _KINDS or (bits > 16 and kind != 3):
        what = _KINDS.get(kind, f"{bits}-bit")
        raise ImageError(f"has {what} samples, whose range is unknown; save it with 8 or 16 bits a sample")
    if tags.get(_PLANES, (1,))[0] == 2 and bits != 8 and tags.get(_SAMPLES, (1,))[0] > 1:
        raise ImageError(f"keeps its bands of {bits} bits one after another; save it with the bands of each pixel together, or with 8 bits")


def _require_parts(tags: Tags, file_size: int) -> None:
    """Check that there are as many strips or tiles as the size needs, inside the file, and long enough."""
    width, height = tags[_WIDTH][0], tags[_HEIGHT][0]
    is_tiled = _TILE_OFFSETS in tags
    part_width = tags[_TILE_WIDTH][0] if is_tiled else width
    part_height = tags[_TILE_HEIGHT][0] if is_tiled else min(height, tags.get(_ROWS_PER_STRIP, (height,))[0])
    num_samples, bits = tags.get(_SAMPLES, (1,))[0], tags.get(_BITS, (1,))
    num_planes = num_samples if tags.get(_PLANES, (1,))[0] == 2 else 1
    num_parts = -(-width // part_width) * -(-height // part_height) * num_planes
    offsets = np.array(tags[_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS][:num_parts], np.uint64).astype(np.float64)
    if len(offsets) < num_parts:
        raise cut_short(f"{len(offsets):,} of {num_parts:,} parts of the image are there")
    row_bits = part_width * (sum(bits) if len(bits) == num_samples else bits[0] * num_samples) // num_planes
    needed = np.full(num_parts, part_height * ((row_bits + 7) // 8), np.float64)
    if not is_tiled:
        rows_of_last = height - (height - 1) // part_height * part_height
        needed.reshape(num_planes, -1)[:, -1] = rows_of_last * ((row_bits + 7) // 8)
    if tags.get(_COLOURS, (1,))[0] == 6:  # colours may have fewer samples than pixels
        needed /= 3
    compression = tags.get(_COMPRESSION, (1,))[0]
    lengths = np.array(tags.get(_TILE_BYTES if is_tiled else _STRIP_BYTES, ())[:num_parts], np.uint64).astype(np.float64)
    if compression == 1 or len(lengths) < num_parts:  # lengths are often wrong where they are not needed
        lengths = needed / _PACKING.get(compression, np.inf)
    missing = (offsets == 0) | (offsets + lengths > file_size) | (lengths * _PACKING.get(compression, np.inf) < needed)
    if missing.any():
        raise cut_short(f"{int(missing.sum()):,} of {num_parts:,} parts of the image are missing")
