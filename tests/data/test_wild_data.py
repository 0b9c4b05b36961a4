"""Data sets as people's tools and machines leave them; each test is a kind of trouble of public bug reports, in several forms."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.check import check
from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.annotation_format import read_text
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError, ImageError, InputError

ROW = "0 0.5 0.5 0.2 0.4\n"  # of a 20 x 10 image: 8, 3, 4, 4
BOX = [8.0, 3.0, 4.0, 4.0]
YAML = "train: images\nnames: [cat]\n"


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 10)).save(path)


def text(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def xml(filename: str, box: tuple[int, int, int, int] = (8, 3, 12, 7), name: str = "cat", more: str = "") -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<annotation><filename>{filename}</filename><size><width>20</width><height>10</height></size>"
        f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object></annotation>"
    )


def coco(names: list[str], **changes: object) -> str:
    images = [{"id": i, "file_name": name, "width": 20, "height": 10} for i, name in enumerate(names)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": BOX} | changes for i in range(len(names))]
    return json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]})


def ready(path: Path, split: str | None = None) -> Records:
    dataset = Dataset.open(path)
    return dataset.ready(split or dataset.or_whole("train"))


@pytest.mark.parametrize("folder", [".ipynb_checkpoints", "@eaDir/a.jpg", "__MACOSX", "Thumbs"])
def test_hidden_and_thumbnail_folders_are_no_part_of_a_data_set(tmp_path: Path, folder: str) -> None:
    text(tmp_path / "data.yaml", YAML)
    text(tmp_path / "labels/a.txt", ROW)
    for name in ("a.JPG", f"{folder}/a-checkpoint.jpg", "._a.jpg"):
        image(tmp_path / "images" / name)
    assert ready(tmp_path).file_names == ("a.JPG",)


def test_hidden_files_are_no_candidates(tmp_path: Path) -> None:
    for name in ("data/._boxes.json", "voc/._a.xml", "yolo/._set.yaml", "csv/._boxes.csv"):
        text(tmp_path / name, b"\0\5\26\7\0\2\0\0Mac OS X")
    for folder in ("data", "voc", "yolo/images", "csv"):
        image(tmp_path / folder / "a.jpg")
    text(tmp_path / "data/boxes.JSON", coco(["a.jpg"]))
    text(tmp_path / "voc/a.XML", xml("a.jpg"))
    text(tmp_path / "yolo/set.yaml", YAML)
    text(tmp_path / "yolo/labels/a.TXT", ROW)
    text(tmp_path / "csv/boxes.CSV", "image,xmin,ymin,xmax,ymax,label\na.jpg,8,3,12,7,cat\n")
    for folder in ("data", "voc", "yolo", "csv"):
        assert ready(tmp_path / folder).boxes_xywh[0].tolist() == pytest.approx(BOX), folder


def test_links_that_lead_nowhere_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = text(tmp_path / "set/data.yaml", YAML).parent
    image(folder / "images/a.jpg")
    text(folder / "labels/a.txt", ROW)
    (folder / "images/disk").symlink_to(tmp_path / "unmounted")
    ready(folder)
    assert "images/disk: this link leads nowhere, and nothing behind it is used; restore what it leads to" in caplog.text
    (tmp_path / "unmounted").mkdir()
    caplog.clear()
    ready(folder)
    assert not caplog.text
    (folder / "images/b.jpg").symlink_to(tmp_path / "not fetched.jpg")
    with pytest.raises(DataError, match=r"images that do not exist: 1 \(\S+b\.jpg\); restore the files"):
        ready(folder)


def test_links_are_followed_and_circles_end(tmp_path: Path) -> None:
    text(tmp_path / "set/data.yaml", YAML)
    for place, name in (("set", "a"), ("store", "b")):
        image(tmp_path / place / f"images/{name}.jpg")
        text(tmp_path / place / f"labels/{name}.txt", ROW)
    (tmp_path / "set/images/linked").symlink_to(tmp_path / "store/images")
    (tmp_path / "set/labels/linked").symlink_to(tmp_path / "store/labels")
    (tmp_path / "set/images/circle").symlink_to(tmp_path / "set/images")
    records = ready(tmp_path / "set")
    assert (records.file_names, records.num_boxes) == (("a.jpg", "linked/b.jpg"), 2)


def test_a_folder_images_inside_images(tmp_path: Path) -> None:
    text(tmp_path / "data.yaml", YAML)
    for name in ("a", "shop/images/b", "shop/images/c"):
        image(tmp_path / f"images/{name}.jpg")
    text(tmp_path / "labels/a.txt", ROW)
    text(tmp_path / "labels/shop/images/b.txt", ROW)
    text(tmp_path / "images/shop/labels/c.txt", ROW)
    assert ready(tmp_path).num_boxes == 3


def test_labels_and_images_without_each_other_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text(tmp_path / "data.yaml", YAML)
    for name in ("a", "b"):
        image(tmp_path / f"images/{name}.jpg")
    for name in ("a", "lost", "classes"):
        text(tmp_path / f"labels/{name}.txt", ROW if name != "classes" else "cat\n")
    ready(tmp_path)
    assert "1 images have no label file and are background; 1 label files have no image and are not read" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "images\\a b.jpg",
        "..\\..\\media\\upload\\4\\a b.jpg",
        "C:\\set\\images\\a b.jpg",
        "/mnt/set/images/a b.jpg",
        "{here}/images/a b.jpg",
    ],
)
def test_backslashes_and_paths_of_other_machines(tmp_path: Path, name: str) -> None:
    name = name.format(here=tmp_path)
    image(tmp_path / "images/a b.jpg")
    other = {
        "coco.json": coco([name]),
        "boxes.csv": f"image,xmin,ymin,xmax,ymax,label\n{name},8,3,12,7,cat\n",
        "Annotations/a b.xml": xml(name),
    }
    for file, content in other.items():
        records = ready(text(tmp_path / file, content))
        assert (records.boxes_xywh.tolist(), Path(records.path(0)).name) == ([BOX], "a b.jpg"), file
    text(tmp_path / "train.txt", f"{name}\n")
    text(tmp_path / "labels/a b.txt", ROW)
    assert ready(text(tmp_path / "data.yaml", "train: train.txt\nnames: [cat]\n")).num_boxes == 1


def test_dropping_parts_of_a_path_never_makes_two_images_one(tmp_path: Path) -> None:
    image(tmp_path / "images/1.jpg")
    text(tmp_path / "x.json", coco(["monday/1.jpg", "tuesday/1.jpg"]))
    with pytest.raises(InputError, match=r"monday/1\.jpg is missing and 1 more"):
        ready(tmp_path / "x.json")


def test_a_backslash_may_be_part_of_a_name(tmp_path: Path) -> None:
    image(tmp_path / "a\\b.png")
    assert ready(text(tmp_path / "x.json", coco(["a\\b.png"]))).file_names == ("a\\b.png",)


@pytest.mark.parametrize("line", ["my shot (1)", "my shot (1) 1", "my shot (1)  -1", "my shot (1).jpg"])
def test_names_with_spaces_in_a_list(tmp_path: Path, line: str) -> None:
    for name in ("my", "my shot (1)"):
        image(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", xml(f"{name}.jpg"))
    text(tmp_path / "ImageSets/Main/train.txt", f"{line}\n")
    assert ready(tmp_path).file_names == ("my shot (1).jpg",)


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "csv"])
def test_what_is_written_with_spaces_is_read_back(tmp_path: Path, form: str) -> None:
    names = ["shot.jpg", "shot (1).jpg", "shot (2) 1.jpg"]
    for name in names:
        image(tmp_path / "in" / name)
    convert(ready(text(tmp_path / "in/x.json", coco(names))), form, tmp_path / "out")
    assert sorted(ready(tmp_path / "out").file_names) == sorted(names)


@pytest.mark.parametrize(
    "content",
    [
        f'<?xml version="1.0" encoding="GBK"?>{xml("a.jpg", name="猫")}'.encode("gbk"),
        f'<?xml version="1.0" encoding="UTF-16"?>{xml("a.jpg", name="猫")}'.encode("utf-16"),
        xml("a.jpg", name="猫").encode("utf-16-le"),
        f"<?xml version='1.0' encoding='Shift_JIS' ?>\n{xml('a.jpg', name='猫')}".encode("shift-jis"),
        xml("a.jpg", name="猫").encode("utf-8-sig"),
    ],
)
def test_the_declared_encoding_of_xml_holds(tmp_path: Path, content: bytes) -> None:
    image(tmp_path / "a.jpg")
    assert ready(text(tmp_path / "a.xml", content)).class_names == ("猫",)
    assert ready(tmp_path).class_names == ("猫",)


def test_an_encoding_that_is_none_is_said(tmp_path: Path) -> None:
    for encoding in ("latin-17", "hex", "punycode", "utf-8"):
        with pytest.raises(DataError, match="save the file as UTF-8"):
            ready(
                text(
                    tmp_path / "a.xml",
                    f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + xml("a.jpg", name="\xe9").encode("latin-1"),
                )
            )


def test_class_names_stay_the_text_that_was_written(tmp_path: Path) -> None:
    names = ["no", "yes", "08", "010", "1:30", "1e5", "2024-02-31", "0x1F", ".inf", "red"]
    image(tmp_path / "images/a.jpg")
    text(tmp_path / "labels/a.txt", ROW)
    text(tmp_path / "data.yaml", f"train: images\nnc: {len(names)}\nnames:\n" + "".join(f"  {i}: {name}\n" for i, name in enumerate(names)))
    records = ready(tmp_path)
    assert records.class_names == tuple(names)
    convert(records, "yolo", tmp_path / "out")
    assert ready(tmp_path / "out").class_names == tuple(names)
    assert "path" not in (tmp_path / "out/data.yaml").read_text()  # Ultralytics would take "." as the working directory


def test_the_image_of_the_xml_files_own_name_wins(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        image(tmp_path / f"JPEGImages/{name}.jpg")
        text(tmp_path / f"Annotations/{name}.xml", xml(f"{other}.jpg", name=name))
    records = ready(tmp_path)
    assert [records.class_names[label] for label in records.labels] == ["a", "b"]
    assert records.file_names == ("a.jpg", "b.jpg")
    assert "2 XML files name another image, and are used for that of their own name; details: lw-retinanet data check" in caplog.text


def test_voc_with_sub_folders_and_in_lower_case(tmp_path: Path) -> None:
    for clip in ("one", "two"):
        image(tmp_path / f"cvat/JPEGImages/{clip}/000.jpg")
        text(tmp_path / f"cvat/Annotations/{clip}/000.xml", xml(f"{clip}/000.jpg", name=clip))
        image(tmp_path / f"kaggle/images/{clip}.png")
        text(tmp_path / f"kaggle/annotations/{clip}.xml", xml(f"{clip}.png", name=clip))
    text(tmp_path / "cvat/ImageSets/Main/default.txt", "one/000\ntwo/000\n")
    assert ready(tmp_path / "cvat").file_names == ("one/000.jpg", "two/000.jpg")
    assert ready(tmp_path / "kaggle").file_names == ("one.png", "two.png")


@pytest.mark.parametrize("box", [(12, 3, 8, 7), (8, 7, 12, 3), (12, 7, 8, 3)])
def test_reversed_corners_are_put_in_order_everywhere(
    tmp_path: Path, box: tuple[int, int, int, int], caplog: pytest.LogCaptureFixture
) -> None:
    image(tmp_path / "images/a.jpg")
    x0, y0, x1, y1 = box
    row = f"0 {(x0 + x1) / 40} {(y0 + y1) / 20} {(x1 - x0) / 20} {(y1 - y0) / 10}\n"
    text(tmp_path / "labels/a.txt", row)
    for file, content in (
        ("boxes.csv", f"image,xmin,ymin,xmax,ymax,label\na.jpg,{x0},{y0},{x1},{y1},cat\n"),
        ("Annotations/a.xml", xml("a.jpg", box)),
        ("x.json", coco(["a.jpg"], bbox=[x0, y0, x1 - x0, y1 - y0])),
        ("data.yaml", YAML),
    ):
        caplog.clear()
        records = ready(text(tmp_path / file, content))
        assert records.boxes_xywh[0].tolist() == pytest.approx(BOX), file
        assert records.areas.tolist() == pytest.approx([16.0]), file
        assert "1 of 1 boxes are repaired (1 reversed corners)" in caplog.text, file


def test_an_image_listed_twice_is_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = json.loads(coco(["a.jpg", "b.jpg", "./a.jpg"]))
    content["annotations"].append(
        {"id": 9, "image_id": 2, "category_id": 1, "bbox": [1, 1, 3, 3]}
    )  # the other box of a.jpg is the same twice
    content["annotations"].append({"id": 10, "image_id": 1, "category_id": 1, "bbox": BOX})  # b.jpg is listed once, and keeps its copy
    for name in ("a.jpg", "b.jpg"):
        image(tmp_path / name)
    path = text(tmp_path / "x.json", json.dumps(content))
    records = ready(path)
    assert (list(records.file_names), records.offsets.tolist()) == (["a.jpg", "b.jpg"], [0, 2, 4])
    assert records.boxes_xywh[1].tolist() == [1, 1, 3, 3]
    assert "1 more entries of a file joined with its first" in caplog.text
    assert Dataset.open(path).read(joined=False).num_images == 3  # so that detections of its image ids can be scored


@pytest.mark.parametrize("kind", ["crowd", "difficult"])
def test_nothing_but_crowds_or_difficult_objects_is_refused(tmp_path: Path, kind: str) -> None:
    image(tmp_path / "a.jpg")
    path = (
        text(tmp_path / "x.json", coco(["a.jpg"], iscrowd=1))
        if kind == "crowd"
        else text(tmp_path / "a.xml", xml("a.jpg", more="<difficult>1</difficult>"))
    )
    with pytest.raises(DataError, match=f"1 of the 1 boxes are {kind}, so nothing can be learned or measured"):
        ready(path)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    for name in ("b" * 300 + ".jpg", "a/" * 3000 + "a.jpg", "\ud800.jpg", "no\nwhere\x1b[31m.jpg", "a\0.jpg"):
        with pytest.raises(InputError) as caught:
            ready(text(tmp_path / "x.json", coco(["a.jpg", name])))
        assert len(str(caught.value)) < 10_000
        report = check(Dataset.open(tmp_path / "x.json"))
        assert report.num_errors == 1
        assert "\x1b" not in "".join(report.lines())
    with pytest.raises(DataError, match="no such file or folder"):
        Dataset.open(tmp_path / ("x" * 300))


@pytest.mark.parametrize("name", ["re\nd", "\x1b[31mred", "\u202egnp.red", "\ud83d", "x" * 100_000])
def test_class_names_that_are_no_line_of_text(tmp_path: Path, name: str) -> None:
    image(tmp_path / "a.jpg")
    content = json.loads(coco(["a.jpg"]))
    content["categories"][0]["name"] = name
    with pytest.raises(DataError, match="class names with control characters") as caught:
        ready(text(tmp_path / "x.json", json.dumps(content)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_sizes_beyond_reason(tmp_path: Path) -> None:
    content = json.loads(coco(["a.jpg"]))
    content["categories"] += [{"id": n, "name": str(n)} for n in range(2, 10_003)]
    with pytest.raises(DataError, match="more than 10,000 classes"):
        Dataset.open(text(tmp_path / "x.json", json.dumps(content))).read()
    with (tmp_path / "big.json").open("wb") as file:
        file.write(b"{")
        file.truncate(3 * 2**30)
    with pytest.raises(DataError, match=r"3\.0 GiB is too much for an annotation file \(at most 2 GiB\)"):
        read_text(tmp_path / "big.json")


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", xml("a.jpg"))
    os.mkfifo(tmp_path / "b.xml")
    with pytest.raises(DataError, match=r"b\.xml: not a regular file"):
        ready(tmp_path)


def bomb() -> str:
    return "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize("end", ["train: images\nnames: *a9\n", "train: *a9\nnames: [cat]\n", "train: images\nnames: [cat]\nnc: *a9\n"])
def test_alias_bombs_end_at_once(tmp_path: Path, end: str) -> None:
    with pytest.raises(DataError, match="aliases") as caught:
        ready(text(tmp_path / "data.yaml", bomb() + end))
    assert len(str(caught.value)) < 500


Change = Callable[[dict[str, object]], object]


@pytest.mark.parametrize("change", [lambda c: c.pop("annotations"), lambda c: c.update(annotations={})])
def test_coco_without_a_list_of_annotations_is_refused_by_all(tmp_path: Path, change: Change) -> None:
    content = json.loads(coco(["a.jpg"]))
    change(content)
    path = text(tmp_path / "x.json", json.dumps(content))
    with pytest.raises(DataError, match="no list 'annotations'"):
        ready(path)
    assert check(Dataset.open(path)).num_errors == 1


@pytest.mark.parametrize("ending", ["jpg", "png"])
def test_training_is_not_started_with_a_cut_image(tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8)).save(tmp_path / f"{name}.{ending}")
    content = (tmp_path / f"b.{ending}").read_bytes()
    path = text(tmp_path / "x.json", coco([f"a.{ending}", f"b.{ending}"]))
    (tmp_path / f"b.{ending}").write_bytes(content + b"\0" * 100)  # more bytes behind the end do no harm
    assert ready(path).num_images == 2
    (tmp_path / f"b.{ending}").write_bytes(content[:-60])
    with pytest.raises(ImageError, match=rf"b\.{ending}"):
        ready(path)


def test_names_of_classes_and_splits_are_harmless_in_the_report(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    content = json.loads(coco(["a.jpg"]))
    content["categories"][0]["name"] = "\x1b[31mred\u202e"
    lines = check(Dataset.open(text(tmp_path / "x.json", json.dumps(content)))).lines()
    lines += check(Dataset.open(text(tmp_path / "x.csv", "image,xmin,ymin,xmax,ymax,label,split\na.jpg,1,1,5,5,cat,\x1b[31m\n"))).lines()
    assert all(line.isprintable() for line in lines)


def test_a_split_without_images_or_with_nothing_but_crowds_fails_the_check(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    reports = [
        check(Dataset.open(text(tmp_path / "x.csv", "image,xmin,ymin,xmax,ymax,label\n"))),
        check(Dataset.open(text(tmp_path / "x.json", coco(["a.jpg"], iscrowd=1)))),
    ]
    assert [[problem.kind for problem in report.splits[0].problems if problem.severity == "error"] for report in reports] == [
        ["no_images"],
        ["all_ignored"],
    ]


def test_tables_with_the_line_ends_of_old_macs(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    assert ready(text(tmp_path / "x.csv", "image,xmin,ymin,xmax,ymax,label\ra.jpg,8,3,12,7,cat\r")).boxes_xywh.tolist() == [BOX]


def test_a_cut_image_fails_the_check_unless_it_is_quick(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 20, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    dataset = Dataset.open(text(tmp_path / "x.json", coco(["a.png"])))
    seen: list[str] = []

    def progress(items, total, what):  # type: ignore[no-untyped-def]
        seen.append(f"{what} {total}")
        return items

    assert [problem.kind for problem in check(dataset, progress=progress).splits[0].problems] == ["unreadable_image"]
    assert seen == ["checking images 1"]
    assert check(dataset, quick=True).num_errors == 0


def yolo_row(box: tuple[float, float, float, float]) -> str:
    return "0 " + " ".join(map(str, box)) + "\n"


CORNERS = [(x, y, x + 5, y + 3) for x in (1, 6, 12) for y in (0.5, 3, 6)]  # in an image of 20 x 10


@pytest.mark.parametrize("form", ["coco", "yolo"])
def test_corners_in_place_of_width_and_height_are_refused(tmp_path: Path, form: str) -> None:
    """The remedy is followed: written as the format wants them, the same boxes are read."""
    image(tmp_path / "images/a.jpg")
    text(tmp_path / "data.yaml" if form == "yolo" else tmp_path / "ignored.txt", YAML)

    def write(boxes: list[tuple[float, float, float, float]]) -> None:
        if form == "yolo":
            text(tmp_path / "labels/a.txt", "".join(yolo_row((a / 20, b / 10, c / 20, d / 10)) for a, b, c, d in boxes))
        else:
            table = json.loads(coco(["a.jpg"]))
            table["annotations"] = [{**table["annotations"][0], "id": i, "bbox": box} for i, box in enumerate(boxes)]
            text(tmp_path / "train.json", json.dumps(table))

    write([(a, b, c, d) for a, b, c, d in CORNERS])
    with pytest.raises(
        DataError, match="would all fit if their four numbers were two corners: 1 \\(9 boxes\\); write them as the format wants"
    ):
        ready(tmp_path)
    write([(a + 2.5, b + 1.5, 5, 3) if form == "yolo" else (a, b, 5, 3) for a, b, _, _ in CORNERS])
    np.testing.assert_allclose(ready(tmp_path).boxes_xywh, [(a, b, 5, 3) for a, b, _, _ in CORNERS], atol=1e-6)


def test_boxes_that_reach_out_are_no_corners(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    table = json.loads(coco(["a.jpg"]))
    boxes = [(15, 2, 18, 5)] * 8 + [(12, 4, 6, 5)] * 2  # the last two are no corners
    table["annotations"] = [{**table["annotations"][0], "id": i, "bbox": box} for i, box in enumerate(boxes)]
    text(tmp_path / "x.json", json.dumps(table))
    assert ready(tmp_path / "x.json").num_boxes == 10


@pytest.mark.parametrize(
    ("file", "written"), [("cafe\u0301.jpg", "caf\u00e9.jpg"), ("caf\u00e9.jpg", "cafe\u0301.jpg"), ("my a.jpg", "my%20a.jpg")]
)
def test_names_in_another_spelling_are_found(tmp_path: Path, file: str, written: str, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "images" / file)
    text(tmp_path / "train.json", coco([written]))
    assert ready(tmp_path).file_names == (file,)
    assert "1 image names spelled as the files are" in caplog.text


def test_names_below_the_data_sets_own_folder_are_no_surprise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image(tmp_path / "images/a.jpg")
    text(tmp_path / "train.json", coco(["./images/a.jpg"]))
    assert ready(tmp_path).num_images == 1
    assert not caplog.text


def test_an_xml_file_of_two_images_is_refused_until_its_folder_tells(tmp_path: Path) -> None:
    for folder in ("mon", "tue"):
        image(tmp_path / f"JPEGImages/{folder}/a.jpg")
    place = text(tmp_path / "Annotations/a.xml", xml("a.jpg"))
    with pytest.raises(DataError, match=r"several images could belong to: 1 \(a\.xml: \S+ or \S+\); put the XML files into sub-folders"):
        ready(tmp_path)
    place.write_text(xml("a.jpg").replace("<annotation>", "<annotation><folder>tue</folder>"))
    assert ready(tmp_path).path(0).parent.name == "tue"
    place.write_text(xml("a.jpg"))
    (tmp_path / "Annotations/tue").mkdir()
    place.rename(tmp_path / "Annotations/tue/a.xml")
    assert ready(tmp_path).path(0).parent.name == "tue"


@pytest.mark.parametrize("mark", ["\t", ";", ","])
def test_tables_of_spreadsheets(tmp_path: Path, mark: str) -> None:
    image(tmp_path / "a.jpg")
    table = "image,xmin,ymin,xmax,ymax,label\na.jpg,8,3,20,10,cat\n".replace(",", mark)
    file = text(tmp_path / "x.csv", table.encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16 text; save the file as UTF-8"):
        ready(tmp_path)
    file.write_text(table)
    assert ready(tmp_path).boxes_xywh.tolist() == [[8, 3, 12, 7]]
    file.write_text(table.replace("xmin", "x").replace("ymin", "y").replace("xmax", "width").replace("ymax", "height"))
    with pytest.raises(DataError, match="the first line must name the columns image,xmin,ymin,xmax,ymax,label"):
        ready(tmp_path)
