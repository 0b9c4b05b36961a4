"""Large images: tiles that overlap, each detected in as an image of its own, and one box for each object at the end."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.conventions import OutputRule
from lw_retinanet.data.georeference import Georeference
from lw_retinanet.data.images import as_array, decode
from lw_retinanet.data.rasters import Raster, is_raster
from lw_retinanet.data.records import Category
from lw_retinanet.detection.pipeline import read_ahead
from lw_retinanet.detection.result import Result, TiledResult
from lw_retinanet.detection.tile_merging import TileBoxes, merge
from lw_retinanet.detection.tiling import Tiling, Window
from lw_retinanet.errors import InputError, printable
from lw_retinanet.progress import Progress, tracked

_REDUCED = 2048  # longer side of the copy of a raster that is drawn on, and that is detected in as a whole

log = logging.getLogger(__name__)

Detect = Callable[[Iterator[NDArray[np.uint8]]], Iterable[Result]]


class TileSource(Protocol):
    """A large image."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width."""
        ...

    @property
    def pixels(self) -> NDArray[np.uint8] | None:
        """(H, W, 3) RGB, if all of it is in memory."""
        ...

    @property
    def georeference(self) -> Georeference | None:
        """Where it lies on the ground."""
        ...

    def read(self, window: Window, /) -> NDArray[np.uint8] | None:
        """(H, W, 3) RGB of a window; None if there is no data."""
        ...

    def reduced(self, longest: int, /) -> NDArray[np.uint8]:
        """The whole, perhaps with fewer pixels, but with at least ``longest`` along its longer side if it has as many."""
        ...


class ArraySource:
    """An image in memory, (H, W, 3) uint8 RGB."""

    georeference = None

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.pixels = pixels
        self.size_hw: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def read(self, window: Window) -> NDArray[np.uint8]:
        """A view of the window."""
        x1, y1, x2, y2 = window
        return self.pixels[y1:y2, x1:x2]

    def reduced(self, longest: int) -> NDArray[np.uint8]:
        """All pixels: the detector resizes them."""
        return self.pixels


def open_source(image: object, tiling: Tiling, *, max_pixels: int | None) -> TileSource:
    """A file, PIL image or array as a source of tiles. Rasters are read by windows, other files are decoded as a whole.

    Args:
        image: What :meth:`Detector.predict` takes, but no folder or glob.
        tiling: Its bands and range are for rasters.
        max_pixels: The most pixels that are decoded at a time: of the whole image, or of a tile of a raster.

    Raises:
        ImageError: If the image cannot be read.
        InputError: If the raster does not have these bands, its range has to be given, or its tiles are too large.
    """
    if not isinstance(image, str | Path):
        return ArraySource(as_array(image))
    if not is_raster(Path(image)):
        return ArraySource(decode(Path(image), max_pixels=max_pixels))
    raster = Raster(Path(image), bands=tiling.bands, value_range=tiling.value_range)
    num_pixels = math.prod(min(side, tiling.tile) for side in raster.size_hw)
    if num_pixels > (max_pixels or MAX_PIXELS):
        raise InputError(
            f"{printable(image)}: a tile has more than the limit of {max_pixels or MAX_PIXELS:,} pixels; choose a smaller tile"
        )
    if raster.georeference is None:
        log.warning("%s has no georeference, so its boxes are in pixels only", printable(image))
    elif tiling.wgs84:
        raster.georeference.rings([0, 0, *raster.size_hw[::-1]], wgs84=True)  # fails now rather than after the work
    return raster


