import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet.data.box_quality import require_boxes, usable
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError, ImageError


def save_coco(path: Path, image: str = "a.png", *, num_boxes: int = 1, images: Path | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5]} for i in range(num_boxes)]
    content = {
        "images": [{"id": 1, "file_name": image, "width": 10, "height": 10}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    path.write_text(json.dumps(content))
    if images is not None:
        images.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10, 10)).save(images / image)
    return path


def save_xml(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sides = "<xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>5</ymax>"
    path.write_text(f"<annotation><object><name>cat</name><bndbox>{sides}</bndbox></object></annotation>")
    return path


def save_yolo(folder: Path, val: str = "val") -> None:
    for split in ("train", val):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        Image.new("RGB", (10, 10)).save(folder / "images" / split / "a.png")
        (folder / "labels" / split / "a.txt").write_text("0 0.25 0.25 0.5 0.5\n")
    (folder / "data.yaml").write_text(f"train: images/train\n{val}: images/{val}\nnames: [cat]\n")


def make(layout: str, folder: Path) -> tuple[str, ...]:
    """Build a layout in an empty folder; returns its splits."""
    folder.mkdir(exist_ok=True)
    if layout == "ours":
        save_coco(folder / "train.json", images=folder / "images")
        save_coco(folder / "val.json")
        return ("train", "val")
    if layout == "coco":
        for split in ("val2017", "train2017"):
            save_coco(folder / "annotations" / f"instances_{split}.json", images=folder / split)
        save_coco(folder / "annotations" / "person_keypoints_train2017.json")
        return ("train", "val")
    if layout == "roboflow":
        for split in ("train", "valid", "test"):
            save_coco(folder / split / "_annotations.coco.json", images=folder / split)
        return ("train", "val", "test")
    if layout == "voc":
        save_xml(folder / "Annotations" / "a.xml")
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        for split in ("trainval", "cat_train"):
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("a\n")
        return ("trainval",)
    if layout == "xml":
        save_xml(folder / "a.xml")
        return ()
    if layout == "yolo":
        save_yolo(folder, val="test")
        return ("train", "test")
    if layout == "darknet":
        (folder / "obj.data").write_text("train = train.txt\nnames = obj.names\n")
        (folder / "obj.names").write_text("cat\n")
        (folder / "train.txt").write_text("a.png\n")
        (folder / "a.txt").write_text("0 0.25 0.25 0.5 0.5\n")
        Image.new("RGB", (10, 10)).save(folder / "a.png")
        return ("train",)
    assert layout == "csv"
    (folder / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax,label,split\na.png,0,0,5,5,cat,train\na.png,0,0,5,5,cat,val\n")
    Image.new("RGB", (10, 10)).save(folder / "a.png")
    return ("train", "val")


LAYOUTS = ("ours", "coco", "roboflow", "voc", "xml", "yolo", "darknet", "csv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_box(tmp_path: Path, layout: str) -> None:
    expected = make(layout, tmp_path)
    assert Dataset.open(tmp_path).splits == expected
    for split in expected or (None,):
        records = Dataset.open(tmp_path).read(split)
        assert records.boxes_xywh.tolist() == [[0, 0, 5, 5]]
        assert records.class_names == ("cat",)
        if layout not in ("voc", "xml"):
            assert records.path(0).is_file()


@pytest.mark.parametrize(
    ("layout", "split", "expected"),
    [("roboflow", "valid", "valid"), ("yolo", "val", "test"), ("voc", "train", None), ("darknet", None, None)],
)
def test_stand_ins_for_a_split(tmp_path: Path, layout: str, split: str | None, expected: str | None) -> None:
    make(layout, tmp_path)
    records = Dataset.open(tmp_path).read(split)
    assert records.num_boxes == 1
    if expected is not None:
        assert records.root.name == expected


def test_content_decides_not_the_extension(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    path = save_coco(tmp_path / "annotations.txt", images=tmp_path / "images")
    assert Dataset.open(path).read().num_boxes == 1
    assert Dataset.open(save_xml(tmp_path / "annotation.json")).read().num_boxes == 1
    table = tmp_path / "table.xml"
    table.write_text("\n\nimage_path,xmin,ymin,xmax,ymax,label\na.png,0,0,5,5,cat\n")
    assert Dataset.open(table).read().num_boxes == 1
    save_yolo(tmp_path / "yolo")
    (tmp_path / "yolo" / "data.yaml").rename(tmp_path / "yolo" / "data.csv")
    assert Dataset.open(tmp_path / "yolo" / "data.csv").splits == ("train", "val")


def test_the_only_json_of_a_folder(tmp_path: Path) -> None:
    save_coco(tmp_path / "labels.json")
    assert Dataset.open(tmp_path).read().num_boxes == 1
    save_coco(tmp_path / "more.json")
    with pytest.raises(DataError, match=r"several JSON files \(labels\.json, more\.json\)"):
        Dataset.open(tmp_path).read()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b'[{"image_id": 1}]', "detections"),
        (b"\x89PNG\0\0", "not a text file"),
        (b"hello\nworld", "not a known annotation format"),
        (b"names: [a]\n", "names no images"),
    ],
)
def test_unknown_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Dataset.open(tmp_path / "x").read()


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        Dataset.open(tmp_path / "nowhere").read()
    with pytest.raises(DataError, match="no annotations recognised"):
        Dataset.open(tmp_path).read()


def test_a_split_must_be_chosen_and_exist(tmp_path: Path) -> None:
    make("ours", tmp_path)
    with pytest.raises(DataError, match="splits train, val; name"):
        Dataset.open(tmp_path).read()
    with pytest.raises(DataError, match="no split 'test'; it has train, val: name one, or pass its annotation file alone"):
        Dataset.open(tmp_path).read("test")
    assert Dataset.open(tmp_path).read("val").file_names == Dataset.open(tmp_path / "val.json").read().file_names
    # Without this, a single training file would be its own validation set.
    with pytest.raises(DataError, match="has no splits"):
        Dataset.open(tmp_path / "train.json").read("val")


def test_which_split_a_job_means(tmp_path: Path) -> None:
    for layout, held_out, whole in (("ours", "val", "train"), ("yolo", "val", "train"), ("darknet", None, "train"), ("xml", None, None)):
        make(layout, tmp_path / layout)
        dataset = Dataset.open(tmp_path / layout)
        assert (dataset.held_out, dataset.or_whole("train")) == (held_out, whole)


def test_ready_refuses_what_would_stop_a_job_later(tmp_path: Path) -> None:
    make("ours", tmp_path)
    dataset = Dataset.open(tmp_path)
    assert dataset.ready("train", classes=[Category(id=5, name="cat")]).num_boxes == 1
    with pytest.raises(DataError, match="none of the model's 1 classes"):
        dataset.ready("train", classes=[Category(id=1, name="dog")])
    save_coco(tmp_path / "val.json", num_boxes=0)
    with pytest.raises(DataError, match=r"\(val\): 1 images but no boxes"):
        dataset.ready("val")
    Image.new("RGB", (10, 12)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.png is 10x12 pixels, its annotation says 10x10"):
        dataset.ready("train")
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png is missing"):
        dataset.ready("train")


def one_image(boxes: list[list[float]], size_hw: tuple[int, int] = (10, 20)) -> Records:
    return build_records(
        root=Path("x"),
        file_names=["a.jpg"],
        sizes_hw=[size_hw],
        image_of_box=[0] * len(boxes),
        boxes_xywh=boxes,
        labels=[0] * len(boxes),
        categories=[Category(id=1, name="cat")],
    )


def test_usable_after_clipping() -> None:
    boxes: list[list[float]] = [[0, 0, 1, 1], [19.5, 0, 5, 5], [-5, -5, 6, 6], [-5, 0, 5, 5], [0, 0, 0.9, 5], [3, 3, -2, -2], [0, 9, 5, 9]]
    assert usable(one_image(boxes)).tolist() == [True, False, True, False, False, False, True]
    # Of an image of unknown size nothing is cut off.
    assert usable(one_image(boxes, (0, 0))).tolist() == [True, True, True, True, False, False, True]
    assert usable(one_image([])).shape == (0,)


def test_require_boxes() -> None:
    require_boxes(one_image([[0, 0, 5, 5]]), "here")
    with pytest.raises(DataError, match="here: 1 images but no boxes"):
        require_boxes(one_image([]), "here")
    with pytest.raises(DataError, match="none of the 1 boxes"):
        require_boxes(one_image([[0, 0, 0, 5]]), "here")


@pytest.mark.parametrize("field", ["sizes_hw", "boxes_xywh", "labels", "is_crowd", "is_difficult", "areas", "annotation_ids"])
def test_fingerprint_sees_every_array(field: str) -> None:
    records = one_image([[0, 0, 5, 5], [1, 1, 2, 2]])
    array: NDArray[np.float64] = getattr(records, field).copy()
    array.flat[-1] = 1 - array.flat[-1]
    change: dict[str, Any] = {field: array}
    assert dataclasses.replace(records, **change).fingerprint() != records.fingerprint()


def test_fingerprint_of_names_classes_and_place() -> None:
    records = one_image([[0, 0, 5, 5]])
    assert dataclasses.replace(records, root=Path("moved")).fingerprint() == records.fingerprint()
    changes: list[dict[str, Any]] = [{"file_names": ("b.jpg",)}, {"image_ids": ("1",)}, {"categories": (Category(id="1", name="cat"),)}]
    for change in changes:
        assert dataclasses.replace(records, **change).fingerprint() != records.fingerprint()


def test_a_subset_is_whole_records() -> None:
    records = build_records(
        root=Path("x"),
        file_names=["a.jpg", "b.jpg", "c.jpg"],
        image_ids=[7, 8, 9],
        sizes_hw=[(10, 20), (30, 40), (50, 60)],
        image_of_box=[0, 2, 2],
        boxes_xywh=[[0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]],
        labels=[0, 1, 0],
        categories=[Category(id=1, name="cat"), Category(id=2, name="dog")],
        is_crowd=[False, True, False],
    )
    some = records.subset(np.array([2, 1]))
    assert (list(some.file_names), list(some.image_ids), some.sizes_hw.tolist()) == (["c.jpg", "b.jpg"], [9, 8], [[50, 60], [30, 40]])
    assert some.offsets.tolist() == [0, 2, 2]
    assert some.boxes(0).tolist() == [[2, 2, 5, 5], [4, 4, 9, 9]]
    assert (some.labels.tolist(), some.is_crowd.tolist(), some.annotation_ids.tolist()) == ([1, 0], [True, False], [2, 3])
    assert records.subset(np.array([1])).num_boxes == 0
    assert records.subset(np.arange(3)).fingerprint() == records.fingerprint()


@pytest.mark.real
def test_the_same_images_in_three_forms(shared: Path) -> None:
    folder = shared / "fixtures" / "voc100"

    def table(source: Path) -> dict[str, list[tuple[str, NDArray[np.float64]]]]:
        records = Dataset.open(source).read()
        assert (records.num_images, records.num_boxes, len(records.categories)) == (100, 273, 20)
        assert records.root.name == "images"
        return {
            name: sorted(
                ((records.class_names[label], box) for label, box in zip(records.labels[records.rows(i)], records.boxes(i), strict=True)),
                key=lambda pair: (pair[0], *np.round(pair[1]).tolist()),
            )
            for i, name in enumerate(records.file_names)
        }

    truth = table(folder / "ground_truth.json")
    # XML and COCO hold the same whole numbers; YOLO has 6 digits, so centre and half a side err by 0.5e-6 and 0.25e-6 of 500 px.
    for source, tolerance in (("voc_xml", 0.0), ("coco", 0.0), ("yolo", 0.75e-6 * 500)):
        other = table(folder / source)
        assert other.keys() == truth.keys()
        for name, boxes in truth.items():
            assert [label for label, _ in other[name]] == [label for label, _ in boxes]
            for (_, box), (_, expected) in zip(other[name], boxes, strict=True):
                np.testing.assert_allclose(box, expected, rtol=0, atol=tolerance + 1e-9 * (tolerance > 0))
