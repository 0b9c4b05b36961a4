import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.check import check
from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.images import decode
from lw_retinanet.errors import DataError


@pytest.fixture
def turned(tmp_path: Path) -> Path:
    """A bright block at 4, 2, 10, 6 of the stored pixels of a JPEG image, for each EXIF orientation; the boxes ignore the tag."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[2:8, 4:14] = 255
    for tag in range(1, 9):
        exif = Image.Exif()
        exif[274] = tag
        Image.fromarray(pixels).save(tmp_path / f"{tag}.jpg", exif=exif, quality=95)
    images = [{"id": tag, "file_name": f"{tag}.jpg", "width": 40, "height": 20} for tag in range(1, 9)]
    boxes = [{"id": tag, "image_id": tag, "category_id": 1, "bbox": [4, 2, 10, 6]} for tag in range(1, 9)]
    (tmp_path / "x.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "a"}]}))
    return tmp_path / "x.json"


def test_it_is_said_which_orientation_the_boxes_fit(turned: Path) -> None:
    with pytest.raises(DataError, match=r"5\.jpg has boxes that fit its stored pixels.*turned: boxes or images"):
        Dataset.open(turned).ready()
    problems = {problem.kind: problem.count for problem in check(Dataset.open(turned)).splits[0].problems}
    assert problems == {"turned_image": 4}


@pytest.mark.parametrize("what", ["boxes", "images"])
def test_both_remedies_put_every_box_on_its_block(turned: Path, tmp_path: Path, what: str) -> None:
    convert(Dataset.open(turned).read(), "coco", tmp_path / "out", turned="boxes" if what == "boxes" else "images")
    records = Dataset.open(tmp_path / "out").ready("train")
    for image in range(8):
        bright = decode(records.path(image))[..., 0] > 128
        rows, columns = np.nonzero(bright)
        assert records.boxes(image)[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], image + 1


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "csv"])
def test_boxes_that_do_not_fit_are_not_converted(turned: Path, tmp_path: Path, form: str) -> None:
    records = Dataset.open(turned).read()
    with pytest.raises(DataError, match=r"5\.jpg has boxes that fit its stored pixels"):
        convert(records, form, tmp_path / "out")
    table = json.loads(turned.read_text())
    table["images"] = [{**image, "width": 80, "height": 40} for image in table["images"]]
    turned.write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"1\.jpg is 40x20 pixels, its annotation says 80x40"):
        convert(Dataset.open(turned).read(), form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tag_is_dropped_from_copies_of_jpeg_only(turned: Path, tmp_path: Path) -> None:
    records = Dataset.open(turned).read()
    with pytest.raises(DataError, match="only be dropped from copies"):
        convert(records, "coco", tmp_path / "out", copy_images=False, turned="images")
    with Image.open(tmp_path / "6.jpg") as image:
        image.save(tmp_path / "6.jpg", format="PNG", exif=image.getexif())
    with pytest.raises(DataError, match=r"6\.jpg: the EXIF tag can only be dropped from JPEG files; turn the boxes instead"):
        convert(records, "coco", tmp_path / "out", turned="images")
    assert not (tmp_path / "out").exists()