def detect_tiled(
    source: TileSource,
    tiling: Tiling,
    detect: Detect,
    *,
    rule: OutputRule,
    categories: tuple[Category, ...],
    file: str | None = None,
    ahead: int = 2,
    progress: Progress | None = None,
) -> TiledResult:
    """Detect in all tiles of an image that have data, and merge what they give.

    Args:
        source: The image.
        tiling: How it is cut.
        detect: Detects in images, in order, a few at a time.
        rule: The detector's NMS, whose limit and classes also hold between tiles.
        categories: The detector's classes.
        file: The image's name.
        ahead: How many tiles are read ahead.
        progress: Shows how many tiles are done.

    Raises:
        ImageError: If a part of the image cannot be read.
    """
    windows = tiling.windows(source.size_hw)
    copy = _ReducedCopy(source.size_hw, pixels=source.pixels)
    with_data: list[int] = []

    def tiles() -> Iterator[NDArray[np.uint8]]:
        reads = read_ahead(windows, source.read, number=ahead)
        for number, pixels in enumerate(tracked(reads, len(windows), "tiles", progress)):
            if pixels is not None:
                with_data.append(number)
                copy.add(windows[number], pixels)
                yield pixels

    found = [_moved(result, windows[with_data[place]], with_data[place]) for place, result in enumerate(detect(tiles()))]
    num_tiles, num_empty = len(windows), len(windows) - len(with_data)
    if num_empty:
        log.info("%s: %d of %d tiles have no data and were left out", printable(file or "the image"), num_empty, num_tiles)
    if tiling.whole_image:
        windows.append((0, 0, source.size_hw[1], source.size_hw[0]))
        found.append(_of_whole_image(source, tiling, detect, number=len(windows) - 1))
    boxes, scores, labels = _merged(found, windows, source.size_hw, rule)
    return TiledResult(
        file=file,
        image=copy.pixels,
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=labels,
        categories=categories,
        full_hw=source.size_hw,
        num_tiles=num_tiles,
        num_empty=num_empty,
        georeference=source.georeference,
    )


_Found = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]
_NOTHING: _Found = (np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))


def _merged(
    found: list[_Found], windows: list[Window], size_hw: tuple[int, int], rule: OutputRule
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    boxes, scores, labels, tile_of = (np.concatenate(column) for column in zip(_NOTHING, *found, strict=True))
    tiles = np.array(windows, np.float64)
    given = TileBoxes(boxes=boxes, scores=scores, labels=labels, tile_of=tile_of, tiles=tiles, size_hw=size_hw)
    return merge(given, iou=rule.nms_iou, class_agnostic=rule.class_agnostic)


def _moved(result: Result, window: Window, number: int) -> _Found:
    """Boxes, scores, labels and tile numbers of a tile, in pixels of the whole image, cut off at the tile's border."""
    x1, y1, x2, y2 = window
    boxes = (result.boxes + np.array([x1, y1, x1, y1], np.float64)).clip([x1, y1, x1, y1], [x2, y2, x2, y2])
    return boxes, result.scores.astype(np.float64), result.labels, np.full(len(result), number, np.int64)


def _of_whole_image(source: TileSource, tiling: Tiling, detect: Detect, *, number: int) -> _Found:
    """What the image as a whole shows that is larger than the overlap. All that is smaller is whole in some tile, and sharper there."""
    pixels = source.reduced(_REDUCED)
    (result,) = detect(iter([pixels]))
    height, width = source.size_hw
    boxes = result.boxes.astype(np.float64) * ([width / pixels.shape[1], height / pixels.shape[0]] * 2)
    boxes = boxes.clip(0, [width, height] * 2)
    is_large = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) > tiling.shared
    number_of = np.full(int(is_large.sum()), number, np.int64)
    return boxes[is_large], result.scores[is_large].astype(np.float64), result.labels[is_large], number_of


class _ReducedCopy:
    """Every n-th pixel of every n-th row, gathered while tiles pass by; all pixels if they are in memory anyway."""

    def __init__(self, size_hw: tuple[int, int], *, pixels: NDArray[np.uint8] | None) -> None:
        self.is_whole = pixels is not None
        self.step = max(1, math.ceil(max(size_hw) / _REDUCED))
        shape = (-(-size_hw[0] // self.step), -(-size_hw[1] // self.step), 3)
        self.pixels = np.zeros(shape, np.uint8) if pixels is None else pixels

    def add(self, window: Window, tile: NDArray[np.uint8]) -> None:
        """Take a tile in."""
        if self.is_whole:
            return
        left, top = -(-window[0] // self.step), -(-window[1] // self.step)
        part = tile[top * self.step - window[1] :: self.step, left * self.step - window[0] :: self.step]
        self.pixels[top : top + part.shape[0], left : left + part.shape[1]] = part
