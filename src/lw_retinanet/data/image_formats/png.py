"""PNG files: a shorter file for Pillow, and the check that all rows are there."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import PngImagePlugin

from lw_retinanet.data.image_formats.promise import cut_short

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_FOR_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_CHUNKS = 100_000
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the colour type
_PACKING = 1032  # deflate cannot make data shorter than by this factor
# The passes of an interlaced image: first column and row, steps between columns and rows.
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


class Png(PngImagePlugin.PngImageFile):
    """A PNG whose `load` refuses missing rows; `open_png` makes it."""

    short_file: BinaryIO
    num_row_bytes: int

    def load(self) -> Any:  # Pillow does not name the type
        """Decode the pixels."""
        is_new = bool(self.tile)
        pixels = super().load()
        # Missing rows stay as they were made, at zero. Decompressing again takes long, so only images with such a row at the end get it;
        # of an interlaced one, the last row to be decoded may be the last but one.
        rows = range(max(0, self.height - 2), self.height)
        if is_new and not all(self._new(self.im.crop((0, row, self.width, row + 1))).tobytes().strip(b"\0") for row in rows):
            self._require_rows()
        return pixels

    def _require_rows(self) -> None:
        engine, missing = zlib.decompressobj(), self.num_row_bytes
        for kind, length in _chunks(self.short_file):
            data = self.short_file.read(length) if kind == b"IDAT" else b""
            while data and missing > 0:
                missing -= len(engine.decompress(data, 2**20))
                data = engine.unconsumed_tail
        if missing > 0:
            raise cut_short("rows are missing")


def open_png(stream: BinaryIO, max_pixels: int | None) -> Png:
    """Read the header of a PNG. It can be loaded unless it has more than ``max_pixels``, or that is None.

    Texts, profiles and animation are left out, so that oversized ones do no harm, and EXIF is moved in front of the pixels.

    Raises:
        ImageError: if the file is too short for its pixels.
        ValueError: if it has too many parts, or far more data than its pixels need.
    """
    head, body, exif = io.BytesIO(), io.BytesIO(), b""
    head.write(_SIGNATURE)
    end = stream.seek(0, os.SEEK_END)
    num_pixels = num_row_bytes = num_packed = 0
    for kind, length in _chunks(stream):
        if kind == b"eXIf" and length < 2**20:
            exif = stream.read(length)
        if kind not in _FOR_PIXELS or (kind != b"IDAT" and length > 2**20):
            continue
        if kind == b"IDAT":
            num_packed += min(length, end - stream.tell())
            if num_packed > 2 * num_row_bytes + 2**20:
                raise ValueError(f"more than {num_packed:,} bytes of pixel data")
            if max_pixels is None or num_pixels > max_pixels:
                continue
        data = stream.read(length + 4)
        if kind == b"IHDR" and length == 13:
            num_pixels, num_row_bytes = _extent(data)
        part = body if kind in (b"IDAT", b"IEND") else head
        part.write(struct.pack(">I4s", length, kind) + data)
    if _PACKING * num_packed < num_row_bytes:
        raise cut_short(f"{num_pixels:,} pixels cannot be in {num_packed:,} bytes")
    if exif:
        head.write(_chunk(b"eXIf", exif))
    if not body.tell():
        head.write(_chunk(b"IDAT", b""))  # Pillow reads on to here
    head.write(body.getbuffer())
    head.seek(0)
    image = Png(head, "")
    image.short_file, image.num_row_bytes = head, num_row_bytes
    return image


def _extent(header: bytes) -> tuple[int, int]:
    """The number of pixels, and the number of bytes of all decompressed rows."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header[:13])
    passes = _PASSES if interlace else ((0, 0, 1, 1),)
    num_bytes = 0
    for left, top, step_x, step_y in passes:
        columns, rows = max(0, -(-(width - left) // step_x)), max(0, -(-(height - top) // step_y))
        num_bytes += rows * (1 + (columns * depth * _SAMPLES.get(colour, 1) + 7) // 8) if columns else 0
    return width * height, num_bytes


def _chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, with the stream at its data. A file that is cut short just ends; Pillow says so when it decodes."""
    place = len(_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        stream.seek(place)
        prefix = stream.read(8)
        if len(prefix) < 8:
            return
        length, kind = struct.unpack(">I4s", prefix)
        yield kind, length
        if kind == b"IEND":
            return
        place += length + 12
    raise ValueError(f"more than {_MAX_CHUNKS:,} chunks")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
