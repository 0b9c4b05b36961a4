import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.table import FORMATS, load_format
from lw_retinanet.data.records import Category, Id, Records, build_records
from lw_retinanet.errors import DataError, ImageError

Maker = Callable[..., Records]


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """A maker of records with images on disk: odd ids, a crowd, a difficult box, a mask area, an empty image, a box reaching out."""

    def build(folder: str = "from", names: tuple[str, ...] = ("a.png", "sub/b.png", "c.png")) -> Records:
        root = tmp_path / folder
        for number, name in enumerate(names):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 30), (number, 0, len(folder))).save(root / name)
        ids: list[Id] = ["x", 2**40, 0]
        return build_records(
            root=root,
            file_names=names,
            image_ids=ids[: len(names)],
            sizes_hw=[(30, 40)] * len(names),
            image_of_box=[0, 0, 1, 1],
            boxes_xywh=np.array([[1.1, 2.2, 3.3, 4.4], [0, 0, 40, 30], [-3, 5, 1 / 3, 50], [7, 7, 0, 5]]),
            labels=[1, 0, 1, 0],
            categories=[Category(id=0, name="zebra", supercategory="animal"), Category(id="k", name="ant: \u00e9")],
            areas=np.array([14.52, 600.0, 50 / 3, 0.0]),
            is_crowd=[False, True, False, False],
            is_difficult=[False, False, True, False],
            annotation_ids=np.array([0, 5, 5, 2**50]),
        )

    return build


def test_coco_is_lossless(make: Maker, tmp_path: Path) -> None:
    records = make()
    done = convert({"train": records, "val": records}, "coco", tmp_path / "out")
    assert (done.losses, done.images, done.boxes) == ((), 6, 8)
    assert Dataset.open(tmp_path / "out").splits == ("train", "val")
    again = Dataset.open(tmp_path / "out").read("val")
    assert again.fingerprint() == records.fingerprint()
    assert again.path(1).read_bytes() == records.path(1).read_bytes()


def test_yolo_keeps_boxes_and_says_what_it_loses(make: Maker, tmp_path: Path) -> None:
    records = make()
    done = convert(records, "yolo", tmp_path / "out")
    again = Dataset.open(tmp_path / "out").read("train")
    assert again.class_names == records.class_names
    assert again.file_names == ("a.png", "c.png", "sub/b.png")
    assert again.offsets.tolist() == [0, 1, 1, 2]
    # Ten digits of a fraction of 40 px.
    np.testing.assert_allclose(again.boxes_xywh, records.boxes_xywh[[0, 2]], rtol=0, atol=1e-8)
    assert done.boxes == 2
    text = " ".join(done.losses)
    for word in ("1 crowd", "1 difficult", "1 boxes of zero", "image ids", "category ids", "supercategories"):
        assert word in text
    assert "object areas" not in text  # only the crowd, which is left out, has a mask's area


def test_voc_keeps_boxes_and_turns_crowds_into_difficult(make: Maker, tmp_path: Path) -> None:
    records = make()
    done = convert(records, "voc", tmp_path / "out")
    again = Dataset.open(tmp_path / "out").read("train")
    assert again.class_names == ("ant: \u00e9", "zebra")
    assert again.file_names == ("a.png", "sub__b.png", "c.png")
    np.testing.assert_allclose(again.boxes_xywh, records.boxes_xywh, rtol=0, atol=1e-8)
    assert again.is_difficult.tolist() == [False, True, True, False]
    assert any("1 crowd" in loss for loss in done.losses)
    assert any("object areas" in loss for loss in done.losses)


@pytest.mark.parametrize("name", [os.fsdecode(b"bytes\xff.png"), "two\nlines.png"])
def test_a_file_name_that_voc_cannot_hold_is_refused_and_the_remedy_helps(make: Maker, tmp_path: Path, name: str) -> None:
    records = make(names=("a.png", name, "c.png"))
    with pytest.raises(DataError, match=r"is no plain text, .*; rename the file, or convert to COCO") as caught:
        convert(records, "voc", tmp_path / "to")
    assert str(caught.value).isprintable()
    assert not (tmp_path / "to").exists()
    convert(records, "coco", tmp_path / "to")
    assert Dataset.open(tmp_path / "to").read().file_names == records.file_names


def test_ordinary_data_loses_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.png")
    records = build_records(
        root=tmp_path,
        file_names=["a.png"],
        sizes_hw=[(10, 10)],
        image_of_box=[0],
        boxes_xywh=[[1, 1, 2, 2]],
        labels=[0],
        categories=[Category(id=1, name="cat")],
    )
    assert convert(records, "voc", tmp_path / "voc").losses == ()


@pytest.mark.parametrize("form", FORMATS)
def test_what_a_format_says_it_keeps_is_what_reading_gives(make: Maker, tmp_path: Path, form: str) -> None:
    names = ("a.png", "b.png", "sub/c.png")  # YOLO reads images in the order of their names
    splits = {"train": make("one", names), "val": make("two", names)}
    done = convert(splits, form, tmp_path / "out")
    kept = load_format(form).kept(splits)
    for split, expected in kept.items():
        again = Dataset.open(tmp_path / "out").read(split)
        assert again.categories == expected.categories
        assert again.image_ids == expected.image_ids
        assert again.sizes_hw.tolist() == expected.sizes_hw.tolist()
        assert [Path(name).stem[-1] for name in again.file_names] == [Path(name).stem[-1] for name in expected.file_names]
        assert again.offsets.tolist() == expected.offsets.tolist()
        np.testing.assert_allclose(again.boxes_xywh, expected.boxes_xywh, atol=1e-8)  # ten digits of 40 pixels
        np.testing.assert_allclose(again.areas, expected.areas, rtol=1e-6, atol=1e-6)
        for column in ("labels", "is_crowd", "is_difficult"):
            assert getattr(again, column).tolist() == getattr(expected, column).tolist()
    assert done.boxes == sum(records.num_boxes for records in kept.values())


