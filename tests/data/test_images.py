import io
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet.data.images import as_array, decode, read_size
from lw_retinanet.errors import ImageError

Pixels = NDArray[np.uint8]


def gradient(height: int = 24, width: int = 40) -> Pixels:
    """Smooth, so that JPEG changes it little, and without any symmetry, so that no turn of it equals another."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack((4 * x + 20, 6 * y + 30, 250 - 2 * x - 3 * y), axis=2).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: bytes, late: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + late + chunk(b"IEND", b"")


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def pre_rotated(pixels: Pixels, orientation: int) -> Pixels:
    """What the EXIF standard says orientation 1 to 8 means, in terms of rows and columns."""
    turned = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }
    return turned[orientation]


@pytest.mark.parametrize(
    ("form", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WebP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 4),
        ("JPEG", {"quality": 95, "progressive": True}, 12),
    ],
)
def test_every_form_by_content_whatever_the_name(tmp_path: Path, form: str, options: dict[str, Any], tolerance: int) -> None:
    path = tmp_path / "wrong.txt"
    path.write_bytes(encoded(Image.fromarray(gradient()), form, **options))
    pixels = decode(path)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (24, 40, 3)
    assert pixels.flags.writeable
    assert pixels.flags.c_contiguous
    assert np.abs(pixels.astype(int) - gradient()).max() <= tolerance
    assert read_size(path) == (24, 40)
    np.testing.assert_array_equal(decode(path.read_bytes()), pixels)


@settings(deadline=None, max_examples=60)
@given(
    orientation=st.integers(1, 8),
    form=st.sampled_from(["PNG", "TIFF", "WebP", "JPEG", "MPO"]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_exif_orientation_equals_the_pre_rotated_image(orientation: int, form: str, height: int, width: int) -> None:
    image = Image.fromarray(gradient(height, width))
    options: dict[str, Any] = {"lossless": True} if form == "WebP" else {"quality": 95, "subsampling": 0} if form in ("JPEG", "MPO") else {}
    upright = decode(encoded(image, form, **options))
    if form == "MPO":
        options |= {"save_all": True, "append_images": [Image.new("RGB", image.size)]}
    turned = encoded(image, form, exif=exif(orientation), **options)
    np.testing.assert_array_equal(decode(turned), pre_rotated(upright, orientation))
    assert read_size(turned) == pre_rotated(upright, orientation).shape[:2]


def test_png_exif_behind_the_pixels_counts_for_pixels_and_size() -> None:
    rows = b"\0\x10\x20\x30"  # one row of three grey pixels
    data = png(3, 1, 8, 0, rows, late=chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")))
    assert decode(data)[:, 0, 0].tolist() == [0x10, 0x20, 0x30]
    assert read_size(data) == (3, 1)


@pytest.mark.parametrize("block", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", exif(0), exif(9), exif(6)[:-9]])
def test_broken_exif_is_ignored(block: bytes) -> None:
    for data in (encoded(Image.fromarray(gradient()), "JPEG", exif=block), encoded(Image.fromarray(gradient()), "PNG", exif=block)):
        assert decode(data).shape == (24, 40, 3)
        assert read_size(data) == (24, 40)


def test_grey_1_bit_and_palette() -> None:
    grey = gradient()[..., 0]
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2))

    bits = grey > 100
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(bits), "PNG")), np.repeat(bits[..., None], 3, axis=2) * np.uint8(255))

    palette = Image.fromarray(gradient()).quantize(16)
    np.testing.assert_array_equal(decode(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    np.testing.assert_array_equal(decode(encoded(palette, "GIF")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_alpha_is_laid_over_white(mode: str, form: str) -> None:
    # alpha 0: white; 255: the colour; 51 = a fifth: 0.2 * 100 + 0.8 * 255 = 224
    pixels = [(100, 0), (100, 255), (100, 51)]
    image = Image.new(mode, (3, 1))
    for x, (value, alpha) in enumerate(pixels):
        image.putpixel((x, 0), (value, alpha) if mode == "LA" else (value, value, value, alpha))
    assert decode(encoded(image, form)).tolist() == [[[255] * 3, [100] * 3, [224] * 3]]


def test_transparent_palette_entries_and_colours_are_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 100, 100, 100])
    image.putdata([0, 1, 2])
    as_bytes = encoded(image, "PNG", transparency=bytes([0, 255, 51]))
    assert decode(as_bytes).tolist() == [[[255, 255, 255], [40, 50, 60], [224, 224, 224]]]
    assert decode(encoded(image, "GIF", transparency=1)).tolist() == [[[10, 20, 30], [255, 255, 255], [100, 100, 100]]]
    one_colour = encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), "PNG", transparency=(4, 5, 6))
    assert decode(one_colour).tolist() == [[[1, 2, 3], [255, 255, 255]]]


def test_16_bit_samples_are_scaled_not_clipped() -> None:
    # 32768 / 257 = 127.504; 300 / 257 = 1.17; 65535 / 257 = 255
    samples = np.array([[0, 300, 32768, 65535]], np.uint16)
    grey = [[0] * 3, [1] * 3, [128] * 3, [255] * 3]
    assert decode(encoded(Image.fromarray(samples), "PNG")).tolist() == [grey]
    assert decode(encoded(Image.fromarray(samples), "TIFF")).tolist() == [grey]
    big_endian = png(4, 1, 16, 0, b"\0" + samples.astype(">u2").tobytes(), chunk(b"tRNS", struct.pack(">H", 300)))
    assert decode(big_endian).tolist() == [[[0] * 3, [255] * 3, [128] * 3, [255] * 3]]  # 300 is the transparent one
    rgb = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 32768, 300, 65535))
    np.testing.assert_allclose(decode(rgb)[0, 0], (127.5, 1.2, 255), atol=1.2)  # Pillow keeps the upper byte: 1 below at most


def test_16_bit_tiff_where_white_is_zero_is_inverted() -> None:
    samples = np.array([[0, 32768, 65535]], np.uint16)
    data = encoded(Image.fromarray(samples), "TIFF", tiffinfo={262: 0})
    assert decode(data)[0, :, 0].tolist() == [255, 127, 0]


def test_samples_of_unknown_range_are_refused() -> None:
    for samples in (np.zeros((4, 4), np.float32), np.zeros((4, 4), np.int32)):
        data = encoded(Image.fromarray(samples), "TIFF")
        for read in (decode, read_size):
            with pytest.raises(ImageError, match="8 or 16 bits"):
                read(data)


def adobe_ycck(ycc: tuple[int, int, int], key: int) -> bytes:
    """A JPEG of one colour with these stored components and the Adobe marker that says YCCK, as Photoshop writes it."""
    data = bytearray(encoded(Image.merge("CMYK", [Image.new("L", (16, 16), 255 - value) for value in (*ycc, key)]), "JPEG", quality=100))
    marker = data.index(b"Adobe")
    data[marker + 11] = 2  # the transform byte: YCCK
    return bytes(data)


def test_cmyk_and_adobe_ycck_are_never_inverted() -> None:
    white = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=95)
    assert decode(white).min() > 250
    red = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))[8, 8]
    assert red[0] > 250
    assert red[1:].max() < 8
    # Photoshop stores 255 - ink, and YCC is of 255 minus that: a white card has Y = 0, neutral chroma, K = 255.
    assert decode(adobe_ycck((0, 128, 128), 255)).min() > 250
    assert decode(adobe_ycck((0, 128, 128), 0)).max() < 5  # full black ink
    np.testing.assert_allclose(decode(encoded(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF"))[0, 0], (0, 255, 255))


def test_only_the_first_frame_counts() -> None:
    first, second = Image.fromarray(gradient()), Image.new("RGB", (40, 24), "red")
    for form, options in (("TIFF", {}), ("WebP", {"lossless": True}), ("PNG", {}), ("MPO", {"quality": 95, "subsampling": 0})):
        data = encoded(first, form, save_all=True, append_images=[second], **options)
        assert np.abs(decode(data).astype(int) - gradient()).max() <= 4, form
    animated = encoded(first.quantize(8), "GIF", save_all=True, append_images=[second.quantize(8)])
    assert np.abs(decode(animated).astype(int) - gradient()).mean() < 25


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "EPS"),
        (b"8BPS\0\x01", "PSD"),
        (b"SIMPLE  =                    T", "FITS"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg">', "SVG"),
        (b"plain text", "not an image"),
    ],
)
def test_foreign_forms_are_refused_by_name(tmp_path: Path, head: bytes, what: str) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(head)
    for read in (decode, read_size):
        with pytest.raises(ImageError, match=what) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "convert it" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"", "the file is empty; replace it"),
        (b"\0" * 600, "zero bytes only, not an image; replace the file"),
        (b"  <!DOCTYPE html><html>", r"web page .*; download the image again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS .*; fetch the images with `git lfs pull`"),
    ],
)
def test_what_is_no_image_at_all_has_its_own_remedy(head: bytes, what: str) -> None:
    for read in (decode, read_size):
        with pytest.raises(ImageError, match=what):
            read(head)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9, 0.97])
def test_truncated_images_are_errors(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(ImageError):
        decode(data[: int(len(data) * share)])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WebP"])
def test_flipped_bits_and_cuts_end_in_an_array_or_an_image_error(form: str) -> None:
    rng = np.random.default_rng(1)
    options: dict[str, Any] = {"exif": exif(6)} if form in ("PNG", "JPEG", "WebP", "TIFF") else {}
    whole = encoded(Image.fromarray(gradient()), form, **options)
    for _ in range(200):
        data = bytearray(whole[: int(rng.integers(1, len(whole) + 1))] if rng.random() < 0.3 else whole)
        for _ in range(int(rng.integers(1, 9))):
            place = int(rng.integers(min(len(data), 400 if rng.random() < 0.7 else len(data))))
            data[place] ^= 1 << int(rng.integers(8))
        for read in (decode, read_size):
            try:
                result = read(bytes(data))
            except ImageError as error:
                assert "\n" not in str(error)  # noqa: PT017 - success is as good as this error
            else:
                assert isinstance(result, tuple) or (result.ndim == 3 and result.shape[2] == 3)


def huge_jpeg() -> bytes:
    data = bytearray(encoded(Image.new("L", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 65_500, 65_500)
    return bytes(data)


def huge_bmp() -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 50_000, 50_000, 1, 24, 0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("bomb", [lambda: png(50_000, 50_000, 1, 0, b"\0" * 6251), huge_jpeg, huge_bmp])
def test_bombs_are_refused_from_the_header(bomb: Callable[[], bytes]) -> None:
    for read in (decode, read_size):
        with pytest.raises(ImageError, match=r"is cut short .*; replace the file"):
            read(bomb())


def test_the_limit_is_the_callers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(gradient()), "PNG")
    assert decode(data, max_pixels=24 * 40).shape == (24, 40, 3)
    with pytest.raises(ImageError, match="40 x 24"):
        decode(data, max_pixels=24 * 40 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow would now warn or refuse
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert decode(data).shape == (24, 40, 3)
    assert not caught


def test_oversized_text_profiles_and_animation_data_are_harmless() -> None:
    bomb = zlib.compress(b"x" * 80_000_000)
    extra = (
        chunk(b"zTXt", b"Comment\0\0" + bomb),
        chunk(b"iCCP", b"icc\0\0" + bomb),
        chunk(b"acTL", struct.pack(">II", 0, 0)),
    )
    data = png(2, 1, 8, 0, b"\0\x07\x09", *extra)
    assert decode(data)[0, :, 0].tolist() == [7, 9]
    assert read_size(data) == (1, 2)
    with pytest.raises(ImageError, match="chunks"):
        read_size(png(2, 1, 8, 0, b"\0\x07\x09", chunk(b"tEXt", b"") * 100_001))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10_000), (10_000, 1)])
def test_extreme_shapes(height: int, width: int) -> None:
    data = encoded(Image.new("RGB", (width, height), (1, 2, 3)), "PNG")
    assert decode(data).shape == (height, width, 3)


def test_what_is_no_readable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg: no such image file"):
        decode(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        decode(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        decode(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    with pytest.raises(ImageError, match=r"loop\.jpg: cannot be opened"):
        decode(tmp_path / "loop.jpg")
    with pytest.raises(ImageError, match="cannot be opened"):
        decode(Path("with\0nul.jpg"))
    with pytest.raises(ImageError, match=r"^upload 3: the file is empty"):
        decode(b"", name="upload 3")
    broken = tmp_path / "two\nlines.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ImageError) as caught:
        decode(broken)
    assert "\n" not in str(caught.value)


def test_threads_leave_the_warning_filters_as_they_were() -> None:
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=exif(6))
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_size(data) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


def test_pil_images_are_decoded_as_files_are() -> None:
    pixels = Image.fromarray(gradient())
    grey16 = Image.fromarray((gradient()[..., 0].astype(np.uint16) * 257 + 100).astype(np.uint16))
    transparent = pixels.copy()
    transparent.putalpha(Image.fromarray(gradient()[..., 1]))
    for data in (
        encoded(pixels, "PNG", exif=exif(6)),
        encoded(pixels, "JPEG", exif=exif(3)),
        encoded(pixels, "TIFF", exif=exif(8)),
        encoded(pixels.quantize(16), "PNG", transparency=3),
        encoded(transparent, "WebP", lossless=True),
        encoded(transparent.convert("LA"), "PNG"),
        encoded(grey16, "PNG"),
        encoded(grey16, "TIFF"),
        encoded(pixels.convert("CMYK"), "JPEG"),
    ):
        np.testing.assert_array_equal(as_array(Image.open(io.BytesIO(data))), decode(data))
