"""The pictures of a measurement, as bytes: what is timed begins with decoding them."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import decode
from lw_retinanet.data.sample import draw_scene
from lw_retinanet.errors import ImageError

MADE_UP = 4
MOST = 64


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Encoded pictures, and a word on where they come from."""

    files: tuple[bytes, ...]
    source: str

    def batch(self, number: int, size: int) -> list[bytes]:
        """Those of round ``number``."""
        return [self.files[(number * size + row) % len(self.files)] for row in range(size)]

    def squares(self, side: int) -> "Pictures":
        """The largest square in the middle of each, as JPEG of this side."""
        files = tuple(_jpeg(_square(decode(file), side)) for file in self.files)
        return Pictures(files=files, source=f"{self.source}, cut to squares of {side} x {side}")

    def decoded(self, number: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 of one of them."""
        return decode(self.files[number])


def usual_side(size: int) -> int:
    """Side of a picture that is enlarged to ``size`` as COCO's 640 pixels are to 800."""
    return max(8, 4 * size // 5)


def made_up_pictures(size: int) -> Pictures:
    """Square JPEG files of coloured shapes, of :func:`usual_side`."""
    side = usual_side(size)
    return Pictures(
        files=tuple(_jpeg(draw_scene(np.random.default_rng((7, number)), (side, side)).image) for number in range(MADE_UP)),
        source=f"{MADE_UP} made-up pictures, {side} x {side}, JPEG",
    )


def pictures_of(folder: Path) -> Pictures:
    """The first pictures of a folder, at most ``MOST``, as their files are.

    Raises:
        InputError: if there is none.
        ImageError: for one that cannot be read.
    """
    files = find_images([folder])[:MOST]
    contents = []
    for file in files:
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            raise ImageError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
        decode(contents[-1], name=str(file))
    return Pictures(files=tuple(contents), source=f"{len(files)} pictures of {folder}")


def _square(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    shorter = min(height, width)
    top, left = (height - shorter) // 2, (width - shorter) // 2
    cut = Image.fromarray(image[top : top + shorter, left : left + shorter])
    return np.asarray(cut.resize((side, side), Image.Resampling.BILINEAR))


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return stream.getvalue()
