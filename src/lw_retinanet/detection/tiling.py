"""How a large image is cut into tiles. This file imports no other library, so that the command line starts fast."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from lw_retinanet.errors import InputError

Window = tuple[int, int, int, int]

SMALLEST = 128  # the stride of P7: a smaller tile would be less than one of its cells
MOST_OVERLAP = 0.9  # with more, a pixel would be looked at in over a hundred tiles


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a large image is cut into tiles.

    Args:
        tile: The side of the square tiles, in pixels of the image.
        overlap: The share of a tile that it has in common with the next one. An object that is not larger than this is whole in some tile.
        whole_image: Also detect in the image as a whole, for objects that no tile can show.
        bands, value_range: Of rasters; see :class:`~lw_retinanet.data.rasters.Raster`.
        wgs84: Whether coordinates on the ground will be asked for in longitude and latitude.

    Raises:
        InputError: For a value that is out of range.
    """

    tile: int
    overlap: float = 0.2
    whole_image: bool = False
    bands: tuple[int, ...] | None = None
    value_range: tuple[float, ...] | None = None
    wgs84: bool = False

    def __post_init__(self) -> None:
        if self.tile < SMALLEST:
            raise InputError(f"tile must be at least {SMALLEST} pixels, the stride of the coarsest pyramid level, got {self.tile}")
        if not 0 <= self.overlap <= MOST_OVERLAP:
            raise InputError(f"overlap must be from 0 to {MOST_OVERLAP}, a share of a tile's side, got {self.overlap}")
        low_high = (0, 255) if self.value_range is None else self.value_range
        if not (len(low_high) == 2 and all(map(math.isfinite, low_high)) and low_high[0] < low_high[1]):
            raise InputError(f"value_range must be a lower and a higher number, got {','.join(f'{value:g}' for value in low_high)}")

    @classmethod
    def of(
        cls,
        tile: int | None,
        *,
        overlap: float,
        whole_image: bool,
        bands: Sequence[int] | None = None,
        value_range: Sequence[float] | None = None,
        wgs84: bool = False,
    ) -> Self | None:
        """The tiling that a caller asks for; None for images that are not cut.

        Raises:
            InputError: For a value that is out of range, or that means nothing without a tile.
        """
        if tile is not None:
            return cls(
                tile=tile,
                overlap=overlap,
                whole_image=whole_image,
                bands=None if bands is None else tuple(bands),
                value_range=None if value_range is None else tuple(value_range),
                wgs84=wgs84,
            )
        given = {"whole_image": whole_image, "bands": bands is not None, "value_range": value_range is not None, "wgs84": wgs84}
        if any(given.values()):
            name = next(name for name, is_given in given.items() if is_given)
            raise InputError(f"{name} is for images that are cut into tiles; give tile, too, for instance 800")
        return None

    @property
    def shared(self) -> int:
        """Pixels that a tile has in common with the next one."""
        return min(self.tile - 1, round(self.tile * self.overlap))

    def windows(self, size_hw: tuple[int, int]) -> list[Window]:
        """The tiles (x1, y1, x2, y2), row by row. The last ones of a row or column are moved inward rather than cut small."""
        lefts, tops = (self._starts(side) for side in (size_hw[1], size_hw[0]))
        height, width = (min(side, self.tile) for side in size_hw)
        return [(left, top, left + width, top + height) for top in tops for left in lefts]

    def _starts(self, side: int) -> list[int]:
        if side <= self.tile:
            return [0]
        step = self.tile - self.shared
        return [min(number * step, side - self.tile) for number in range(math.ceil((side - self.tile) / step) + 1)]
