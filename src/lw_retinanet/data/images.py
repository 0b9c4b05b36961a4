"""The one image decoder: files, bytes and PIL images become (H, W, 3) uint8 RGB arrays.

The content of a file decides what it is, never its name. Grey, 1-bit and palette images become RGB; transparent pixels are laid over
white; 16-bit samples are scaled by 1/257; CMYK is converted without a colour profile, and embedded profiles are ignored. Of several
frames or pages the first one counts.
"""

import io
import os
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from lw_retinanet.errors import ImageError, InputError
from lw_retinanet.errors import printable as printable

MAX_PIXELS = 64_000_000

# Called directly, because Image.open() first applies a limit of pixels that is global to the process.
_OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,  # includes MPO, the stereo format of cameras
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_SIGNATURE, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_FOREIGN_SIGNATURES = (
    (b"%PDF", "a PDF document"),
    (b"%!PS", "an EPS or PostScript document"),
    (b"\xc5\xd0\xd3\xc6", "an EPS document"),
    (b"8BPS", "a Photoshop document (PSD)"),
    (b"SIMPLE  =", "a FITS image"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\0\0\x01\0", "an icon (ICO)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself"),
)
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
_PNG_CHUNKS_FOR_PIXELS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_MAX_PNG_CHUNKS = 100_000

_quiet = threading.Lock()


def _renew_lock() -> None:
    global _quiet
    _quiet = threading.Lock()


if hasattr(os, "register_at_fork"):  # a loader worker must not inherit a lock that a thread of its parent holds
    os.register_at_fork(after_in_child=_renew_lock)


def decode(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> NDArray[np.uint8]:
    """Read an image in the orientation in which it is displayed: EXIF is applied, and a broken EXIF block is ignored.

    Args:
        source: A file, or the bytes of one.
        max_pixels: Images with more pixels are refused after their header has been read.
        name: What error messages call the image; its path if not given.

    Returns:
        (H, W, 3) RGB, writable and contiguous.

    Raises:
        ImageError: if the file is missing, of a format that is not read, truncated, broken or too large.
    """
    with _opened(source, max_pixels, name, pixels=True) as (image, orientation):
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


def read_size(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> tuple[int, int]:
    """(height, width) as displayed, from the header alone; arguments and errors are those of ``decode``."""
    with _opened(source, max_pixels, name, pixels=False) as (image, orientation):
        width, height = image.size
        return (width, height) if orientation in _SWAPS_SIDES else (height, width)


@contextmanager
def _opened(source: Path | bytes, max_pixels: int, name: str | None, *, pixels: bool) -> Iterator[tuple[ImageFile.ImageFile, int]]:
    """The image with its header read, and its EXIF orientation; any error inside the context becomes an ImageError."""
    shown = name or (printable(source) if isinstance(source, Path) else "image data")
    with _stream(source, shown) as stream:
        form = _form(stream.read(512), shown)
        try:
            if form == "PNG":
                stream = _slim_png(stream, limit=8 * max_pixels + 2**20, pixels=pixels)
            stream.seek(0)
            # Pillow's warnings about damaged metadata do not help the user. Filters of warnings are global, hence the lock.
            with _quiet, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                image = _OPENERS[form](stream, "")
                width, height = image.size
                if width < 1 or height < 1:
                    raise ImageError(f"{shown}: the {form} header says {width} x {height} pixels; replace the file")
                if width * height > max_pixels:
                    raise ImageError(
                        f"{shown}: {width} x {height} is more than the limit of {max_pixels:,} pixels; shrink the image or raise max_pixels"
                    )
                if image.mode in ("I", "F"):
                    kind = "floating-point" if image.mode == "F" else "signed or 32-bit"
                    raise ImageError(f"{shown}: has {kind} samples, whose range is unknown; save it with 8 or 16 bits a sample")
                orientation = _orientation(image)
            yield image, orientation
        except ImageError:
            raise
        except Image.DecompressionBombError as error:  # WebP and GIF apply Pillow's own limit while their header is read
            raise ImageError(f"{shown}: is too large ({error}); shrink the image") from None
        except Exception as error:  # broken files make Pillow raise nearly anything: struct.error, KeyError, ZeroDivisionError, ...
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ImageError(f"{shown}: broken {form} image ({reason}); replace the file or save it anew") from error


@contextmanager
def _stream(source: Path | bytes, shown: str) -> Iterator[BinaryIO]:
    if not isinstance(source, Path):
        yield io.BytesIO(source)
        return
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ImageError(f"{shown}: is a folder, not an image; name a file in it")
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for ever
            raise ImageError(f"{shown}: is not a regular file; copy the image to a file")
        stream = source.open("rb")
    except FileNotFoundError:
        raise ImageError(f"{shown}: no such image file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ImageError(f"{shown}: cannot be opened ({reason}); check the path and its permissions") from None
    with stream:
        yield stream


def _form(head: bytes, shown: str) -> str:
    """The format of the image whose first bytes are ``head``; other formats are refused by their name."""
    for signature, form in _SIGNATURES:
        if head.startswith(signature):
            return form
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    raise ImageError(f"{shown}: {_foreign_form(head)}; only {', '.join(_OPENERS)} are read, so convert it to one of these")


def _foreign_form(head: bytes) -> str:
    if not head:
        return "the file is empty"
    if not head.strip(b"\0"):
        return "holds zero bytes only, not an image"
    for signature, form in _FOREIGN_SIGNATURES:
        if head.startswith(signature):
            return f"is {form}"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in (b"avif", b"avis"):
            return "is an AVIF image"
        return "is a HEIC image" if brand in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1") else "is an MP4 or MOV video"
    if head[128:132] == b"DICM":
        return "is a DICOM image"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "is a web page (a failed download?)"
    if b"<svg" in text:
        return "is an SVG drawing"
    return "is not an image of a known format"


def _slim_png(stream: BinaryIO, limit: int, *, pixels: bool) -> BinaryIO:
    """The same PNG without texts, profiles and animation, and with EXIF moved in front of the pixels.

    Oversized text does no harm then, and the size can be read without decoding. Without ``pixels`` the pixel data are not read.
    """
    head, body, exif = io.BytesIO(), io.BytesIO(), b""
    head.write(_PNG_SIGNATURE)
    stream.seek(len(_PNG_SIGNATURE))
    kept = 0
    for _ in range(_MAX_PNG_CHUNKS):
        prefix = stream.read(8)
        if len(prefix) < 8:
            break  # truncated; Pillow will say so when it decodes
        length, kind = struct.unpack(">I4s", prefix)
        if kind == b"eXIf" and length < 2**20:
            exif = stream.read(length)
            stream.seek(4, io.SEEK_CUR)
        elif kind in _PNG_CHUNKS_FOR_PIXELS and (pixels or kind != b"IDAT"):
            kept += length
            if kept > limit:
                raise ValueError(f"more than {limit:,} bytes of pixel data")
            part = body if kind in (b"IDAT", b"IEND") else head
            part.write(prefix)
            part.write(stream.read(length + 4))
        else:
            stream.seek(length + 4, io.SEEK_CUR)
        if kind == b"IEND":
            break
    else:
        raise ValueError(f"more than {_MAX_PNG_CHUNKS:,} chunks")
    if exif:
        head.write(_png_chunk(b"eXIf", exif))
    if not pixels:
        head.write(_png_chunk(b"IDAT", b""))
    head.write(body.getbuffer())
    return head


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
    return _over_white(image) if image.has_transparency_data else image.convert("RGB")


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
