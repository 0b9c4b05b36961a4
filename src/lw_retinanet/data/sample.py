"""The made-up data set: coloured shapes on textured backgrounds, as COCO files, with equal files for equal seeds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lw_retinanet.drawing import save_image
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.files import write_text

# The ids have gaps and do not start at 0, as in most real data sets.
CATEGORIES = ((1, "disc"), (4, "checker"), (8, "star"), (9, "ring"))

_MARK = "Made-up shapes of lw_retinanet"
_OVERSAMPLING = 4
_MOST_LEAN = 0.25  # radians; checkers are turned by no more
_CHECKS = 4  # fields in a row of a checker
_MIN_VISIBLE = 0.7  # share of every object that other objects and the border must leave visible
_MIN_CONTRAST = 110.0  # Euclidean RGB distance of an object from the background and the objects that it touches


@dataclass(frozen=True, kw_only=True)
class Scene:
    """An image and what is in it.

    Args:
        image: (H, W, 3) uint8 RGB.
        owner: (H, W) int32, the number of the object seen at each pixel, -1 for the background.
        labels: The index into ``CATEGORIES`` of each object.
    """

    image: NDArray[np.uint8]
    owner: NDArray[np.int32]
    labels: tuple[int, ...]

    def box_xywh(self, number: int) -> list[int]:
        """x, y, width and height of the visible pixels of object ``number``."""
        rows, columns = np.nonzero(self.owner == number)
        x, y = int(columns.min()), int(rows.min())
        return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]

    def area(self, number: int) -> int:
        """How many pixels of object ``number`` are visible."""
        return int((self.owner == number).sum())


def make_sample(out: Path, *, num_train: int = 600, num_val: int = 150, size: int = 128, seed: int = 0) -> Path:
    """Write ``train.json``, ``val.json`` and ``images/`` into ``out``, and return ``out``.

    Args:
        out: A new or empty folder, or an earlier sample, which is replaced.
        num_train: Number of training images.
        num_val: Number of validation images.
        size: Width of the images in pixels. Most are square, every fifth is 4 to 3.
        seed: Seed for everything. The bytes are equal for the same versions of Pillow and NumPy; image i is the same in a sample of any
            length.

    Raises:
        InputError: if ``out`` holds other files or cannot be written.
    """
    if num_train < 1 or num_val < 1:
        raise ConfigError(f"num_train and num_val must be at least 1, got {num_train} and {num_val}")
    if size < 64:
        raise ConfigError(f"size must be at least 64, got {size}: the shapes need room")
    if seed < 0:
        raise ConfigError(f"seed must not be negative, got {seed}")
    try:
        if out.exists() and any(out.iterdir()) and not _is_ours(out):
            raise InputError(f"{out}: holds other files; name a new or empty folder for the made-up data set")
        (out / "images").mkdir(parents=True, exist_ok=True)
        for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
            table = _write_images(out / "images", split, count, size, (seed, number))
            write_text(out / f"{split}.json", json.dumps(table, separators=(",", ":")))
    except OSError as error:
        raise InputError(f"{out}: cannot write the made-up data set ({error.strerror or error}); name another folder") from None
    return out


def draw_scene(rng: Generator, size_hw: tuple[int, int]) -> Scene:
    """Draw an image of 0 to 5 shapes. Their size scales with the width: an image of 128 pixels has shapes of 6 to 70."""
    height, width = size_hw
    base, canvas = _background(rng, height, width)
    owner = np.full((height, width), -1, np.int32)
    labels: list[int] = []
    colours: list[NDArray[np.float64]] = [base]
    full_areas: list[int] = []
    num_objects = 0 if rng.random() < 0.05 else int(rng.integers(1, 6))
    for _ in range(num_objects):
        for _ in range(8):  # tries to find room
            label = int(rng.integers(len(CATEGORIES)))
            cover, left, top = _place(rng, label, height, width)
            seen, rows, columns = _clip(cover, left, top, height, width)
            mask = seen >= 0.5
            below = owner[rows, columns][mask]
            if not _leaves_all_visible(owner, below, mask, cover, full_areas):
                continue
            colour = _colour(rng, [colours[number + 1] for number in {-1, *below.tolist()}])
            patch = canvas[rows, columns]
            paint = _shaded(rng, colour, mask.shape)
            if CATEGORIES[label][1] == "checker":
                paint = _checked(paint, cover.shape[0])
            patch += seen[..., None] * (paint - patch)
            owner[rows, columns][mask] = len(labels)
            labels.append(label)
            colours.append(colour)
            full_areas.append(int((cover >= 0.5).sum()))
            break
    canvas += rng.normal(0.0, 3.0, (height, width, 1)).astype(np.float32)
    return Scene(image=np.clip(np.rint(canvas), 0, 255).astype(np.uint8), owner=owner, labels=tuple(labels))


def _write_images(folder: Path, split: str, count: int, size: int, stream: tuple[int, int]) -> dict[str, object]:
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index in range(count):
        rng = np.random.default_rng((*stream, index))
        height = size * 3 // 4 if index % 5 == 4 else size
        scene = draw_scene(rng, (height, size))
        name, image_id = f"{split}_{index + 1:04d}.jpg", 10 * (index + 1)
        save_image(scene.image, folder / name)
        images.append({"id": image_id, "file_name": name, "width": size, "height": height})
        for number, label in enumerate(scene.labels):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[label][0],
                    "bbox": scene.box_xywh(number),
                    "area": scene.area(number),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": category_id, "name": name, "supercategory": "shape"} for category_id, name in CATEGORIES]
    return {"info": {"description": _MARK}, "images": images, "annotations": annotations, "categories": categories}


def _background(rng: Generator, height: int, width: int) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Base colour and (H, W, 3) pixels: a soft gradient and blotches, sometimes stripes or checks."""
    base = np.full(3, rng.uniform(60, 195)) + rng.uniform(-28, 28, 3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = (x * np.cos(angle) + y * np.sin(angle)) / width
    light: NDArray[np.float64] = rng.uniform(0, 25) * (along - along.mean()).astype(np.float64)
    cells = int(rng.integers(4, 17))
    blotches = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    light = light + rng.uniform(3, 12) * np.asarray(blotches)
    kind, period, strength = rng.integers(4), rng.uniform(0.05, 0.2), rng.uniform(4, 12)
    if kind == 1:
        light = light + strength * np.sin(2 * np.pi * along / period)
    elif kind == 2:
        across = (y * np.cos(angle) - x * np.sin(angle)) / width
        light = light + strength * np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    tint = rng.uniform(0.7, 1.3, 3)
    return base, np.asarray(base + light[..., None] * tint, np.float32)


def _place(rng: Generator, label: int, height: int, width: int) -> tuple[NDArray[np.float32], int, int]:
    """Coverage (0..1) of a shape of random size and angle, and the left and top pixel of the image where it goes."""
    kind = rng.random()
    low, high = (6.0, 12.0) if kind < 0.04 else (24.0, 60.0) if kind < 0.94 else (60.0, 70.0)
    diameter = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * width / 128
    cover = shape_cover(label, diameter, float(rng.uniform(0, 2 * np.pi)), rng.uniform(0, 1, 2))
    side = cover.shape[0]
    margin = diameter * 0.4  # centres stay this far inside
    x, y = rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)
    return cover, round(x - side / 2), round(y - side / 2)


