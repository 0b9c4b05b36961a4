"""JPEG files: a short header for Pillow, and decoding that notices when the pixels end too early.

At an end mark in the middle of the pixels, libjpeg fills the rest with grey and only warns, which Pillow does not pass on. Here the decoder
gets the data of one scan at a time, without the mark that follows them: it then asks for more if pixels are missing.
"""

import io
import re
from typing import Any, BinaryIO

from PIL import Image, JpegImagePlugin

from lw_retinanet.data.image_formats.promise import cut_short, require_bytes
from lw_retinanet.errors import ImageError

MAX_SCANS = 100  # usual are 1 to 20; every scan costs a pass over all pixels, however few bytes it has
_MAX_SEGMENTS = 300_000
_MAX_HEADER = 2**20
_MAX_JUNK = 2**16  # bytes between the segments of a header
_SOI, _EOI, _SOS, _APP0, _APP1, _APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEE
# Frames; Huffman, arithmetic and quantisation tables; restart interval; JFIF and Adobe. Others, but Exif, only cost time and memory.
_KEPT = frozenset({*range(0xC0, 0xD0), 0xDB, 0xDD, _SOS, _APP0, _APP14}) - {0xC8}
_HUFFMAN_FRAMES = (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2")  # these take at least a bit for each block of 8 x 8 pixels
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# No Huffman code is all ones, and encoders pad with them. In place of missing pixels, these can stand for three blocks at most.
_FILLER = b"\xff\0" * 8
_ALL_BITS = 14


class Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG whose `load` refuses missing pixels; `open_jpeg` makes it."""

    header: bytes
    rest: BinaryIO  # its position is the first byte behind the header

    def load(self) -> Any:  # Pillow does not name the type
        """Decode the pixels."""
        if self.tile:
            (name, extents, _, args), *_ = self.tile
            self.load_prepare()
            decoder = Image._getdecoder(self.mode, name, args, self.decoderconfig)
            try:
                decoder.setimage(self.im, extents)
                self._decode(decoder)
            finally:
                decoder.cleanup()
            self.tile = []
        return Image.Image.load(self)

    def _decode(self, decoder: Any) -> None:
        data = self.rest.read(16 * self.width * self.height + 2**20)  # no encoder writes as much
        stream = io.BytesIO(data)
        is_progressive = has_several = bool(self.info.get("progressive"))
        missing = {layer[0]: [_ALL_BITS] * 64 for layer in self.layer}  # bits of each coefficient that no scan has brought yet
        head: bytes | None = self.header
        for _ in range(MAX_SCANS):
            if head is None:
                break
            _note_scan(head, missing, is_progressive=is_progressive)
            has_several |= any(map(any, missing.values()))
            mark = _END_OF_SCAN.search(data, stream.tell())
            end = mark.start() if mark else len(data)
            given = head + data[stream.tell() : end] + _FILLER
            taken, error = decoder.decode(given)
            if taken < 0:
                if error < 0:
                    raise OSError("its pixels cannot be decoded")
                return
            # Behind a whole scan, every byte is skipped. Within a scan, the decoder leaves a part of a block, or a single further byte.
            if not has_several or taken < len(given) or decoder.decode(b"\0")[0] != 1:
                raise cut_short("pixels are missing")
            stream.seek(end)
            head = _header(stream)
        else:
            raise ImageError(f"has more than {MAX_SCANS} scans, which take too long; save it anew")
        if any(map(any, missing.values())):
            raise cut_short("scans are missing")
        if decoder.decode(bytes([0xFF, _EOI])) != (-1, 0):
            raise OSError("its pixels cannot be decoded")


def open_jpeg(stream: BinaryIO) -> Jpeg:
    """Read the header of a JPEG; of several images in the file (MPO), the first one counts.

    Raises:
        ImageError: if the file is too short for its pixels.
        ValueError: if there is no image in it.
    """
    header = _header(stream)
    if header is None:
        raise ValueError("no pixels follow the header")
    image = Jpeg(io.BytesIO(header), "")
    image.header, image.rest = header, stream
    if any(frame in header for frame in _HUFFMAN_FRAMES):
        num_blocks = -(-image.width // 8) * -(-image.height // 8)
        require_bytes(stream, num_blocks // 8, image.size)
    return image


def _header(stream: BinaryIO) -> bytes | None:
    """What a decoder needs of the segments up to the start of a scan; None if no scan follows."""
    kept = bytearray()
    has_exif = False
    patience = _MAX_JUNK
    for _ in range(_MAX_SEGMENTS):
        marker, patience = _next_marker(stream, patience)
        if marker in (None, _EOI):
            return None
        if marker == _SOI and not kept:
            kept += bytes([0xFF, _SOI])
        if marker in _WITHOUT_LENGTH:
            continue
        length = stream.read(2)
        num_bytes = int.from_bytes(length, "big") - 2
        if marker not in _KEPT and (marker != _APP1 or has_exif):
            stream.seek(max(0, num_bytes), io.SEEK_CUR)
            continue
        body = stream.read(max(0, num_bytes))
        if len(length) < 2 or len(body) != num_bytes:
            return None
        if marker == _APP1 and not (has_exif := body.startswith(b"Exif\0\0")):
            continue
        kept += bytes([0xFF, marker]) + length + body
        if marker == _SOS:
            return bytes(kept)
        if len(kept) > _MAX_HEADER:
            break
    raise ValueError("the header is too long")


def _next_marker(stream: BinaryIO, patience: int) -> tuple[int | None, int]:
    """The next marker, None if there is none, and how many more bytes may come between markers."""
    previous = b""
    for count in range(patience):
        byte = stream.read(1)
        if not byte:
            break
        if previous == b"\xff" and byte not in (b"\0", b"\xff"):
            return byte[0], patience - count + 1
        previous = byte
    return None, 0


def _note_scan(header: bytes, missing: dict[int, list[int]], *, is_progressive: bool) -> None:
    """Take what a scan brings, as the last segment of its header says, off what is missing."""
    scan = header[header.rindex(b"\xff\xda\0") + 4 :]
    first, last, low_bit = scan[-3], scan[-2], scan[-1] & 15
    for component in scan[1 : 1 + 2 * scan[0] : 2]:
        if is_progressive:
            missing[component][first : last + 1] = [low_bit] * (last + 1 - first)
        else:
            missing[component] = [0] * 64
