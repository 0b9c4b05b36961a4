"""Images that are cut short, promise too much, or are made to be slow: each is refused in a line, at once, in little memory."""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tests.peak_memory import PEAK_BYTES

from lw_retinanet.data.images import decode, read_size
from lw_retinanet.errors import ImageError

NOISE: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)
SMOOTH: NDArray[np.uint8] = np.stack([np.add.outer(np.arange(72), np.arange(96))] * 3, axis=2).astype(np.uint8)


def encoded(pixels: NDArray[Any], form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **options)
    return stream.getvalue()


def png(width: int, height: int, rows: bytes, *, interlace: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(width: int, height: int, strips: list[bytes], *, rows: int, tags: dict[int, list[int]] | None = None) -> bytes:
    """A TIFF of 8-bit grey samples, or of what ``tags`` say, with the places of its strips behind the tags."""
    values = {256: [width], 257: [height], 258: [8], 259: [1], 262: [1], 277: [1], 278: [rows], 279: [len(strip) for strip in strips]}
    values |= tags or {}
    place = 8 + 2 + 12 * (len(values) + 1) + 4
    extra = sum(4 * len(numbers) for numbers in values.values() if len(numbers) > 1) + 4 * len(strips) * (len(strips) > 1)
    values[273] = [place + extra + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries, behind = b"", b""
    for tag, numbers in sorted(values.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + (packed if len(numbers) == 1 else struct.pack("<I", place + len(behind)))
        behind += packed if len(numbers) > 1 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(values)) + entries + struct.pack("<I", 0) + behind + b"".join(strips)


def refused(data: bytes | Path, read: Callable[[bytes | Path], Any] = decode) -> str:
    with pytest.raises(ImageError) as caught:
        read(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}, {"subsampling": 2, "progressive": True}])
