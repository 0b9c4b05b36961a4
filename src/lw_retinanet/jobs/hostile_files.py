"""Damaged and hostile files, made on the spot: images, annotation files, model files. The self-check shows what becomes of them."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32
Table = dict[str, Any]


def hostile_images() -> dict[str, bytes]:
    """Content that is no whole image, or one that would fill the memory, by a name for it."""
    jpeg, png = _encoded("JPEG"), _encoded("PNG")
    return {
        "nothing": b"",
        "text": b"not an image\n" * 20,
        "random bytes": np.random.default_rng(0).bytes(5000),
        "a JPEG's half": jpeg[: len(jpeg) // 2],
        "a JPEG without its last tenth": jpeg[: len(jpeg) * 9 // 10],
        "a PNG's half": png[: len(png) // 2],
        "a PNG with a wrong checksum": _flipped(png, 40),
        "a PNG of 50,000 x 50,000": _png(50_000, 50_000, b""),
        "a PNG of no pixels": _png(0, 5, b""),
        "a PNG with too few rows": _png(WIDTH, HEIGHT, zlib.compress(b"\0" * (3 * WIDTH + 1) * (HEIGHT // 2))),
        "a header alone": jpeg[:3],
        "a PDF": b"%PDF-1.7\n" + b"x" * 500,
    }


def odd_images() -> dict[str, bytes]:
    """Images of (32, 48) white pixels in forms that careless readers get wrong, by a name for it."""
    white = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    turned = Image.Exif()
    turned[274] = 6  # the stored image lies on its side
    grey16 = Image.fromarray(np.full((HEIGHT, WIDTH), 65535, np.uint16))
    clear = Image.new("RGBA", (WIDTH, HEIGHT), (0, 0, 0, 0))
    images: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "grey of 16 bits": (grey16, "PNG", {}),
        "CMYK": (white.convert("CMYK"), "JPEG", {}),
        "a palette": (white.convert("P"), "PNG", {}),
        "one bit": (white.convert("1"), "PNG", {}),
        "transparent": (clear, "PNG", {}),
        "turned by EXIF": (white.rotate(90, expand=True), "JPEG", {"exif": turned}),
    }
    found = {}
    for name, (image, form, options) in images.items():
        stream = io.BytesIO()
        image.save(stream, form, **options)
        found[name] = stream.getvalue()
    return found


def hostile_annotations(good: Table) -> dict[str, bytes]:
    """COCO files that cannot be trained on, made from a good one, by a name for it."""

    def changed(edit: Callable[[Table], object]) -> bytes:
        table = json.loads(json.dumps(good))
        edit(table)
        return json.dumps(table).encode()

    text = json.dumps(good).encode()
    return {
        "nothing": b"",
        "a half": text[: len(text) // 2],
        "binary": bytes(range(256)) * 4,
        "deep nesting": b"[" * 100_000,
        "no images": changed(lambda table: table.update(images=[])),
        "no boxes": changed(lambda table: table.update(annotations=[])),
        "no categories": changed(lambda table: table.update(categories=[])),
        "images that are missing": changed(lambda table: [image.update(file_name="gone.png") for image in table["images"]]),
        "sizes that are wrong": changed(lambda table: [image.update(width=image["width"] + 7) for image in table["images"]]),
        "an image outside the folder": changed(lambda table: table["images"][0].update(file_name="../../../../etc/passwd")),
        "a number in place of the images": changed(lambda table: table.update(images=5)),
        "a box that is not a number": changed(lambda table: table["annotations"][0].update(bbox=[float("nan"), 1, 5, 5])),
        "crowds only": changed(lambda table: [box.update(iscrowd=1) for box in table["annotations"]]),
    }


def odd_annotations(good: Table) -> dict[str, bytes]:
    """COCO files with single faults, which are counted, told, and trained around, by a name for it."""

    def changed(**values: Any) -> bytes:
        table = json.loads(json.dumps(good))
        table["annotations"][0].update(values)
        return json.dumps(table).encode()

    return {
        "a box of no width": changed(bbox=[1, 1, 0, 5]),
        "a box outside its image": changed(bbox=[10_000, 10_000, 5, 5]),
        "an id that is 0": changed(id=0),
        "a crowd": changed(iscrowd=1),
    }


def hostile_models(good: bytes) -> dict[str, bytes]:
    """Model files that must not be loaded, made from a good one, by a name for it."""
    size = int.from_bytes(good[:8], "little")
    header, body = json.loads(good[8 : 8 + size]), good[8 + size :]
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    first = next(name for name, entry in tensors.items() if entry["dtype"] == "F32")
    begin = tensors[first]["data_offsets"][0]

    def packed(new: Table, data: bytes = body) -> bytes:
        text = json.dumps(new).encode()
        return len(text).to_bytes(8, "little") + text + data

    return {
        "nothing": b"",
        "text": b"weights" * 30,
        "a half": good[: len(good) // 2],
        "the last byte missing": good[:-1],
        "a header of 2^63 bytes": (2**63).to_bytes(8, "little") + good[8:],
        "a header that is no JSON": good[:8] + b"\xff" * size + body,
        "no record": packed(tensors),
        "a record that is no JSON": packed({**tensors, "__metadata__": dict.fromkeys(header["__metadata__"], "{")}),
        "a tensor missing": packed({name: entry for name, entry in header.items() if name != first}),
        "a tensor of another name": packed({f"{name}x" if name == first else name: entry for name, entry in header.items()}),
        "a weight that is not a number": packed(header, body[:begin] + struct.pack("<f", float("nan")) + body[begin + 4 :]),
        "a pickle": b"\x80\x02cos\nsystem\n(S'true'\ntR.",
    }


def _encoded(form: str) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def _flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )
