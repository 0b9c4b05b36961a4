"""Rasters such as GeoTIFFs, read by windows with rasterio, so that the whole never has to fit into memory.

Samples of 8 bits are taken as they are; others are scaled by a range that the caller gives. Pixels without data become black: those that
the file's nodata value or mask says, those of the alpha band, those that are not a number, and, only here, those of a TIFF's missing tiles.
"""

import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.georeference import Georeference, need_rasterio
from lw_retinanet.data.image_files import is_file
from lw_retinanet.errors import ImageError, InputError, first_line, printable, shown

Window = tuple[int, int, int, int]

# Formats of one file; none that names other files or addresses.
_DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  ": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
    b"EHFA_HEADER_TAG": "HFA",
}
_CACHE_MIB = 256  # for decoded blocks; a row of tiles of 50,000 x 800 pixels takes 115
_SAMPLE = 1024  # side of the window in the middle that shows what values there are


def is_raster(path: Path) -> bool:
    """Whether a file is of a format that is read by windows, by its first bytes."""
    return _driver_of(path) is not None


def _driver_of(path: Path) -> str | None:
    try:
        if not is_file(path):
            return None
        with path.open("rb") as stream:
            head = stream.read(16)
    except (OSError, ValueError):  # the image decoder says what is wrong with it
        return None
    return next((driver for signature, driver in _DRIVERS.items() if head.startswith(signature)), None)


class Raster:
    """An open raster.

    Args:
        path: A GeoTIFF, JPEG 2000 or Erdas Imagine file.
        bands: Three bands, or one for grey, counted from 1; None takes those that the file calls red, green and blue, or its only one.
        value_range: The values that become black and full brightness. None is 0 and 255, for samples of 8 bits only.

    Raises:
        ImageError: If the file cannot be read.
        InputError: For bands that are not there, or for samples whose range has to be given.
        MissingExtraError: If rasterio is not installed.

    Attributes:
        size_hw: Height and width.
        georeference: Where it lies, or None.
    """

    pixels = None

    def __init__(self, path: Path, *, bands: Sequence[int] | None = None, value_range: Sequence[float] | None = None) -> None:
        self._rasterio = need_rasterio(f"reading {printable(path)} by windows")
        self._where = printable(path)
        self._lock = threading.Lock()  # GDAL's data sets are for one thread at a time
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has no georeference
            try:
                self._file: Any = self._rasterio.open(path.absolute(), driver=_driver_of(path), sharing=False)
            except self._rasterio.errors.RasterioError as error:
                raise self._unreadable(error) from None
        self.size_hw: tuple[int, int] = (self._file.height, self._file.width)
        self.georeference = Georeference.of(self._file)
        self._bands = self._chosen(bands)
        self._range = value_range
        if value_range is None:
            self._require_bytes()

    def read(self, window: Window) -> NDArray[np.uint8] | None:
        """(H, W, 3) RGB of a window (x1, y1, x2, y2); None if none of it has data.

        Raises:
            ImageError: If the file is damaged there.
        """
        x1, y1, x2, y2 = window
        with self._lock:
            is_there = self._written(window)
            if not is_there.any():
                return None
            place = self._rasterio.windows.Window(x1, y1, x2 - x1, y2 - y1)
            values, is_data = self._values(window=place)
        is_data &= is_there
        return self._image(values, is_data) if is_data.any() else None

    def reduced(self, longest: int) -> NDArray[np.uint8]:
        """The whole raster, made smaller by averaging so that its longer side has at most so many pixels."""
        scale = min(1.0, longest / max(self.size_hw))
        shape = (max(1, round(self.size_hw[0] * scale)), max(1, round(self.size_hw[1] * scale)))
        with self._lock:
            values, is_data = self._values(out_shape=shape, resampling=self._rasterio.enums.Resampling.average)
        return self._image(values, is_data)

    def _values(self, *, out_shape: tuple[int, int] | None = None, **options: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(B, H, W) samples, and (H, W) whether there are any."""
        shape = None if out_shape is None else (len(self._bands), *out_shape)
        try:
            with self._rasterio.Env(GDAL_CACHEMAX=_CACHE_MIB):
                values: NDArray[Any] = self._file.read(self._bands, out_shape=shape, **options)
                is_data = self._file.dataset_mask(out_shape=out_shape, **options) > 0
        except self._rasterio.errors.RasterioError as error:
            raise self._unreadable(error) from None
        return values, is_data & np.isfinite(values).all(axis=0)

    def _image(self, values: NDArray[Any], is_data: NDArray[np.bool_]) -> NDArray[np.uint8]:
        if self._range is not None:
            low, high = self._range
            scaled = (np.where(is_data, values, low).astype(np.float32) - low) * (255 / (high - low))
            values = np.rint(scaled.clip(0, 255)).astype(np.uint8)
        image = np.where(is_data, values, 0).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(np.broadcast_to(image, (*is_data.shape, 3)))

    def _written(self, window: Window) -> NDArray[np.bool_]:
        """(H, W) whether the file holds the block of each pixel."""
        x1, y1, x2, y2 = window
        is_there = np.ones((y2 - y1, x2 - x1), dtype=np.bool_)
        if self._file.driver != "GTiff":
            return is_there
        height, width = self._file.block_shapes[self._bands[0] - 1]
        for row in range(y1 // height, -(-y2 // height)):
            for column in range(x1 // width, -(-x2 // width)):
                if self._file.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=self._bands[0]) is None:
                    top, left = max(0, row * height - y1), max(0, column * width - x1)
                    is_there[top : (row + 1) * height - y1, left : (column + 1) * width - x1] = False
        return is_there

    def _chosen(self, bands: Sequence[int] | None) -> list[int]:
        count = self._file.count
        if bands is not None:
            if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
                have = "1 band" if count == 1 else f"bands 1 to {count}"
                raise InputError(f"{self._where}: has {have}, got bands={shown(tuple(bands))}; name three of them, or one for grey")
            return list(bands)
        colours = [interpretation.name for interpretation in self._file.colorinterp]
        if colours[0] in ("palette", "cyan"):
            raise InputError(f"{self._where}: has {colours[0]} colours, which are not read by windows; convert it to RGB")
        if {"red", "green", "blue"} <= set(colours):
            return [colours.index(colour) + 1 for colour in ("red", "green", "blue")]
        places = [band for band, colour in enumerate(colours, start=1) if colour != "alpha"]
        if len(places) not in (1, 3):
            raise InputError(
                f"{self._where}: has {count} bands and does not say which are red, green and blue; name three as bands, as in 3,2,1"
            )
        return places

    def _require_bytes(self) -> None:
        types = {self._file.dtypes[band - 1] for band in self._bands}
        bits = self._file.tags(self._bands[0], ns="IMAGE_STRUCTURE").get("NBITS", "8")
        if types == {"uint8"} and bits == "8":
            return
        if any("complex" in name for name in types):
            raise InputError(f"{self._where}: has complex samples, which are no brightness; convert them to real ones")
        middle = [max(0, (side - _SAMPLE) // 2) for side in self.size_hw]
        height, width = (min(_SAMPLE, side) for side in self.size_hw)
        values, is_data = self._values(window=self._rasterio.windows.Window(middle[1], middle[0], width, height))
        low, high = np.percentile(values[:, is_data], (2, 98)) if is_data.any() else (0, 0)
        hint = f"{low:g},{high:g}, from its 2nd to its 98th percentile" if high > low else "0,10000"
        kind = f"{bits}-bit" if types == {"uint8"} else " and ".join(sorted(types))
        raise InputError(f"{self._where}: has {kind} samples, whose range is unknown; give value_range, for instance {hint}")

    def _unreadable(self, error: BaseException) -> ImageError:
        reason = first_line(error.__cause__ or error).replace(str(self._file.name) if hasattr(self, "_file") else "", "")
        return ImageError(f"{self._where}: cannot be read ({reason}); replace the file")
