import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.sample import CATEGORIES, draw_scene, make_sample, shape_cover
from lw_retinanet.errors import ConfigError, InputError


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads(path.read_text())
    return table


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = digest(make_sample(tmp_path / "a", num_train=12, num_val=4))
    assert len(first) == 12 + 4 + 2
    assert digest(make_sample(tmp_path / "b", num_train=12, num_val=4)) == first
    assert digest(make_sample(tmp_path / "a", num_train=12, num_val=4)) == first  # made anew in place
    other = digest(make_sample(tmp_path / "c", num_train=12, num_val=4, seed=1))
    assert all(other[name] != first[name] for name in first)
    longer = digest(make_sample(tmp_path / "d", num_train=20, num_val=4))
    assert {name: longer[name] for name in first if name.endswith(".jpg")} == {name: first[name] for name in first if name.endswith(".jpg")}


def test_the_files_are_sound_coco(tmp_path: Path) -> None:
    out = make_sample(tmp_path / "sample", num_train=30, num_val=10)
    names = set()
    for split, count in (("train", 30), ("val", 10)):
        table = read(out / f"{split}.json")
        assert [(item["id"], item["name"]) for item in table["categories"]] == list(CATEGORIES)
        assert len(table["images"]) == count
        sizes = {}
        for item in table["images"]:
            with Image.open(out / "images" / item["file_name"]) as image:
                assert image.size == (item["width"], item["height"])
            names.add(item["file_name"])
            sizes[item["id"]] = (item["width"], item["height"])
        assert {(128, 128), (128, 96)} == set(sizes.values())
        assert len({item["id"] for item in table["annotations"]}) == len(table["annotations"])
        for item in table["annotations"]:
            x, y, width, height = item["bbox"]
            assert x >= 0
            assert y >= 0
            assert x + width <= sizes[item["image_id"]][0]
            assert y + height <= sizes[item["image_id"]][1]
            assert 0 < item["area"] <= width * height
    assert names == {path.name for path in (out / "images").iterdir()}
    assert (out / "images/train_0001.jpg").read_bytes() != (out / "images/val_0001.jpg").read_bytes()


def test_boxes_are_the_extent_of_what_is_seen_of_every_object() -> None:
    overlaps = 0
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), (96, 128))
        assert set(np.unique(scene.owner)) - {-1} == set(range(len(scene.labels)))  # every object is seen
        for number in range(len(scene.labels)):
            x, y, width, height = scene.box_xywh(number)
            mask = scene.owner == number
            inside = mask[y : y + height, x : x + width]
            assert inside.sum() == mask.sum() == scene.area(number)
            assert inside[0].any()
            assert inside[-1].any()
            assert inside[:, 0].any()
            assert inside[:, -1].any()
            overlaps += bool(((scene.owner[y : y + height, x : x + width] >= 0) & ~inside).any())
    assert overlaps > 5


def test_objects_stand_out_from_the_background() -> None:
    distances = []
    for seed in range(40):
        scene = draw_scene(np.random.default_rng(seed), (128, 128))
        background = scene.image[scene.owner < 0].mean(axis=0)
        distances += [np.linalg.norm(scene.image[scene.owner == number].mean(axis=0) - background) for number in range(len(scene.labels))]
    assert np.quantile(distances, 0.05) > 60


def test_the_mix_of_classes_sizes_and_empty_images(tmp_path: Path) -> None:
    table = read(make_sample(tmp_path, num_train=200, num_val=1) / "train.json")
    sides = np.sqrt([item["bbox"][2] * item["bbox"][3] for item in table["annotations"]])
    assert sides.min() < 11
    assert sides.max() > 52
    assert 0.6 < ((sides > 14) & (sides < 64)).mean() < 0.98
    per_class = np.bincount([item["category_id"] for item in table["annotations"]], minlength=10)
    assert per_class[[1, 4, 8, 9]].min() > 0.12 * len(table["annotations"])
    empty = len(table["images"]) - len({item["image_id"] for item in table["annotations"]})
    assert 2 <= empty <= 30


def test_areas_of_the_shapes() -> None:
    # of radius r: disc pi r^2; square 2 r^2; ring (1 - 0.52^2) of the disc;
    # star of five points with inner radius 0.42 r: ten triangles of 1/2 * r * 0.42 r * sin 36 degrees
    radius = 30.0
    expected = {
        "disc": np.pi,
        "checker": 2.0,
        "star": 10 * 0.5 * 0.42 * np.sin(np.pi / 5),
        "ring": np.pi * (1 - 0.52**2),
    }
    for label, (_, name) in enumerate(CATEGORIES):
        for angle in (0.0, 0.7):
            cover = shape_cover(label, 2 * radius, angle, np.array([0.3, 0.6]))
            # polygons are drawn with their border pixels, a quarter of a pixel wide: a few percent
            assert cover.sum() == pytest.approx(expected[name] * radius**2, rel=0.05)
            assert not cover[0].any()
            assert not cover[:, 0].any()
            assert not cover[-1].any()
            assert not cover[:, -1].any()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="holds other files"):
        make_sample(tmp_path, num_train=1, num_val=1)
    assert (tmp_path / "train.json").read_text() == '{"images": []}'
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        make_sample(tmp_path / "file", num_train=1, num_val=1)


@pytest.mark.parametrize("bad", [{"num_train": 0}, {"num_val": 0}, {"size": 32}, {"seed": -1}])
def test_bad_settings(tmp_path: Path, bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        make_sample(tmp_path / "out", **bad)
    assert not (tmp_path / "out").exists()
