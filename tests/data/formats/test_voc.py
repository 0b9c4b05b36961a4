from pathlib import Path

import pytest
from PIL import Image

from lw_retinanet.data.formats.voc import FORMAT as VOC
from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import DataError


def voc_object(name: str = "cat", box: tuple[str, str, str, str] = ("1", "2", "11", "22"), more: str = "") -> str:
    sides = "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write(folder: Path, stem: str, objects: str = "", *, filename: str | None = None, size: tuple[int, int] = (40, 30)) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.xml"
    name = f"{stem}.jpg" if filename is None else filename
    size_element = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>\n<filename>{name}</filename>\n{size_element}\n{objects}\n</annotation>")
    return path


def save_image(folder: Path, name: str, size: tuple[int, int] = (50, 20)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(folder / name)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images, two of them listed, in VOC's own folders."""
    write(tmp_path / "Annotations", "b", voc_object("dog", ("1.5", "2", "11.75", "22"), "<difficult>1</difficult>") + voc_object())
    write(tmp_path / "Annotations", "a", size=(0, 0))
    write(tmp_path / "Annotations", "c", voc_object("ant"))
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        save_image(tmp_path / "JPEGImages", name)
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("b\na\n\n")
    return tmp_path


def test_whole_folder(voc: Path) -> None:
    records = VOC.read(voc)
    assert records.root == (voc / "JPEGImages").resolve()
    assert records.file_names == ("a.jpg", "b.jpg", "c.jpg")
    assert records.class_names == ("ant", "cat", "dog")
    assert records.category_ids == (1, 2, 3)
    assert records.boxes_xywh.tolist() == [[1.5, 2, 10.25, 20], [1, 2, 10, 20], [1, 2, 10, 20]]
    assert records.is_difficult.tolist() == [True, False, False]
    assert records.sizes_hw.tolist() == [[20, 50], [30, 40], [30, 40]]  # 0 x 0 is read from the image


def test_a_split_keeps_the_classes_of_all_files(voc: Path) -> None:
    records = VOC.read(voc, split="train")
    assert records.file_names == ("b.jpg", "a.jpg")
    assert records.class_names == ("ant", "cat", "dog")


def test_a_list_that_names_no_file(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "val.txt").write_text("zebra\n")
    with pytest.raises(DataError, match=r"zebra\.xml does not exist"):
        VOC.read(voc, split="val")


def test_a_stale_filename_gives_way_to_the_xml_name(tmp_path: Path) -> None:
    write(tmp_path, "x", voc_object(), filename="C:\\old\\one.jpg")
    save_image(tmp_path, "x.PNG")
    assert VOC.read(tmp_path).file_names == ("x.PNG",)


@pytest.mark.parametrize("filename", ["../../x.jpg", "/etc/x.jpg", "http://host/x.jpg"])
def test_an_unsafe_filename_is_refused(tmp_path: Path, filename: str) -> None:
    with pytest.raises(DataError, match="leave the image folder"):
        VOC.read(write(tmp_path, "x", filename=filename))


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    part = f"<part><name>head</name>{voc_object('head')}</part>"
    records = VOC.read(write(tmp_path, "x", voc_object("person", more=part)))
    assert records.class_names == ("person",)


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>cat</name>", "line 5, column 3: mismatched tag"),
        (voc_object("cat", ("1", "2", "x", "4")), r"object 1: .*xmax='x'"),
        (voc_object("cat", ("1", "2", "", "4")), r"xmax=''"),
        (voc_object() + voc_object("cat", ("1", "2", "nan", "4")), "object 2: 1, 2, nan, 4"),
        (voc_object(""), "no <name>"),
    ],
)
def test_bad_objects_are_located(tmp_path: Path, objects: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"x\.xml.*{message}"):
        VOC.read(write(tmp_path, "x", objects))


def test_entities_are_forbidden(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    (tmp_path / "x.xml").write_text(bomb)
    with pytest.raises(DataError, match="forbidden XML"):
        VOC.read(tmp_path / "x.xml")


def test_the_tolerant_reader_keeps_the_rest(tmp_path: Path) -> None:
    write(tmp_path, "a", voc_object())
    (tmp_path / "b.xml").write_text("<svg/>")
    problems = Problems(tmp_path)
    assert VOC.read(tmp_path, problems=problems).num_boxes == 1
    assert "broken_file" in [problem.kind for problem in problems.found() if problem.count == 1]


def test_sizes_of_nothing_are_counted_and_taken_from_the_images(tmp_path: Path) -> None:
    for name, size in (("a", (0, 0)), ("b", (40, 0)), ("c", (40, 30))):
        write(tmp_path, name, voc_object(), filename=f"{name}.png", size=size)
        save_image(tmp_path, f"{name}.png")
    problems = Problems(tmp_path)
    assert VOC.read(tmp_path, problems=problems).sizes_hw.tolist() == [[20, 50], [20, 50], [30, 40]]
    assert {problem.kind: problem.count for problem in problems.found()} == {"no_size": 2}


def test_a_folder_without_xml(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no XML files"):
        VOC.read(tmp_path)
