from pathlib import Path

import pytest
from PIL import Image

from lw_retinanet.data.formats.yolo import FORMAT as YOLO
from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import DataError


def save_image(path: Path, size: tuple[int, int] = (200, 100)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def save_text(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    """images/ and labels/, one image with two boxes, one with an empty label file, one without any."""
    for name in ("a.png", "b.png", "c.png"):
        save_image(tmp_path / "images" / "train" / name)
    save_text(tmp_path / "labels" / "train" / "b.txt", "2 0.5 0.5 0.1 0.4\n\n0 0.25 0.5 0.5 1\n")
    save_text(tmp_path / "labels" / "train" / "c.txt", "")
    return save_text(tmp_path / "data.yaml", "path: .\ntrain: images/train\nval: images/train\nnames: {0: cat, 2: dog}\n")


def test_boxes_in_pixels_and_negatives(yolo: Path) -> None:
    records = YOLO.read(yolo, split="train")
    assert records.file_names == ("a.png", "b.png", "c.png")
    assert records.offsets.tolist() == [0, 0, 2, 2]
    # 200 x 100: centre (100, 50), 20 x 40 px; the second fills the left half
    assert records.boxes_xywh.tolist() == [[90, 30, 20, 40], [0, 0, 100, 100]]
    assert records.category_ids == (0, 2)
    assert records.labels.tolist() == [1, 0]
    assert records.sizes_hw.tolist() == [[100, 200]] * 3


def test_a_polygon_becomes_its_bounding_box(yolo: Path) -> None:
    save_text(yolo.parent / "labels" / "train" / "b.txt", "0 0.1 0.2 0.5 0.3 0.2 0.8\n")
    assert YOLO.read(yolo, split="train").boxes_xywh[0] == pytest.approx([20, 20, 80, 60])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "line 2: 4 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "line 2: 6 numbers"),
        ("cat 0.5 0.5 0.1 0.1", "line 2: 'cat 0.5"),
        ("0.5 0.5 0.5 0.1 0.1", "line 2: 5 numbers"),
        ("0 0.5 nan 0.1 0.1", "line 2"),
        ("0 120 50 20 40", "120 is no fraction"),
        ("1 0.5 0.5 0.1 0.1", "class 1"),  # the names have 0 and 2
    ],
)
def test_a_bad_line_is_located(yolo: Path, line: str, message: str) -> None:
    save_text(yolo.parent / "labels" / "train" / "b.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(DataError, match=rf"b\.txt.*{message}"):
        YOLO.read(yolo, split="train")
    assert YOLO.read(yolo, split="train", problems=Problems("x")).num_boxes == 1


def test_names_as_a_list_and_a_list_of_folders(yolo: Path) -> None:
    save_image(yolo.parent / "more" / "images" / "d.png")
    save_text(yolo.parent / "more" / "labels" / "d.txt", "1 0.5 0.5 1 1")
    save_text(yolo, "train: [images/train, more/images]\nnames: [cat, ant, dog]\nnc: 3\n")
    records = YOLO.read(yolo)
    assert records.class_names == ("cat", "ant", "dog")
    assert records.root == yolo.parent
    assert records.file_names[-1] == "more/images/d.png"


def test_a_path_that_was_right_elsewhere(yolo: Path) -> None:
    save_text(yolo, "train: ../train/images\nnames: [cat]\n")
    save_image(yolo.parent / "train" / "images" / "x.png")
    save_text(yolo.parent / "train" / "labels" / "x.txt", "0 0.5 0.5 1 1")
    assert YOLO.read(yolo).num_boxes == 1


def test_a_list_of_absolute_paths(yolo: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save_image(elsewhere / "x.png")
    save_text(elsewhere / "x.txt", "0 0.5 0.5 1 1")
    save_text(yolo.parent / "list.txt", f"{elsewhere / 'x.png'}\n{yolo.parent}/images/train/b.png\n")
    save_text(yolo, "train: list.txt\nnames: [cat, ant, dog]\n")
    records = YOLO.read(yolo)
    assert records.num_boxes == 3
    assert records.path(0) == elsewhere / "x.png"


def test_darknet(tmp_path: Path) -> None:
    save_text(tmp_path / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    save_text(tmp_path / "obj.names", "cat\ndog\n")
    save_text(tmp_path / "train.txt", "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    save_image(tmp_path / "obj_train_data" / "a.png")
    save_image(tmp_path / "obj_train_data" / "b.png")
    save_text(tmp_path / "obj_train_data" / "b.txt", "1 0.5 0.5 0.5 0.5\n")
    records = YOLO.read(tmp_path / "obj.data")
    assert records.class_names == ("cat", "dog")
    assert records.offsets.tolist() == [0, 0, 1]


def test_a_missing_image_is_named(yolo: Path) -> None:
    save_text(yolo.parent / "list.txt", "images/train/b.png\nimages/train/lost.png\n")
    save_text(yolo, "train: list.txt\nnames: {0: cat, 2: dog}\n")
    with pytest.raises(DataError, match=r"images that do not exist: 1 \(.*lost\.png"):
        YOLO.read(yolo)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train\n", "no 'names'"),
        ("train: images/train\nnames: [a, b]\nnc: 3\n", "nc is 3"),
        ("train: nowhere\nnames: [a]\n", "nowhere"),
        ("train: images\nnames: [\n", "line 3"),
        ("train: images\nnames: []\n", "empty"),
        ("train: images\nnames: {x: a}\n", "class 'x'"),
        ("val: images/train\ntest: images/train\nnames: [a]\n", "val, test"),
        ("train: 3\nnames: [a]\n", "train: 3"),
    ],
)
def test_bad_data_files(yolo: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        YOLO.read(save_text(yolo, text))