@pytest.mark.parametrize("pixels", [NOISE, SMOOTH, NOISE[..., 0]], ids=["noise", "smooth", "grey"])
def test_a_jpeg_that_ends_too_early_is_refused_with_and_without_an_end_mark(options: dict[str, Any], pixels: NDArray[np.uint8]) -> None:
    whole = encoded(pixels, "JPEG", quality=92, **options)
    np.testing.assert_array_equal(decode(whole), np.asarray(Image.open(io.BytesIO(whole)).convert("RGB")))
    np.testing.assert_array_equal(decode(whole[:-2]), decode(whole))  # only the end mark is missing, but no pixel
    start = whole.rindex(b"\xff\xda")  # the last scan, in which a cut is the hardest to notice
    for share in (0.1, 0.5, 0.7, 0.9):
        end = start + 14 + round(share * (len(whole) - start - 14))
        for mark in (b"", b"\xff\xd9", b"\xff\xd9" + b"\0" * 100):
            assert "is cut short" in refused(whole[:end] + mark), share


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    whole = encoded(NOISE, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xc4")  # the Huffman table of the last scan
    assert "scans are missing" in refused(whole[:last] + b"\xff\xd9")


def test_a_jpeg_whose_pixels_are_interrupted_is_refused() -> None:
    whole = encoded(NOISE, "JPEG")
    middle = (whole.index(b"\xff\xda") + len(whole)) // 2
    assert "pixels are missing" in refused(whole[:middle] + b"\xff\xe5\0\2" + whole[middle:])  # libjpeg would fill the rest with grey


def test_scans_without_end_are_refused_before_they_are_decoded() -> None:
    whole = encoded(np.zeros((2000, 2000), np.uint8), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    started = time.monotonic()
    assert "more than 100 scans" in refused(whole[:last] + whole[last:-2] * 5_000 + b"\xff\xd9")
    assert time.monotonic() - started < 10


def test_parts_of_a_jpeg_that_do_not_matter_are_left_out() -> None:
    whole = encoded(SMOOTH, "JPEG")
    segments = b"\xff\xe1\0\x09Exif\0\0\0" + b"\xff\xe5\0\x0cxxxxxxxxxx" * 5_000 + b"\xff\xe1\0\x09Exif\0\0\0" * 5_000
    np.testing.assert_array_equal(decode(whole[:2] + segments + whole[2:]), decode(whole))
    assert "no pixels follow" in refused(whole[:2] + b"\xff" * 1_000_000 + whole[2:])


@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_with_missing_rows_is_refused_and_black_ones_are_not(interlace: int) -> None:
    # Adam7 of 8 x 8 pixels: passes of 1x1, 1x1, 2x1, 2x2, 4x2, 4x4 and 8x4 pixels, each row with a filter byte: 64 + 15 bytes.
    num_bytes = 64 + (15 if interlace else 8)
    assert decode(png(8, 8, b"\0" * num_bytes, interlace=interlace)).max() == 0
    assert "rows are missing" in refused(png(8, 8, b"\0" * (num_bytes - 9), interlace=interlace))


def test_a_png_without_its_last_row_is_refused() -> None:
    assert "rows are missing" in refused(png(8, 8, (b"\0" + b"\7" * 8) * 7))


def test_a_tiff_with_missing_strips_is_refused() -> None:
    strips = [bytes([shade]) * 40 for shade in (10, 20, 30)]
    assert decode(tiff(10, 12, strips, rows=4))[::4, 0, 0].tolist() == [10, 20, 30]
    assert decode(tiff(10, 9, [*strips[:2], strips[2][:10]], rows=4)).shape == (9, 10, 3)  # the last strip is shorter
    assert "2 of 3 parts of the image are there" in refused(tiff(10, 12, strips[:2], rows=4))
    assert "1 of 3 parts of the image are missing" in refused(tiff(10, 12, [*strips[:2], strips[2][:20]], rows=4))
    packed = [zlib.compress(strip) for strip in strips]
    assert decode(tiff(10, 12, packed, rows=4, tags={259: [8]}))[::4, 0, 0].tolist() == [10, 20, 30]
    with pytest.raises(ImageError):
        decode(tiff(10, 12, [*packed[:2], packed[2][:6]], rows=4, tags={259: [8]}))


RGB = {262: [2], 277: [3], 258: [8, 8, 8]}
SAMPLES = {
    "rgb": (RGB, np.uint8, "right"),
    "rgb, planes apart": (RGB | {284: [2]}, np.uint8, "right"),
    "16 bits": (RGB | {258: [16] * 3}, np.uint16, "right"),
    "16 bits, planes apart": (
        RGB | {258: [16] * 3, 284: [2]},
        np.uint16,
        "one after another; save it with the bands of each pixel together",
    ),
    "float": (RGB | {258: [32] * 3, 339: [3] * 3}, np.float32, "floating-point samples, whose range is unknown; save it with 8 or 16 bits"),
    "signed": (RGB | {258: [16] * 3, 339: [2] * 3}, np.int16, "signed samples"),
    "five bands": (
        RGB | {277: [5], 258: [16] * 5, 338: [0, 0]},
        np.uint16,
        "5 bands of 16 bits, which is not read; save three of them as RGB",
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_tiff_samples_are_right_or_refused_in_true_words(case: str) -> None:
    tags, kind, expected = SAMPLES[case]
    bands = tags[277][0]
    pixels = np.random.default_rng(1).integers(0, 256, (6, 10, bands))
    stored = (pixels * 257 if kind == np.uint16 else pixels).astype(kind)
    planes = [np.ascontiguousarray(stored[..., band]).tobytes() for band in range(bands)] if 284 in tags else [stored.tobytes()]
    data = tiff(10, 6, planes, rows=6, tags=tags)
    if expected == "right":
        np.testing.assert_array_equal(decode(data), pixels)
    else:
        assert expected in refused(data)


def test_a_tiled_tiff_is_right() -> None:
    pixels = np.arange(20 * 40, dtype=np.uint8).reshape(20, 40)
    padded = np.pad(pixels, ((0, 12), (0, 8)))
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    data = tiff(40, 20, tiles, rows=20, tags={322: [16], 323: [16]})
    tiled = data.replace(struct.pack("<H", 273) + b"\4\0", struct.pack("<H", 324) + b"\4\0").replace(
        struct.pack("<H", 279) + b"\4\0", struct.pack("<H", 325) + b"\4\0"
    )
    np.testing.assert_array_equal(decode(tiled)[..., 0], pixels)
    assert "parts of the image are missing" in refused(tiled[:-50])


def jpeg_of_size(width: int, height: int) -> bytes:
    data = encoded(SMOOTH, "JPEG")
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


@pytest.mark.parametrize(
    "data",
    [
        jpeg_of_size(8000, 8000),
        png(8000, 8000, b"\0" * 100_000),
        tiff(8000, 8000, [b"\0" * 1000], rows=8000),
        b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 8000, 8000, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 1000,
        b"GIF89a"
        + struct.pack("<HHBBB", 8000, 7900, 0x80, 0, 0)
        + b"\0" * 6
        + b","
        + struct.pack("<HHHHB", 0, 0, 8000, 7900, 0)
        + b"\2\1\0\0;",
    ],
    ids=["JPEG", "PNG", "TIFF", "BMP", "GIF"],
)
def test_a_header_that_promises_more_than_the_file_holds_is_refused(data: bytes) -> None:
    for read in (decode, read_size):
        assert re.search(r"is cut short \(.*\); replace the file$", refused(data, read))


@pytest.mark.skipif(sys.platform != "linux", reason="needs to know where a file has holes, and reads /proc")
@pytest.mark.parametrize("head", [tiff(8000, 8000, [], rows=8000, tags={279: [64_000_000]}), encoded(SMOOTH, "JPEG")[:900], b""])
def test_a_file_that_was_never_written_to_its_end_is_refused_in_little_memory(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "image.jpg"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(10 * 2**30)
    code = (
        "import sys; from pathlib import Path; from lw_retinanet.data.images import decode\n"
        f"before = {PEAK_BYTES}\n"
        "try: decode(Path(sys.argv[1]))\n"
        "except Exception as error: print(error)\n"
        f"print({PEAK_BYTES} - before)"
    )
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True)
    message, grown = ran.stdout.splitlines()
    assert "of its 10,737,418,240 bytes were ever written); replace the file" in message
    assert int(grown) < 20_000 * 1024


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc")
def test_files_of_the_kernel_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "image.jpg").symlink_to("/proc/self/mem")
    assert "the file is empty; replace it" in refused(tmp_path / "image.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert "not a regular file; copy the image to a file" in refused(tmp_path / "device.jpg")
