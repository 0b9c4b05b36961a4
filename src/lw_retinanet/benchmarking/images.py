"""The images of a measurement, still encoded, since decoding them is timed, too."""

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
MAX_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class BenchmarkImages:
    """Encoded images, and a phrase that says where they come from."""

    files: tuple[bytes, ...]
    source: str

    def batch(self, number: int, size: int) -> list[bytes]:
        """The images of round ``number``."""
        return [self.files[(number * size + row) % len(self.files)] for row in range(size)]

    def squares(self, side: int) -> "BenchmarkImages":
        """The largest square in the middle of each image, as a JPEG of this side."""
        files = tuple(_jpeg(_square(decode(file), side)) for file in self.files)
        return BenchmarkImages(files=files, source=f"{self.source}, cut to squares of {side} x {side}")

    def decoded(self, number: int) -> NDArray[np.uint8]:
        """One image as (H, W, 3) uint8."""
        return decode(self.files[number])


def usual_side(size: int) -> int:
    """Side of an image that is enlarged to ``size``, as COCO's 640 pixels are to 800."""
    return max(8, 4 * size // 5)


def made_up_images(size: int) -> BenchmarkImages:
    """Square JPEG files with coloured shapes, with the side of :func:`usual_side`."""
    side = usual_side(size)
    return BenchmarkImages(
        files=tuple(_jpeg(draw_scene(np.random.default_rng((7, number)), (side, side)).image) for number in range(MADE_UP)),
        source=f"{MADE_UP} made-up images, {side} x {side}, JPEG",
    )


def images_of(folder: Path) -> BenchmarkImages:
    """The first images of a folder, at most ``MAX_IMAGES``, as their files are.

    Raises:
        InputError: If there is no image.
        ImageError: If an image cannot be read.
    """
    files = find_images([folder])[:MAX_IMAGES]
    contents = []
    for file in files:
        try:
            contents.append(file.read_bytes())
        except OSError as error:
            raise ImageError(f"{file}: cannot be read ({error.strerror or error}); check its permissions") from None
        decode(contents[-1], name=str(file))
    return BenchmarkImages(files=tuple(contents), source=f"{len(files)} images of {folder}")


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
