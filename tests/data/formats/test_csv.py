from pathlib import Path

import pytest
from PIL import Image

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.csv import FORMAT as CSV
from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import DataError

HEADER = "image,xmin,ymin,xmax,ymax,label\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (50, 20)).save(tmp_path / name)
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_boxes_of_an_image_need_not_stand_together(folder: Path) -> None:
    records = CSV.read(write(folder, HEADER + "b.png,1,2,11.5,22,dog\na.png,0,0,5,5,cat\n\nb.png,3,3,4,4,cat\n"))
    assert records.file_names == ("b.png", "a.png")
    assert records.boxes_xywh.tolist() == [[1, 2, 10.5, 20], [3, 3, 1, 1], [0, 0, 5, 5]]
    assert [records.class_names[label] for label in records.labels] == ["dog", "cat", "cat"]
    assert records.sizes_hw.tolist() == [[20, 50], [20, 50]]


@pytest.mark.parametrize("row", ["a.png,,,,,", "a.png,,,,,Tree", "a.png,0,0,0,0,Tree"])
def test_images_without_objects(folder: Path, row: str) -> None:
    records = CSV.read(write(folder, f"image_path,xmin,ymin,xmax,ymax,label\n{row}\nb.png,1,1,2,2,Bird\n"))
    assert records.offsets.tolist() == [0, 0, 1]
    assert records.class_names == ("Bird",)


def test_split_column_and_odd_column_order(folder: Path) -> None:
    path = write(folder, "\ufefflabel;split;ymax;xmax;ymin;xmin;image\ncat;train;4;3;2;1;a.png\ndog;val;4;3;2;1;b.png\n")
    assert Dataset.open(path).splits == ("train", "val")
    records = CSV.read(path, split="val")
    assert records.file_names == ("b.png",)
    assert records.boxes_xywh.tolist() == [[1, 2, 2, 2]]
    assert records.class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.png,1,2,x,4,cat", "line 3: xmin=.1., ymin=.2., xmax=.x., ymax=.4."),
        ("a.png,1,2,,4,cat", "line 3"),
        ("a.png,1,2,inf,4,cat", "nan, inf"),
        ("a.png,1,2,3,4", "line 3: 5 fields instead of 6"),
        ("a.png,1,2,3,4,", "line 3: a box without a label"),
        ("../a.png,1,2,3,4,cat", "leave the image folder"),
        (",1,2,3,4,cat", "leave the image folder"),
        ("lost.png,1,2,3,4,cat", r"do not exist: 1 \(.*lost\.png"),
    ],
)
def test_a_bad_line_is_located(folder: Path, row: str, message: str) -> None:
    path = write(folder, f"{HEADER}b.png,1,1,2,2,cat\n{row}\n")
    with pytest.raises(DataError, match=message):
        CSV.read(path)
    assert CSV.read(path, problems=Problems("x")).boxes(0).tolist() == [[1, 1, 2, 2]]


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "b.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"cannot be read: 1 \(.*b\.png"):
        CSV.read(write(folder, HEADER + "b.png,1,1,2,2,cat\n"))


@pytest.mark.parametrize("text", ["", "a,b,c\n1,2,3\n", "image,xmin,ymin,xmax,label\n"])
def test_another_table_is_refused(folder: Path, text: str) -> None:
    with pytest.raises(DataError, match="first line must name the columns"):
        CSV.read(write(folder, text))