def test_csv_says_what_it_loses_and_keeps_names_with_commas(make: Maker, tmp_path: Path) -> None:
    records = make(names=("a, b.png", "c.png", "d.png"))
    done = convert(records, "csv", tmp_path / "out")
    assert [loss.split(":")[0] for loss in done.losses] == [
        "1 crowd regions are left out",
        "1 difficult boxes are ordinary boxes now",
        "1 boxes of zero or negative size are left out",
        "image ids are lost",
        "category ids are lost",
        "supercategories are lost",
        "1 classes without boxes are lost",
    ]
    again = Dataset.open(tmp_path / "out").read("train")
    assert again.file_names == ("a, b.png", "c.png", "d.png")
    assert again.boxes_xywh[0].tolist() == pytest.approx([1.1, 2.2, 3.3, 4.4], rel=1e-15)
    spaced = make("spaced", names=(" a.png", "b.png", "c.png"))
    with pytest.raises(DataError, match="outer spaces"):
        convert(spaced, "csv", tmp_path / "spaced out")


def test_equal_names_of_different_images_are_kept_apart(make: Maker, tmp_path: Path) -> None:
    first, second = make("one"), make("two")
    convert({"train": first, "val": second}, "coco", tmp_path / "out")
    for split, records in (("train", first), ("val", second)):
        again = Dataset.open(tmp_path / "out").read(split)
        assert again.file_names[0] == f"{split}/a.png"
        assert again.path(0).read_bytes() == records.path(0).read_bytes()


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_names_that_differ_in_the_suffix_only(make: Maker, tmp_path: Path, form: str) -> None:
    records = make(names=("a.png", "a.bmp"))
    convert(records, form, tmp_path / "out")
    again = Dataset.open(tmp_path / "out").read("train")
    assert sorted(again.file_names) == ["a.png", "a_2.bmp"]
    assert again.num_boxes == (2 if form == "yolo" else 4)


def test_a_foreign_folder_is_left_alone(make: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train.json").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        convert(make(), "coco", out)
    assert [path.name for path in out.iterdir()] == ["train.json"]
    assert (out / "train.json").read_text() == "precious"
    with pytest.raises(DataError, match="is a file"):
        convert(make(), "coco", out / "train.json")


def test_a_second_conversion_replaces_the_first_and_nothing_else(make: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(make(), "yolo", out)
    (out / "notes.txt").write_text("mine")
    convert(make(names=("a.png", "d.png")), "yolo", out)
    assert Dataset.open(out).read("train").file_names == ("a.png", "d.png")  # no stale image or label
    assert (out / "notes.txt").read_text() == "mine"
    with pytest.raises(DataError, match="holds a conversion to yolo"):
        convert(make(), "coco", out)
    (out / "images" / "train" / "e.png").write_text("mine")
    with pytest.raises(DataError, match=r"e\.png: exists"):
        convert(make(names=("a.png", "e.png")), "yolo", out)


def test_a_manifest_cannot_delete_outside(make: Maker, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(make(), "coco", out)
    precious = tmp_path / "precious"
    precious.write_text("x")
    manifest = out / ".lw_retinanet_convert.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"files": ["../precious", str(precious), "train.json"]}))
    with pytest.raises(DataError, match="exists"):
        convert(make(), "coco", out)
    convert(make(names=("n.png", "m.png")), "coco", out)
    assert precious.exists()


def test_a_missing_image_is_found_before_anything_is_written(make: Maker, tmp_path: Path) -> None:
    records = make()
    records.path(2).unlink()
    with pytest.raises(ImageError, match=r"c\.png: no such image \(1 missing"):
        convert(records, "coco", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(records, "coco", tmp_path / "out", copy_images=False)
    assert not (tmp_path / "out" / "images").exists()


def test_refusals(make: Maker, tmp_path: Path) -> None:
    records = make()
    with pytest.raises(DataError, match="unknown annotation format"):
        convert(records, "pascal", tmp_path / "out")
    with pytest.raises(DataError, match="cannot be a file name"):
        convert({"../x": records}, "coco", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@hypothesis_settings(deadline=None, max_examples=30)
@given(boxes=st.lists(st.tuples(*[st.floats(-1e4, 1e4)] * 2, *[st.floats(0, 1e4)] * 2), max_size=5), areas=st.floats(0, 1e6))
def test_any_float_survives_coco(tmp_path_factory: pytest.TempPathFactory, boxes: list[tuple[float, ...]], areas: float) -> None:
    records = build_records(
        root=Path("nowhere"),
        file_names=["a.png"],
        sizes_hw=[(10, 10)],
        image_of_box=[0] * len(boxes),
        boxes_xywh=np.array(boxes).reshape(-1, 4),
        labels=[0] * len(boxes),
        categories=[Category(id=1, name="cat")],
        areas=np.full(len(boxes), areas),
    )
    out = tmp_path_factory.mktemp("out")
    convert(records, "coco", out, copy_images=False)
    assert Dataset.open(out).read("train").fingerprint() == records.fingerprint()


@pytest.mark.real
def test_real_data_around_the_forms(shared: Path, tmp_path: Path) -> None:
    records = Dataset.open(shared / "fixtures" / "voc100" / "voc_xml").read()
    convert({"train": records}, "voc", tmp_path / "voc")
    again = Dataset.open(tmp_path / "voc").read("train")
    assert again.fingerprint() == records.fingerprint()
    convert({"val": again}, "coco", tmp_path / "coco")
    assert Dataset.open(tmp_path / "coco").read("val").fingerprint() == records.fingerprint()