def shape_cover(label: int, diameter: float, angle: float, shift: NDArray[np.float64]) -> NDArray[np.float32]:
    """(S, S) share of each pixel inside the shape of class ``label``, turned by ``angle`` and moved by ``shift`` (0..1 pixels).

    The shape's longest extent is about ``diameter`` pixels.
    """
    side = int(np.ceil(diameter)) + 4
    scale = _OVERSAMPLING
    radius = diameter / 2 * scale
    centre = (side / 2 - 0.5 + shift) * scale
    mask = Image.new("L", (side * scale, side * scale), 0)
    draw = ImageDraw.Draw(mask)
    name = CATEGORIES[label][1]
    if name in ("disc", "ring"):
        draw.ellipse((*(centre - radius).tolist(), *(centre + radius).tolist()), fill=255)
        if name == "ring":
            hole = 0.52 * radius
            draw.ellipse((*(centre - hole).tolist(), *(centre + hole).tolist()), fill=0)
    else:
        if name == "star":
            turns = angle + np.arange(10) * np.pi / 5
            radii = np.where(np.arange(10) % 2 == 1, 0.42 * radius, radius)
        else:  # the square of a checker, slightly turned
            turns = np.pi / 4 + (angle / np.pi - 1) * _MOST_LEAN + np.arange(4) * np.pi / 2
            radii = np.full(4, radius)
        points = centre + radii[:, None] * np.stack((np.cos(turns), np.sin(turns)), axis=1)
        draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    return np.asarray(np.asarray(mask.reduce(scale)) / 255, np.float32)


