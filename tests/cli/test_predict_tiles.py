import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.peak_memory import PEAK_BYTES

rasterio = pytest.importorskip("rasterio")
MakeRaster = Callable[..., Path]


@pytest.fixture
def make_raster(tmp_path: Path, data: Path) -> MakeRaster:
    """A GeoTIFF of 400 x 300 pixels whose upper half is in the file; options as rasterio's."""

    def make(name: str = "map.tif", **options: Any) -> Path:
        place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 100)}
        scene = np.asarray(Image.open(data / "images" / "val_0001.jpg").convert("RGB")).transpose(2, 0, 1)
        settings = {"count": 3, "height": 300, "width": 400, "dtype": "uint8", "tiled": True, "blockxsize": 64, "blockysize": 64, **place}
        with rasterio.open(tmp_path / name, "w", driver="GTiff", SPARSE_OK=True, **{**settings, **options}) as file:
            for column in range(6):
                block = np.resize(scene, (file.count, 64, 64)).astype(file.dtypes[0])
                file.write(block, window=rasterio.windows.Window(64 * column, 0, 64, 64))
        return tmp_path / name

    return make


def test_a_raster_gives_boxes_in_pixels_and_on_the_ground(cli: Any, lively: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    outcome = cli("predict", lively, make_raster(), "--tile", 128, "--score", 0.3, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome
    (image,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    # Tiles begin every 102 pixels (the last at 272 and at 172): of the rows at 0, 102 and 172 only the first one has data.
    assert (image["width"], image["height"], image["tiles"], image["empty_tiles"]) == (400, 300, 12, 8)
    assert image["detections"]
    assert outcome.out == f"{len(image['detections'])} objects in 1 images; see {tmp_path / 'out'}\n"
    table = json.loads((tmp_path / "out" / "map.geojson").read_text())
    assert table["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    assert len(table["features"]) == len(image["detections"])
    for feature, found in zip(table["features"], image["detections"], strict=True):
        assert feature["properties"] == found
        x1, y1, x2, y2 = found["box"]
        corner, opposite = feature["geometry"]["coordinates"][0][0], feature["geometry"]["coordinates"][0][2]
        np.testing.assert_allclose(corner, [500_000 + x1 / 2, 100 - y1 / 2], rtol=0, atol=1e-6)
        np.testing.assert_allclose(opposite, [500_000 + x2 / 2, 100 - y2 / 2], rtol=0, atol=1e-6)
    with Image.open(tmp_path / "out" / "map.jpg") as drawn:
        assert drawn.size == (400, 300)


def test_longitude_and_latitude_on_request(cli: Any, lively: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    assert cli("predict", lively, make_raster(), "--tile", 128, "--score", 0.3, "--wgs84", "--out", tmp_path / "out").code == 0
    table = json.loads((tmp_path / "out" / "map.geojson").read_text())
    assert "crs" not in table
    points = np.array([feature["geometry"]["coordinates"][0] for feature in table["features"]]).reshape(-1, 2)
    assert (abs(points - [15, 0]) < 0.01).all()


def test_a_raster_without_georeference_gives_pixels_only_and_says_so(
    cli: Any, lively: Path, make_raster: MakeRaster, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_raster(crs=None, transform=rasterio.Affine(1, 0, 5, 0, -1, 5))
    assert cli("predict", lively, path, "--tile", 128, "--out", tmp_path / "out").code == 0
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["map.jpg", "predictions.json", "results.json"]
    assert caplog.messages == [f"{path} has no georeference, so its boxes are in pixels only"]


def test_samples_of_sixteen_bits_need_a_range_and_the_one_that_is_named_works(cli: Any, lively: Path, make_raster: MakeRaster) -> None:
    path = make_raster(dtype="uint16")
    line = cli.refuses("predict", lively, path, "--tile", 128, "--json", unchanged=path.parent)
    assert "has uint16 samples, whose range is unknown; give value_range, for instance " in line
    hint = line.split("for instance ")[1].split(", from")[0]
    as_bytes, ranged = (
        cli("predict", lively, file, "--tile", 128, "--score", 0.3, "--json", "--value-range", values).json["images"][0]["detections"]
        for file, values in ((make_raster("bytes.tif"), "0,255"), (path, "0,255"))
    )
    assert ranged == as_bytes
    assert cli("predict", lively, path, "--tile", 128, "--json", "--value-range", hint).code == 0


def test_bands_are_counted_from_one(cli: Any, lively: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    path = make_raster(count=5, photometric="minisblack")
    line = cli.refuses("predict", lively, path, "--tile", 128, "--json", unchanged=tmp_path)
    assert "name three as bands, as in 3,2,1" in line
    assert cli("predict", lively, path, "--tile", 128, "--json", "--bands", "3,2,1").code == 0
    assert "has bands 1 to 5" in cli.refuses("predict", lively, path, "--tile", 128, "--json", "--bands", "4,5,6", unchanged=tmp_path)


def test_a_tile_may_not_have_more_pixels_than_the_limit(cli: Any, lively: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    path = make_raster()
    line = cli.refuses("predict", lively, path, "--tile", 200, "--max-pixels", 39_999, "--json", unchanged=tmp_path)
    assert line.endswith("map.tif: a tile has more than the limit of 39,999 pixels; choose a smaller tile\n")
    # The raster itself has 120,000 pixels.
    assert cli("predict", lively, path, "--tile", 199, "--max-pixels", 39_999, "--json").code == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--tile", "127"], "tile must be at least 128 pixels"),
        (["--tile", "128", "--overlap", "1"], "overlap must be from 0 to 0.9"),
        (["--tile", "128", "--overlap", "-0.2"], "overlap must be from 0 to 0.9"),
        (["--tile", "128", "--bands", "red"], "--bands red: expected numbers with commas between them"),
        (["--tile", "128", "--value-range", "9,3"], "value_range must be a lower and a higher number, got 9,3"),
        (["--bands", "1,2,3"], "bands is for images that are cut into tiles; give tile, too"),
        (["--wgs84"], "wgs84 is for images that are cut into tiles"),
    ],
)
def test_bad_tilings(cli: Any, lively: Path, data: Path, arguments: list[str], part: str, tmp_path: Path) -> None:
    line = cli.refuses("predict", lively, data / "images" / "val_0001.jpg", "--json", *arguments, unchanged=tmp_path)
    assert part in line


def test_a_video_is_not_cut_into_tiles(cli: Any, lively: Path, tmp_path: Path) -> None:
    line = cli.refuses("predict", lively, tmp_path / "a.mp4", "--tile", 128, "--json", unchanged=tmp_path)
    assert line == "error: --tile is for images; leave it out for a video\n"


def test_without_the_extra_it_is_named(cli: Any, lively: Path, make_raster: MakeRaster, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_raster()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    line = cli.refuses("predict", lively, path, "--tile", 128, "--json", unchanged=path.parent)
    assert line.endswith("needs rasterio; install it with: pip install 'lw-retinanet[geo]'\n")


def test_evaluation_by_tiles(cli: Any, lively: Path, data: Path, tmp_path: Path) -> None:
    plain, whole, cut = (
        cli("evaluate", lively, data, "--json", *options).json for options in ((), ("--tile", 128), ("--tile", 128, "--overlap", 0))
    )
    assert plain == whole == cut  # the images have 64 pixels, so one tile is all of each
    big = Image.open(data / "images" / "val_0001.jpg").resize((200, 150))
    (tmp_path / "images").mkdir()
    big.save(tmp_path / "images" / "big.png")
    table = json.loads((data / "val.json").read_text())
    table["images"] = [{"id": 1, "file_name": "big.png", "width": 200, "height": 150}]
    table["annotations"] = [{**table["annotations"][0], "image_id": 1, "bbox": [10, 10, 60, 60], "area": 3600}]
    (tmp_path / "val.json").write_text(json.dumps(table))
    options = ("--tile", 128, "--overlap", 0.3)
    metrics = cli("evaluate", lively, tmp_path, *options, "--json", "--out", tmp_path / "out")
    assert metrics.code == 0, metrics
    (predicted,) = cli("predict", lively, tmp_path / "images", *options, "--score", 0.05, "--json").json["images"]
    scored = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert predicted["tiles"] == 4
    assert [found["score"] for found in predicted["detections"]] == [found["score"] for found in scored] != []
    line = cli.refuses("evaluate", "--ground-truth", data / "val.json", "--detections", data / "val.json", "--tile", 128, unchanged=data)
    assert "tile is for a model and a data set" in line


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_raster_of_400_million_pixels_needs_little_memory(lively: Path, data: Path, tmp_path: Path) -> None:
    path, side, block = tmp_path / "huge.tif", 20_000, 512
    scene = np.asarray(Image.open(data / "images" / "val_0001.jpg").convert("RGB").resize((block, block))).transpose(2, 0, 1)
    settings = {"count": 3, "height": side, "width": side, "dtype": "uint8", "tiled": True, "blockxsize": block, "blockysize": block}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 100)}
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **settings, **place) as file:
        for row in range(0, 39, 13):
            for column in range(0, 39, 2):
                file.write(scene, window=rasterio.windows.Window(column * block, row * block, block, block))
    code = f"from lw_retinanet.cli.main import main\ntry: main()\nfinally: print({PEAK_BYTES})"
    command = [sys.executable, "-c", code, "predict", lively, path, "--tile", "800", "--score", "0.3", "--out", tmp_path / "out"]
    ran = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    peak = int(ran.stdout.splitlines()[-1])
    (image,) = json.loads((tmp_path / "out" / "predictions.json").read_text())["images"]
    assert image["tiles"] == 31 * 31
    assert 0 < image["empty_tiles"] < 31 * 31
    assert image["detections"]
    assert peak < 2 * 10**9
