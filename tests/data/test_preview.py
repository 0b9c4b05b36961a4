from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.preview import choose, preview
from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import ConfigError, ImageError, InputError


def records(root: Path, labels_per_image: list[list[int]], num_classes: int = 4) -> Records:
    labels = np.array([label for labels in labels_per_image for label in labels], np.int32)
    count = len(labels)
    return Records(
        root=root,
        file_names=[f"sub/image {number}.png" for number in range(len(labels_per_image))],
        image_ids=list(range(len(labels_per_image))),
        sizes_hw=np.full((len(labels_per_image), 2), 32, np.int32),
        offsets=np.cumsum([0, *map(len, labels_per_image)]).astype(np.int64),
        boxes_xywh=np.tile([4.0, 5.0, 10.0, 12.0], (count, 1)),
        labels=labels,
        is_crowd=np.zeros(count, bool),
        is_difficult=np.zeros(count, bool),
        areas=np.full(count, 120.0),
        annotation_ids=np.arange(1, count + 1),
        categories=tuple(Category(id=10 * number, name=f"class {number}") for number in range(num_classes)),
    )


def test_every_class_appears_and_the_choice_is_the_seeds(tmp_path: Path) -> None:
    # Class 3 is only in image 57, class 2 only in images 11 and 40; a plain draw of four out of 100 would hardly ever show them.
    table = records(
        tmp_path, [[0, 3] if image == 57 else [2] if image in (11, 40) else [0, 1] if image % 9 == 0 else [0] for image in range(100)]
    )
    choices = {seed: choose(table, count=4, seed=seed) for seed in range(5)}
    for images in choices.values():
        assert len(set(images)) == 4
        assert {int(label) for image in images for label in table.labels[table.rows(image)]} == {0, 1, 2, 3}
    assert choose(table, count=4, seed=3) == choices[3]
    assert len({tuple(images) for images in choices.values()}) > 1


def test_fewer_images_than_asked_for_and_classes_without_boxes(tmp_path: Path) -> None:
    assert choose(records(tmp_path, [[], [1], []]), count=16, seed=0) == [0, 1, 2]
    assert choose(records(tmp_path, [[]] * 3), count=2, seed=0) == choose(records(tmp_path, [[]] * 3), count=2, seed=0)
    # more classes than images wanted: the rarest ones win
    assert choose(records(tmp_path, [[0], [0], [0], [1], [2]]), count=2, seed=0) == [3, 4]


def test_images_and_sheet_are_written(tmp_path: Path) -> None:
    table = records(tmp_path, [[0], [1], []])
    (tmp_path / "sub").mkdir()
    for name in table.file_names:
        Image.new("RGB", (32, 32), "gray").save(tmp_path / name)
    files = preview(table, tmp_path / "out", count=3)
    assert [file.name for file in files] == ["001_image_0.jpg", "002_image_1.jpg", "003_image_2.jpg", "contact_sheet.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [file.name for file in files]
    with Image.open(files[0]) as with_box, Image.open(files[2]) as without:
        assert with_box.size == (256, 256)  # a tiny image is enlarged, at most eight times
        assert np.asarray(without).std() < 3
        assert np.asarray(with_box).std() > 3
    with Image.open(files[-1]) as sheet:
        assert sheet.width == 1600
    before = [file.read_bytes() for file in files]
    assert [file.read_bytes() for file in preview(table, tmp_path / "out", count=3)] == before


def test_what_stops_a_preview(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"image 0\.png: no such image file"):
        preview(records(tmp_path, [[0]]), tmp_path / "out")
    with pytest.raises(ConfigError, match="count"):
        preview(records(tmp_path, [[0]]), tmp_path / "out", count=0)
    with pytest.raises(InputError, match="no images"):
        preview(records(tmp_path, []), tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the preview"):
        preview(records(tmp_path, [[0]]), tmp_path / "file")