def _clip(cover: NDArray[np.float32], left: int, top: int, height: int, width: int) -> tuple[NDArray[np.float32], slice, slice]:
    """The part of ``cover`` inside the image, and the rows and columns where it goes."""
    rows = slice(max(top, 0), min(top + cover.shape[0], height))
    columns = slice(max(left, 0), min(left + cover.shape[1], width))
    return cover[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left], rows, columns


def _leaves_all_visible(
    owner: NDArray[np.int32], below: NDArray[np.int32], mask: NDArray[np.bool_], cover: NDArray[np.float32], full_areas: list[int]
) -> bool:
    """Whether enough of the new object (``mask``, ``cover``) and of all objects ``below`` it would be visible."""
    if mask.sum() < _MIN_VISIBLE * (cover >= 0.5).sum():
        return False
    for number in np.unique(below[below >= 0]).tolist():
        if (owner == number).sum() - (below == number).sum() < _MIN_VISIBLE * full_areas[number]:
            return False
    return True


def _colour(rng: Generator, neighbours: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """A random colour unlike all ``neighbours``: of sixteen the first that is far enough from them, else the farthest."""
    tries = rng.uniform(15, 240, (16, 3))
    distances = np.min([np.linalg.norm(tries - neighbour, axis=1) for neighbour in neighbours], axis=0)
    far = np.flatnonzero(distances >= _MIN_CONTRAST)
    return np.asarray(tries[far[0] if len(far) else np.argmax(distances)])


def _shaded(rng: Generator, colour: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(H, W, 3) pixels of one colour, lit from a random side."""
    y, x = np.mgrid[-1 : 1 : complex(0, shape[0]), -1 : 1 : complex(0, shape[1])]
    angle = rng.uniform(0, 2 * np.pi)
    light = rng.uniform(0, 18) * (x * np.cos(angle) + y * np.sin(angle))
    return (colour + light[..., None]).astype(np.float32)


def _checked(paint: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The pixels ``paint`` with every other field darkened; ``side`` is the side of the whole shape."""
    rows, columns = np.indices(paint.shape[:2]) * _CHECKS // side
    return np.where(((rows + columns) % 2 == 0)[..., None], paint, 0.25 * paint).astype(np.float32)


def _is_ours(out: Path) -> bool:
    """Whether ``out`` holds nothing but a sample, or what an interrupted call left of one."""
    names = {path.name for path in out.iterdir() if not re.fullmatch(r"\.(train|val)\.\d+\.part\.json", path.name)}
    if not names <= {"train.json", "val.json", "images"}:
        return False
    return all(_MARK.encode() in path.read_bytes()[:200] for path in (out / "train.json", out / "val.json") if path.exists())
