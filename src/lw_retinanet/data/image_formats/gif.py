"""GIF files: refusing those that are too short for their pixels."""

from typing import BinaryIO

from PIL import GifImagePlugin

from lw_retinanet.data.image_formats.promise import require_bytes

_PACKING = 2731  # a code of 12 bits stands for 4,096 pixels at most


def open_gif(stream: BinaryIO) -> GifImagePlugin.GifImageFile:
    """Read the header of a GIF; of several frames the first one counts.

    Raises:
        ImageError: if the file is too short for its first frame.
    """
    image = GifImagePlugin.GifImageFile(stream, "")
    (_, extents, offset, _), *_ = image.tile
    left, top, right, bottom = extents or (0, 0, 0, 0)
    stream.seek(offset)
    require_bytes(stream, (right - left) * (bottom - top) // _PACKING, (right - left, bottom - top))
    return image
