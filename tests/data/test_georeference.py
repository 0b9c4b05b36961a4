from typing import Any

import numpy as np
import pytest

from lw_retinanet.data.georeference import Georeference
from lw_retinanet.errors import InputError

rasterio = pytest.importorskip("rasterio")


class OpenFile:
    """What of an open raster matters here."""

    def __init__(self, transform: Any, crs: str | None = "EPSG:32633") -> None:
        self.transform = transform
        self.crs = None if crs is None else rasterio.crs.CRS.from_user_input(crs)


def area(ring: Any) -> float:
    """Signed: positive for an anticlockwise ring."""
    x, y = np.asarray(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def reference(*transform: float, crs: str = "EPSG:32633") -> Georeference:
    made = Georeference.of(OpenFile(rasterio.Affine(*transform), crs))
    assert made is not None
    return made


def test_a_box_of_a_map_with_north_up() -> None:
    # Pixels of half a metre, first corner at (400000, 5000000): x = 400000 + 10 / 2, y = 5000000 - 20 / 2.
    (ring,) = reference(0.5, 0, 400_000, 0, -0.5, 5_000_000).rings([10, 20, 30, 60])
    assert ring.tolist() == [[400005, 4999990], [400005, 4999970], [400015, 4999970], [400015, 4999990], [400005, 4999990]]
    assert area(ring) == 10 * 20


@pytest.mark.parametrize("transform", [(3, 4, 100, 4, -3, 200), (3, 4, 100, -4, 3, 200), (0, 2, 0, 2, 0, 0), (-1, 0, 9, 0, -1, 9)])
def test_turned_and_mirrored_rasters_give_turned_polygons(transform: tuple[float, ...]) -> None:
    a, b, c, d, e, f = transform
    (ring,) = reference(*transform).rings([10, 20, 30, 60])
    corners = {(a * x + b * y + c, d * x + e * y + f) for x in (10, 30) for y in (20, 60)}
    assert {tuple(point) for point in ring.tolist()} == corners
    assert ring[0].tolist() == ring[-1].tolist()
    assert area(ring) == pytest.approx(20 * 40 * abs(a * e - b * d))  # anticlockwise, and the corners are in turn


def test_longitude_comes_before_latitude() -> None:
    # The central meridian of zone 33 is 15 degrees east, at x = 500000; y = 0 is the equator.
    (ring,) = reference(10, 0, 500_000, 0, -10, 0).rings([0, 0, 100, 100], wgs84=True)
    np.testing.assert_allclose(ring[0], [15, 0], rtol=0, atol=1e-9)
    # A kilometre is about 1 / 111.3 degrees of longitude there.
    np.testing.assert_allclose(ring[2], [15 + 1 / 111.3, -1 / 110.6], rtol=0, atol=1e-4)
    assert area(ring) > 0
    degrees = reference(0.001, 0, 8, 0, -0.001, 47, crs="EPSG:4326")
    np.testing.assert_allclose(degrees.rings([0, 0, 10, 10], wgs84=True), degrees.rings([0, 0, 10, 10]), rtol=0, atol=1e-9)


def test_names_of_reference_systems() -> None:
    assert reference(1, 0, 0, 0, -1, 0).name == "urn:ogc:def:crs:EPSG::32633"
    own = reference(1, 0, 0, 0, -1, 0, crs="+proj=tmerc +lat_0=1 +lon_0=2 +k=0.99 +datum=WGS84")
    assert own.name == own.system
    assert "Transverse" in own.name


def test_what_has_no_place() -> None:
    assert Georeference.of(OpenFile(rasterio.Affine.identity())) is None
    assert Georeference.of(OpenFile(rasterio.Affine(1, 0, 5, 0, -1, 5), crs=None)) is None
    assert Georeference.of(OpenFile(rasterio.Affine(1, 1, 5, 1, 1, 5))) is None  # all pixels on one line
    assert Georeference.of(OpenFile(rasterio.Affine(float("nan"), 0, 5, 0, 1, 5))) is None
    local = reference(1, 0, 0, 0, -1, 0, crs='LOCAL_CS["a building site",UNIT["metre",1]]')
    assert local.rings([0, 0, 1, 1]).shape == (1, 5, 2)
    with pytest.raises(InputError, match="cannot be turned into WGS 84; leave wgs84 out"):
        local.rings([0, 0, 1, 1], wgs84=True)


def test_no_boxes_give_no_rings() -> None:
    assert reference(1, 0, 0, 0, -1, 0).rings(np.zeros((0, 4)), wgs84=True).shape == (0, 5, 2)
