"""Every remedy that a message about data names is followed here, and helps."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.split import divide
from lw_retinanet.errors import InputError

Change = Callable[[Path, dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of 20 x 10 with a box each."""
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (20, 10)).save(tmp_path / "images" / name)
    boxes = [{"id": k, "image_id": k, "category_id": 1, "bbox": [8, 3, 4, 4]} for k in (1, 2)]
    images = [{"id": k, "file_name": name, "width": 20, "height": 10} for k, name in ((1, "a.jpg"), (2, "b.jpg"))]
    (tmp_path / "train.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}))
    return tmp_path


def edit(folder: Path, change: Change) -> None:
    path = folder / "train.json"
    table = json.loads(path.read_text())
    change(folder, table)
    path.write_text(json.dumps(table))


def box(number: int, **values: object) -> Change:
    return lambda _, table: table["annotations"][number].update(values)


def image(number: int, **values: object) -> Change:
    return lambda _, table: table["images"][number].update(values)


def without(section: str, number: int) -> Change:
    return lambda _, table: table[section].pop(number)


def draw(name: str, content: bytes | None = None) -> Change:
    """Put an image there, or other bytes."""

    def change(folder: Path, _: dict[str, Any]) -> None:
        Image.new("RGB", (20, 10)).save(folder / "images" / name)
        if content is not None:
            (folder / "images" / name).write_bytes(content)

    return change


def both(*changes: Change) -> Change:
    return lambda folder, table: [change(folder, table) for change in changes]


def all_boxes(**values: object) -> Change:
    return both(box(0, **values), box(1, **values))


CLASSES: Change = lambda _, table: table["categories"].append({"id": 2, "name": "dog"})  # noqa: E731
LIST_IMAGE: Change = lambda _, table: table["images"].append({"id": 9, "file_name": "b.jpg", "width": 20, "height": 10})  # noqa: E731
NAME = "cat\nfish"
REMEDIES: dict[str, tuple[Change, str, Change]] = {
    "no id": (image(0, id=None), "without a usable id.* repair or remove them", both(without("images", 0), without("annotations", 0))),
    "box of words": (box(0, bbox=["x", 1, 2, 3]), "not the right numbers.* repair or remove them", without("annotations", 0)),
    "infinite box": (box(0, bbox=[1e99, 1, 2, 3]), "absurdly large.* repair or remove them", without("annotations", 0)),
    "crowd 2": (box(0, iscrowd=2), "unusable field.* repair or remove them", box(0, iscrowd=0)),
    "ids twice": (image(1, id=1), "image ids used twice.* give every image its own id", image(1, id=2)),
    "class without a name": (
        lambda _, table: table["categories"][0].pop("name"),
        "without a usable id or name.* repair them",
        lambda _, table: table["categories"][0].update(name="cat"),
    ),
    "class of two lines": (
        lambda _, table: table["categories"][0].update(name=NAME),
        "control characters.* rename the classes",
        lambda _, table: table["categories"][0].update(name="cat"),
    ),
    "class ids twice": (
        lambda _, table: table["categories"].append({"id": 1, "name": "dog"}),
        "category ids used twice.* give every category its own id",
        lambda _, table: table["categories"][1].update(id=2),
    ),
    "unknown image": (box(0, image_id=9), "an image that is not listed.* list the image or remove them", LIST_IMAGE),
    "unknown class": (box(0, category_id=2), "a class that is not listed.* list the class or remove them", CLASSES),
    "out of the folder": (
        image(0, file_name="../../a.jpg"),
        "leave the image folder.* write them relative to the image folder",
        image(0, file_name="a.jpg"),
    ),
    "missing": (image(0, file_name="c.jpg"), r"c\.jpg is missing; put it there", draw("c.jpg")),
    "missing, removed": (
        image(0, file_name="c.jpg"),
        "or take it out of the annotations",
        both(without("images", 0), without("annotations", 0)),
    ),
    "cut": (draw("a.jpg", b"\xff\xd8\xff\xe0"), r"a\.jpg.* replace the file", draw("a.jpg")),
    "text": (draw("a.jpg", b"<html>"), r"a\.jpg.* download the image again", draw("a.jpg")),
    "git lfs": (draw("a.jpg", b"version https://git-lfs.github.com/spec/v1\noid"), r"a\.jpg.* `git lfs pull`", draw("a.jpg")),
    "other size": (image(0, width=40), "its annotation says 40x10; .*correct the annotation or the file", image(0, width=20)),
    "no box": (
        lambda _, table: table["annotations"].clear(),
        "no boxes at all; check that this is the annotation file",
        lambda _, table: table["annotations"].append({"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 3, 4, 4]}),
    ),
    "fractions": (all_boxes(bbox=[0.4, 0.3, 0.2, 0.4]), "covers 1 x 1 pixel.*; check the box format", all_boxes(bbox=[8, 3, 4, 4])),
    "crowds": (all_boxes(iscrowd=1), "2 of the 2 boxes are crowd.*; clear these flags where they are wrong", box(0, iscrowd=0)),
}


@pytest.mark.parametrize("case", REMEDIES)
def test_what_a_message_about_a_data_set_says_helps(folder: Path, case: str) -> None:
    spoil, message, follow = REMEDIES[case]
    edit(folder, spoil)
    with pytest.raises(InputError, match=rf"(?s){message}"):
        Dataset.open(folder).ready("train")
    edit(folder, follow)
    assert Dataset.open(folder).ready("train").num_boxes >= 1


def rename(old: str, new: str) -> Change:
    def change(folder: Path, table: dict[str, Any]) -> None:
        (folder / "images" / old).rename(folder / "images" / new)
        table["images"][0]["file_name"] = new

    return change


@pytest.mark.parametrize(
    ("form", "spoil", "message", "follow"),
    [
        ("yolo", both(CLASSES, lambda _, t: t["categories"][1].update(name="cat")), "share one name.* rename one",
         lambda _, t: t["categories"][1].update(name="dog")),
        ("voc", lambda _, t: t["categories"][0].update(name=" cat"), "outer spaces; rename it",
         lambda _, t: t["categories"][0].update(name="cat")),
        ("csv", rename("a.jpg", " a.jpg"), "outer spaces.* rename the file", rename(" a.jpg", "a.jpg")),
        ("voc", rename("a.jpg", "a\udce9.jpg"), "no plain text.* rename the file", rename("a\udce9.jpg", "a.jpg")),
        ("coco", lambda folder, _: (folder / "images/a.jpg").unlink(), "no such image.* restore the files", draw("a.jpg")),
        ("coco", lambda folder, _: (folder / "images/a.jpg").unlink(), "or remove their entries",
         both(without("images", 0), without("annotations", 0))),
    ],
)  # fmt: skip
def test_what_a_message_about_writing_says_helps(folder: Path, form: str, spoil: Change, message: str, follow: Change) -> None:
    out = folder / "out"
    edit(folder, spoil)
    with pytest.raises(InputError, match=message):
        convert(Dataset.open(folder).read("train"), form, out)
    assert not out.exists()
    edit(folder, follow)
    convert(Dataset.open(folder).read("train"), form, out)
    assert Dataset.open(out).ready("train").num_boxes >= 1


def test_what_messages_about_the_folder_to_write_say_helps(folder: Path) -> None:
    records = Dataset.open(folder).read("train")
    (folder / "file").write_text("")
    (folder / "full").mkdir()
    (folder / "full" / "mine").write_text("")
    convert(records, "voc", folder / "voc")
    for place, message in (
        ("file", "is a file; name a folder"),
        ("full", "name a new folder"),
        ("voc", "holds a conversion to voc; name another folder for coco"),
    ):
        with pytest.raises(InputError, match=message):
            convert(records, "coco", folder / place)
    convert(records, "coco", folder / "new")
    assert (folder / "full" / "mine").exists()


def test_what_messages_about_splits_say_helps(folder: Path) -> None:
    with pytest.raises(InputError, match="no split 'val'; it has train: name one, or pass its annotation file alone"):
        Dataset.open(folder).ready("val")
    assert Dataset.open(folder / "train.json").ready().num_images == 2
    with pytest.raises(InputError, match=r"has no splits.* leave the split out, or pass a folder with train and val"):
        Dataset.open(folder / "train.json").ready("val")
    records = Dataset.open(folder).read("train")
    with pytest.raises(InputError, match=r"choose a pattern that matches more than one part|\^\[\^_\]\+") as caught:
        divide(records, 0.5, group="jpg")
    assert set(divide(records, 0.5, group="^.")) == {"train", "val"}, caught.value
    shutil.copy(folder / "train.json", folder / "val.json")
    with pytest.raises(InputError, match="the splits train, val; name the one to use"):
        Dataset.open(folder).read()
    assert Dataset.open(folder).read("val").num_images == 2


YAML, ROW = "train: images\nnames: [cat]\n", "0 0.5 0.5 0.2 0.4\n"
TABLE = "image,xmin,ymin,xmax,ymax,label\nimages/a.jpg,8,3,12,7,cat\n"
XML = (
    "<annotation><filename>a.jpg</filename><object><name>cat</name><bndbox><xmin>8</xmin><ymin>3</ymin><xmax>12</xmax><ymax>7</ymax></bndbox>"
    "</object></annotation>"
)
# File, wrong content, message, right content; for YOLO, the other of the two files is right.
TEXTS: dict[str, tuple[str, str | bytes, str, str]] = {
    "no names": ("data.yaml", "train: images\n", "a YOLO data file lists its classes under 'names'", YAML),
    "names is a number": ("data.yaml", "train: images\nnames: 3\n", "'names' is '?3'?; list the classes there", YAML),
    "no train": ("data.yaml", "names: [cat]\n", "add 'train' and 'val' with a folder or a list of images", YAML),
    "nc is wrong": ("data.yaml", YAML + "nc: 2\n", "correct one of them", YAML + "nc: 1\n"),
    "names is no name": (
        "data.yaml",
        "train: images\nnames: [null]\n",
        "a name such as null needs quotes",
        "train: images\nnames: ['null']\n",
    ),
    "train is a number": ("data.yaml", "train: [[1]]\nnames: [cat]\n", "write a folder, a text file of image paths, or a list", YAML),
    "a list of words": ("list.txt", "a picture\n", "line 1: not the path of an image; a list has one a line", "images/a.jpg\n"),
    "no such folder": ("data.yaml", "train: image\nnames: [cat]\n", "no such folder or list.* correct the path", YAML),
    "class of no name": ("labels/a.txt", ROW + "1 0.5 0.5 0.2 0.4\n", "list the class or remove them", ROW),
    "pixels": ("labels/a.txt", "0 10 5 4 4\n", "10 is no fraction of the image; divide by its width or height", ROW),
    "commas": ("labels/a.txt", ROW.replace(" ", ","), "not the right numbers.* repair or remove them", ROW),
    "labels in UTF-16": ("labels/a.txt", ROW.encode("utf-16"), "save the file as UTF-8", ROW),
    "unknown columns": ("t.csv", TABLE.replace("xmin", "bbox_x"), "the first line must name the columns image,xmin,ymin,xmax", TABLE),
    "short row": ("t.csv", TABLE + "images/b.jpg,8\n", "2 fields instead of 6.* repair or remove them", TABLE),
    "box without a label": ("t.csv", TABLE.replace("cat", ""), "a box without a label.* repair or remove them", TABLE),
    "table in Latin-1": (
        "t.csv",
        TABLE.replace("cat", "caf\u00e9").encode("latin-1"),
        "save the file as UTF-8",
        TABLE.replace("cat", "caf\u00e9"),
    ),
    "XML without a name": ("a.xml", XML.replace("<name>cat</name>", ""), "no <name>.* repair or remove them", XML),
    "XML in Latin-1": (
        "a.xml",
        XML.replace("cat", "caf\u00e9").encode("latin-1"),
        "save the file as UTF-8",
        XML.replace("cat", "caf\u00e9"),
    ),
    "cut XML": ("a.xml", XML[:-9], "cannot be read.* repair or remove them", XML),
    "cut JSON": ("train.json", '{"images": [', "repair or export it again", ""),
    "a list of detections": ("train.json", "[]", "pass the ground truth's annotation file", ""),
    "a packed data set": ("train.json", b"PK\x03\x04", "unpack it and pass the folder", ""),
}


@pytest.mark.parametrize("case", TEXTS)
def test_what_a_message_about_a_file_says_helps(folder: Path, case: str) -> None:
    name, wrong, message, right = TEXTS[case]
    coco = (folder / "train.json").read_text()
    (folder / "train.json").unlink()
    (folder / "labels").mkdir()
    if name in ("data.yaml", "labels/a.txt", "list.txt"):
        (folder / "data.yaml").write_text(YAML.replace("images", "list.txt") if name == "list.txt" else YAML)
        (folder / "labels/a.txt").write_text(ROW)
    file = folder / name if name != "a.xml" else folder / "images" / name
    source = file if name == "train.json" else file.parent if name == "a.xml" else folder

    def read() -> int:
        dataset = Dataset.open(source)
        return dataset.ready(dataset.or_whole("train")).num_boxes

    file.write_bytes(wrong if isinstance(wrong, bytes) else wrong.encode())
    with pytest.raises(InputError, match=rf"(?s){message}"):
        read()
    file.write_text(right or coco, encoding="utf-8")
    assert read() >= 1


def test_what_a_message_about_several_files_says_helps(folder: Path) -> None:
    for name in ("one.json", "two.json"):
        shutil.copy(folder / "train.json", folder / name)
    (folder / "train.json").unlink()
    with pytest.raises(InputError, match=r"several JSON files \(one\.json, two\.json\).* pass the one to use"):
        Dataset.open(folder)
    assert Dataset.open(folder / "two.json").ready().num_boxes == 2


def test_classes_that_differ_are_converted_one_split_at_a_time(folder: Path) -> None:
    (folder / "val.json").write_text((folder / "train.json").read_text().replace('"cat"', '"dog"'))
    splits = {split: Dataset.open(folder).read(split) for split in ("train", "val")}
    with pytest.raises(InputError, match=r"the classes of 'val' and 'train' differ.* convert them separately"):
        convert(splits, "yolo", folder / "out")
    for split, records in splits.items():
        convert({split: records}, "yolo", folder / f"out_{split}")
        assert Dataset.open(folder / f"out_{split}").read(split).class_names == records.class_names
