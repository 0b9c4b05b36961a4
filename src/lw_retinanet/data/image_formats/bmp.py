"""BMP files: refusing those that are too short for their pixels, or slow to decode."""

import os
from typing import BinaryIO

from PIL import BmpImagePlugin

from lw_retinanet.data.image_formats.promise import require_bytes
from lw_retinanet.errors import ImageError

_MAX_RUN_LENGTH_BYTES = 2**23


def open_bmp(stream: BinaryIO) -> BmpImagePlugin.BmpImageFile:
    """Read the header of a BMP.

    Raises:
        ImageError: if the file is too short for its pixels, or too long for its slow method of compression.
    """
    image = BmpImagePlugin.BmpImageFile(stream, "")
    (codec, _, offset, args), *_ = image.tile
    stream.seek(offset)
    if codec == "raw" and isinstance(args, tuple):
        require_bytes(stream, args[1] * (image.height - 1), image.size)
    elif stream.seek(0, os.SEEK_END) > _MAX_RUN_LENGTH_BYTES:  # Pillow decodes runs pixel by pixel, in Python
        raise ImageError("is a run-length coded BMP of more than 8 MiB, which takes too long to decode; save it as PNG")
    return image
