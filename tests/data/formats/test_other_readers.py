"""What ``data convert`` writes, as the readers of other libraries see it; `scripts/readers/` has those that no test may install."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.convert import convert
from lw_retinanet.data.records import Category, Records, build_records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Three JPEG images of 40 x 30, the last one without boxes: fractions, a crowd, a difficult box, gapped ids, a name with a space."""
    names = ("shot (1).jpg", "sub/b.jpg", "c.jpg")
    for number, name in enumerate(names):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(tmp_path / "from" / name)
    return build_records(
        root=tmp_path / "from",
        file_names=names,
        image_ids=[17, 3, 90],
        sizes_hw=[(30, 40)] * 3,
        image_of_box=[0, 0, 1, 1],
        boxes_xywh=np.array([[1.25, 2.5, 10, 8], [0, 0, 40, 30], [3, 5, 20, 12.5], [7, 7, 9, 5]]),
        labels=[1, 0, 1, 0],
        categories=[Category(id=7, name="zebra"), Category(id=9, name="caf\u00e9 & co")],
        is_crowd=[False, True, False, False],
        is_difficult=[False, False, True, False],
    )


def test_coco_as_pycocotools_reads_it(records: Records, tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    convert({"val": records}, "coco", tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        read = coco.COCO(str(tmp_path / "out/val.json"))
    assert {image["id"]: image["file_name"] for image in read.loadImgs(read.getImgIds())} == {
        17: "shot (1).jpg",
        3: "sub/b.jpg",
        90: "c.jpg",
    }
    assert {one["id"]: one["name"] for one in read.loadCats(read.getCatIds())} == {7: "zebra", 9: "caf\u00e9 & co"}
    found = [(one["image_id"], one["category_id"], *one["bbox"], one["iscrowd"]) for one in read.loadAnns(read.getAnnIds())]
    assert found == [
        (17, 9, 1.25, 2.5, 10, 8, 0),
        (17, 7, 0, 0, 40, 30, 1),
        (3, 9, 3, 5, 20, 12.5, 0),
        (3, 7, 7, 7, 9, 5, 0),
    ]
    assert [one["area"] for one in read.loadAnns(read.getAnnIds(iscrowd=0))] == [80, 250, 45]


def test_coco_as_torchvision_reads_it(records: Records, tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    pytest.importorskip("pycocotools.coco")
    convert(records, "coco", tmp_path / "out")
    with contextlib.redirect_stdout(io.StringIO()):
        read = datasets.CocoDetection(str(tmp_path / "out/images"), str(tmp_path / "out/train.json"))
    found = {read.ids[row]: read[row] for row in range(len(read))}
    assert {number: image.size for number, (image, _) in found.items()} == dict.fromkeys((3, 17, 90), (40, 30))
    # The grey value of each image tells that it is the right one.
    assert [round(np.asarray(found[number][0])[..., 0].mean() / 80) for number in (17, 3, 90)] == [0, 1, 2]
    assert [one["bbox"] for one in found[3][1]] == [[3, 5, 20, 12.5], [7, 7, 9, 5]]
    assert found[90][1] == []


def test_voc_as_torchvision_reads_it(records: Records, tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    convert({"train": records, "val": records}, "voc", tmp_path / "VOCdevkit/VOC2012")
    read = datasets.VOCDetection(str(tmp_path), year="2012", image_set="val")
    assert len(read) == 3
    found = {target["annotation"]["filename"]: (image, target["annotation"]) for image, target in read}
    image, annotation = found["shot (1).jpg"]
    assert image.size == (40, 30)
    assert annotation["size"] == {"width": "40", "height": "30", "depth": "3"}
    boxes = [
        (one["name"], one["difficult"], *(float(one["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")))
        for one in annotation["object"]
    ]
    assert boxes == [("caf\u00e9 & co", "0", 1.25, 2.5, 11.25, 10.5), ("zebra", "1", 0, 0, 40, 30)]
    assert found["c.jpg"][1]["object"] == []
