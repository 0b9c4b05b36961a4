import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet.data.rasters import Raster, is_raster
from lw_retinanet.errors import ImageError, InputError, MissingExtraError

rasterio = pytest.importorskip("rasterio")
Write = Callable[..., Path]
PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 400_000, 0, -0.5, 5_000_000)}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes (bands, H, W) values as a GeoTIFF."""

    def write_one(values: NDArray[Any], name: str = "a.tif", **options: Any) -> Path:
        options = {"tiled": True, "blockxsize": 16, "blockysize": 16, **PLACE, **options}
        colours = options.pop("colours", None)
        count, height, width = values.shape
        with rasterio.open(
            tmp_path / name, "w", driver="GTiff", count=count, height=height, width=width, dtype=values.dtype, **options
        ) as file:
            if colours:
                file.colorinterp = [rasterio.enums.ColorInterp[colour] for colour in colours]
            file.write(values)
        return tmp_path / name

    return write_one


def noise(count: int = 3, height: int = 40, width: int = 50, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(1, 256, (count, height, width), dtype=np.uint8)


def test_a_window_has_the_pixels_of_the_file(write: Write) -> None:
    values = noise()
    raster = Raster(write(values))
    assert raster.size_hw == (40, 50)
    window = raster.read((10, 5, 50, 40))
    assert window is not None
    assert window.flags.c_contiguous
    np.testing.assert_array_equal(window, values.transpose(1, 2, 0)[5:40, 10:50])
    np.testing.assert_array_equal(raster.reduced(50), values.transpose(1, 2, 0))
    assert raster.reduced(25).shape == (20, 25, 3)


def test_bands_are_those_of_the_colours_or_chosen(write: Write) -> None:
    values = noise(4)
    window = (0, 0, 50, 40)

    def read(path: Path, bands: tuple[int, ...] | None = None) -> NDArray[np.uint8]:
        pixels = Raster(path, bands=bands).read(window)
        assert pixels is not None
        return pixels.transpose(2, 0, 1)

    infrared_first = write(values, colours=["undefined", "red", "green", "blue"], photometric="minisblack")
    np.testing.assert_array_equal(read(infrared_first), values[1:])
    np.testing.assert_array_equal(read(infrared_first, (1, 3, 2)), values[[0, 2, 1]])
    np.testing.assert_array_equal(read(infrared_first, (4,)), values[[3, 3, 3]])
    np.testing.assert_array_equal(read(write(values[:1])), values[[0, 0, 0]])
    for bands in ((0, 1, 2), (1, 2, 5), (1, 2), (-1,), ()):
        with pytest.raises(InputError, match=r"a\.tif: has bands 1 to 4, got bands=\(.*; name three of them, or one for grey"):
            Raster(write(values, "a.tif"), bands=bands)
    many = write(noise(6), photometric="minisblack")
    with pytest.raises(InputError, match=r"has 6 bands and does not say which are red, green and blue; name three as bands, as in 3,2,1"):
        Raster(many)
    assert Raster(many, bands=(3, 2, 1)).read(window) is not None


def test_other_samples_than_bytes_need_a_range(write: Write) -> None:
    values = np.linspace(1000, 5000, 3 * 40 * 50).reshape(3, 40, 50)
    for kind in ("uint16", "int16", "float32", "float64"):
        path = write(values.astype(kind))
        with pytest.raises(InputError, match=rf"has {kind} samples, whose range is unknown; give value_range, for instance 1\d+[.\d]*,49"):
            Raster(path)
        pixels = Raster(path, value_range=(1000, 5000)).read((0, 0, 50, 40))
        assert pixels is not None
        np.testing.assert_allclose(pixels.transpose(2, 0, 1), (values - 1000) / 4000 * 255, rtol=0, atol=0.6)
    clipped = Raster(path, value_range=(2000, 3000)).read((0, 0, 50, 40))
    assert clipped is not None
    assert (clipped[0, 0, 0], clipped[-1, -1, 2]) == (0, 255)
    with pytest.raises(InputError, match="complex samples, which are no brightness"):
        Raster(write(values.astype("complex64")))


def test_what_has_no_data_is_black_and_a_window_of_it_is_none(write: Write) -> None:
    values = noise().astype(np.float32)
    values[:, :, 20:] = -9999
    values[0, 7, 8] = -9999  # as in a black-looking band: the pixel has data
    values[1, 3, 4] = np.nan
    raster = Raster(write(values, nodata=-9999), value_range=(0, 255))
    assert raster.read((20, 0, 50, 40)) is None
    window = raster.read((0, 0, 50, 40))
    assert window is not None
    assert not window[:, 20:].any()
    assert window[7, 8].tolist() == [0, *values[1:, 7, 8]]
    assert window[3, 4].tolist() == [0, 0, 0]
    assert window[3, 5].tolist() == values[:, 3, 5].tolist()


def test_missing_tiles_of_a_tiff_have_no_data(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=3,
        height=64,
        width=80,
        dtype="uint8",
        tiled=True,
        blockxsize=16,
        blockysize=16,
        SPARSE_OK=True,
        **PLACE,
    ) as file:
        file.write(np.full((3, 16, 16), 9, np.uint8), window=rasterio.windows.Window(32, 16, 16, 16))
    raster = Raster(path)
    assert raster.read((0, 0, 32, 64)) is None
    window = raster.read((20, 10, 60, 40))
    assert window is not None
    assert np.argwhere(window[..., 0]).min(axis=0).tolist() == [6, 12]
    assert int((window == 9).all(axis=2).sum()) == 256


def test_an_alpha_band_is_no_colour(write: Write) -> None:
    values = noise(4)
    values[3] = 255
    values[3, :, :10] = 0
    raster = Raster(write(values, photometric="rgb", alpha="yes"))
    window = raster.read((0, 0, 50, 40))
    assert window is not None
    assert not window[:, :10].any()
    np.testing.assert_array_equal(window[:, 10:], values[:3].transpose(1, 2, 0)[:, 10:])
    assert raster.read((0, 0, 10, 40)) is None


def test_a_palette_is_refused(tmp_path: Path) -> None:
    Image.fromarray(noise()[0]).convert("P").save(tmp_path / "p.tif")
    with pytest.raises(InputError, match=r"p\.tif: has palette colours, which are not read by windows; convert it to RGB"):
        Raster(tmp_path / "p.tif")


def test_only_rasters_are_read_by_windows(write: Write, tmp_path: Path) -> None:
    assert is_raster(write(noise()))
    Image.fromarray(noise().transpose(1, 2, 0)).save(tmp_path / "a.png")
    assert not is_raster(tmp_path / "a.png")
    assert not is_raster(tmp_path / "none.tif")
    assert not is_raster(tmp_path)
    (tmp_path / "a.vrt").write_text("<VRTDataset rasterXSize='5' rasterYSize='5'/>")  # may name other files and addresses
    assert not is_raster(tmp_path / "a.vrt")


def test_a_damaged_raster_is_an_image_error(write: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write(noise(3, 400, 500)).read_bytes()
    (tmp_path / "cut.tif").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "rubbish.tif").write_bytes(b"II*\0" + b"\x07" * 200)
    with pytest.raises(ImageError, match=r"rubbish\.tif: cannot be read \(.*\); replace the file$") as caught:
        Raster(tmp_path / "rubbish.tif")
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=r"cut\.tif: cannot be read \(.*\); replace the file$"):
        Raster(tmp_path / "cut.tif").read((0, 0, 500, 400))
    assert not caplog.records


def test_without_rasterio_the_extra_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(noise())
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(MissingExtraError, match=r"needs rasterio; install it with: pip install 'lw-retinanet\[geo\]'"):
        Raster(path)
