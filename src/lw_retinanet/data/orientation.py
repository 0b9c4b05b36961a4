"""The EXIF tag by which an image is displayed turned, and dropping it."""

from pathlib import Path

from PIL import ExifTags, Image

from lw_retinanet.errors import DataError, printable

UPRIGHT = 1
SWAPS_SIDES = frozenset({5, 6, 7, 8})
# The EXIF entry of the orientation, one short number, in both orders of bytes, with what follows it in an upright image.
_ENTRIES = ((b"\x01\x12\0\x03\0\0\0\x01", b"\0\x01"), (b"\x12\x01\x03\0\x01\0\0\0", b"\x01\0"))
_EXIF_BYTES = 2**17


def orientation(path: Path) -> int:
    """The EXIF orientation of an image, 1 to 8; 1, which is upright, where there is none that can be read."""
    try:
        with Image.open(path) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def upright_bytes(path: Path) -> bytes:
    """The bytes of a JPEG file whose EXIF tag no longer turns it; its pixels are not encoded again.

    Raises:
        DataError: for another kind of file.
    """
    data = path.read_bytes()
    for entry, upright in _ENTRIES:
        place = data.find(entry, 0, _EXIF_BYTES)
        if place >= 0 and data.startswith(b"\xff\xd8"):
            place += len(entry)
            return data[:place] + upright + data[place + len(upright) :]
    raise DataError(f"{printable(path)}: the EXIF tag can only be dropped from JPEG files; turn the boxes instead")
