"""Where the pixels of a raster lie on the ground."""

import importlib
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.errors import InputError, MissingExtraError

WGS84 = "OGC:CRS84"  # longitude before latitude, as GeoJSON has it


def need_rasterio(why: str) -> Any:
    """Import rasterio.

    Raises:
        MissingExtraError: If it is not installed.
    """
    try:
        for part in ("errors", "warp", "windows", "enums"):
            importlib.import_module(f"rasterio.{part}")
        return importlib.import_module("rasterio")
    except ImportError:
        raise MissingExtraError(f"{why} needs rasterio; install it with: pip install 'lw-retinanet[geo]'") from None


@dataclass(frozen=True, kw_only=True)
class Georeference:
    """A transform from pixels, and the reference system of its results.

    Args:
        transform: (a, b, c, d, e, f): a pixel (x, y) lies at (a x + b y + c, d x + e y + f).
        system: The reference system as the raster has it, in WKT.
        name: Its name for a GeoJSON file: a URN if it is in a register, else the WKT.
    """

    transform: tuple[float, float, float, float, float, float]
    system: str
    name: str

    @classmethod
    def of(cls, file: Any) -> Self | None:
        """The georeference of an open raster, if it has both a reference system and a transform that can be inverted."""
        a, b, c, d, e, f = (float(value) for value in tuple(file.transform)[:6])
        if file.crs is None or file.transform.is_identity or a * e == b * d or not np.isfinite([a, b, c, d, e, f]).all():
            return None
        authority = file.crs.to_authority()
        wkt = str(file.crs.to_wkt())
        name = wkt if authority is None else f"urn:ogc:def:crs:{authority[0]}::{authority[1]}"
        return cls(transform=(a, b, c, d, e, f), system=wkt, name=name)

    def rings(self, boxes: ArrayLike, *, wgs84: bool = False) -> NDArray[np.float64]:
        """Closed, anticlockwise rings (D, 5, 2) of boxes (D, 4), xyxy in pixels; with ``wgs84`` in longitude and latitude.

        Raises:
            InputError: If the reference system has no way to WGS 84.
        """
        corners = np.asarray(boxes, np.float64).reshape(-1, 4)[:, [0, 1, 0, 3, 2, 3, 2, 1, 0, 1]].reshape(-1, 5, 2)
        a, b, c, d, e, f = self.transform
        if a * e - b * d > 0:  # rows that go up: the order above would be clockwise
            corners = corners[:, ::-1]
        x, y = corners[..., 0], corners[..., 1]
        rings = np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)
        if not (wgs84 and len(rings)):
            return rings
        rasterio = need_rasterio("coordinates in WGS 84")
        try:
            longitudes, latitudes = rasterio.warp.transform(self.system, WGS84, rings[..., 0].ravel(), rings[..., 1].ravel())
        except Exception:  # GDAL's own errors have no public class
            longitudes = latitudes = [np.inf]
        places = np.stack([longitudes, latitudes], axis=-1)
        if not np.isfinite(places).all():
            raise InputError("the raster's reference system cannot be turned into WGS 84; leave wgs84 out to get its own coordinates")
        return places.reshape(rings.shape)
