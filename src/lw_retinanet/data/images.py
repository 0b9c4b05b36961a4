"""The one image decoder: files, bytes and PIL images become (H, W, 3) uint8 RGB arrays.

The content of a file decides what it is, never its name. Grey, 1-bit and palette images become RGB; transparent pixels are laid over
white; 16-bit samples are scaled by 1/257; CMYK is converted without a colour profile, and embedded profiles are ignored. Of several
frames or pages the first one counts. An image of which pixels are missing is refused.
"""

import io
import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, WebPImagePlugin

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_formats.bmp import open_bmp
from lw_retinanet.data.image_formats.gif import open_gif
from lw_retinanet.data.image_formats.jpeg import open_jpeg
from lw_retinanet.data.image_formats.png import open_png
from lw_retinanet.data.image_formats.promise import require_no_holes
from lw_retinanet.data.image_formats.signatures import image_format
from lw_retinanet.data.image_formats.tiff import open_tiff
from lw_retinanet.errors import ImageError, InputError, printable

# Not Image.open(), which first applies a limit of pixels that is global to the process.
_OPENERS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "JPEG": open_jpeg,
    "GIF": open_gif,
    "BMP": open_bmp,
    "TIFF": open_tiff,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})
_quiet = threading.Lock()


def _renew_lock() -> None:
    global _quiet
    _quiet = threading.Lock()


if hasattr(os, "register_at_fork"):  # a loader worker must not inherit a lock that a thread of its parent holds
    os.register_at_fork(after_in_child=_renew_lock)


def decode(source: Path | bytes, *, max_pixels: int | None = None, name: str | None = None) -> NDArray[np.uint8]:
    """Read an image in the orientation in which it is displayed: EXIF is applied, and a broken EXIF block is ignored.

    Args:
        source: A file, or the bytes of one.
        max_pixels: Images with more pixels are refused after their header has been read; None is `MAX_PIXELS`, for callers that have no
            such parameter themselves.
        name: What error messages call the image; its path if not given.

    Returns:
        (H, W, 3) RGB, writable and contiguous.

    Raises:
        ImageError: if the file is missing, of a format that is not read, truncated, broken or too large.
    """
    with _opened(source, name, max_pixels=max_pixels or MAX_PIXELS) as (image, orientation):
        width, height = image.size
        if width * height > (max_pixels or MAX_PIXELS):
            raise ImageError(too_large((height, width), max_pixels))
        return _to_array(image, orientation)


def as_array(image: object) -> NDArray[np.uint8]:
    """An array, checked, or a PIL image, decoded as a file would be: (H, W, 3) uint8 RGB.

    Raises:
        InputError: if it is neither, or an array of another shape or type, or a PIL image whose range of values is unknown.
        ImageError: if the file behind a PIL image cannot be decoded.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3) or image.size == 0:
            raise InputError(f"an array must be (H, W, 3) or (H, W) uint8 in RGB order, got {image.shape} {image.dtype}")
        return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image
    if not isinstance(image, Image.Image):
        raise InputError(f"expected a file, folder, glob, PIL image or array, got {type(image).__name__}")
    if image.mode in ("I", "F"):
        raise InputError(f"the range of a PIL image of mode {image.mode} is unknown; convert it to 8 bits first")
    try:
        image.load()
        return _to_array(image, _orientation(image))
    except (OSError, SyntaxError) as error:  # a file that PIL opened and now cannot decode
        raise ImageError(f"a PIL image cannot be decoded ({error}); replace its file") from None


def too_large(size_hw: tuple[int, int], max_pixels: int | None) -> str:
    """What to say of an image with more pixels than the limit; see `decode` about None."""
    remedy = "shrink the image" if max_pixels is None else "shrink the image or raise max_pixels"
    return f"{size_hw[1]} x {size_hw[0]} is more than the limit of {max_pixels or MAX_PIXELS:,} pixels; {remedy}"


def read_size(source: Path | bytes, *, name: str | None = None) -> tuple[int, int]:
    """(height, width) as displayed, from the header alone, however large; arguments and errors are otherwise those of ``decode``."""
    with _opened(source, name) as (image, orientation):
        width, height = image.size
        return (width, height) if orientation in _SWAPS_SIDES else (height, width)


@contextmanager
def _opened(source: Path | bytes, name: str | None, *, max_pixels: int | None = None) -> Iterator[tuple[ImageFile.ImageFile, int]]:
    """The image with its header read, and its EXIF orientation; any error inside the context becomes an ImageError.

    ``max_pixels`` is the size up to which the image may be loaded; None if it will not be.
    """
    shown = name or (printable(source) if isinstance(source, Path) else "image data")
    form = ""
    try:
        with _stream(source) as stream:
            form = image_format(stream.read(512))
            stream.seek(0)
            # Pillow's warnings about damaged metadata do not help the user. Filters of warnings are global, hence the lock.
            with _quiet, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = open_png(stream, max_pixels) if form == "PNG" else _OPENERS[form](stream)
                if min(image.size) < 1:
                    raise ImageError(f"the {form} header says {image.width} x {image.height} pixels; replace the file")
                if image.mode in ("I", "F"):
                    raise ImageError("has samples whose range is unknown; save it with 8 or 16 bits a sample")
                orientation = _orientation(image)
            yield image, orientation
    except ImageError as error:
        raise ImageError(f"{shown}: {error}") from None
    except Image.DecompressionBombError as error:  # WebP and GIF apply Pillow's own limit while their header is read
        raise ImageError(f"{shown}: is too large ({error}); shrink the image") from None
    except Exception as error:  # broken files make Pillow raise nearly anything: struct.error, KeyError, ZeroDivisionError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{shown}: broken {form} image ({reason}); replace the file or save it anew") from error


@contextmanager
def _stream(source: Path | bytes) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield io.BytesIO(source)
        return
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError("is a folder, not an image; name a file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise ImageError("is not a regular file; copy the image to a file")
        # Files that a kernel makes up, as in /proc, have no size, and to read them may fail or never end.
        stream: BinaryIO = source.open("rb") if status.st_size else io.BytesIO()
    except FileNotFoundError:
        raise ImageError("no such image file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"cannot be opened ({reason}); check the path and its permissions") from None
    with stream:
        if status.st_size:
            require_no_holes(stream.fileno())
        yield stream


def _orientation(image: Image.Image) -> int:
    try:
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block raises nearly anything, and the pixels are sound nevertheless
        return 1
    # Pillow turns a TIFF by itself, so its size is already the displayed one.
    return orientation if isinstance(orientation, int) and not isinstance(image, TiffImagePlugin.TiffImageFile) else 1


def _to_array(image: Image.Image, orientation: int) -> NDArray[np.uint8]:
    rgb = _to_rgb(image)
    return np.array(rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb)


def _to_rgb(image: Image.Image) -> Image.Image:
    image.load()
    if image.mode.startswith("I;16"):
        return _from_16_bit_grey(image)
    if image.mode in ("La", "RGBa"):
        return _over_white(image.convert("LA" if image.mode == "La" else "RGBA"))
    if image.has_transparency_data:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _from_16_bit_grey(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).astype(np.uint32)
    white = 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        white = 4095 if image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else white
        if image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # zero is white
            samples = white - samples
    grey = ((samples * 255 + white // 2) // white).astype(np.uint8)
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[samples == transparent] = 255
    return Image.fromarray(grey).convert("RGB")
