"""Each form of docs/data.md, as the tool writes it, gives the same two boxes."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.masks import box_of_mask
from lw_retinanet.errors import DataError

BOXES = [[4, 2, 10, 6], [20, 5, 16, 12]]  # x, y, width, height of "red" and "blue" in an image of 40 x 20
NAMES = ("red", "blue")
CORNERS = [(x, y, x + w, y + h) for x, y, w, h in BOXES]
SIZE = (40, 20)


def picture(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)


def files(folder: Path, contents: Mapping[str, str | object]) -> None:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def coco(image: str, **changes: Any) -> dict[str, Any]:
    annotations = [
        {"id": k, "image_id": 0, "category_id": k, "bbox": box, "iscrowd": 0, "segmentation": [], "ignore": 0} | changes
        for k, box in enumerate(BOXES)
    ]
    return {
        "images": [{"width": SIZE[0], "height": SIZE[1], "id": 0, "file_name": image}],
        "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
        "annotations": annotations,
        "info": {"contributor": "Label Studio", "version": "1.0"},
    }


def voc(image: str) -> str:
    objects = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox><xmin>{a}</xmin><ymin>{b}"
        f"</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True)
    )
    return (
        f"<annotation><folder>x</folder><filename>{image}</filename><size><width>40</width><height>20</height></size>{objects}</annotation>"
    )


def rows(more: Callable[[tuple[int, int, int, int]], str] = lambda box: "") -> str:
    return "".join(
        f"{k} {(a + c) / 80:.6f} {(b + d) / 40:.6f} {(c - a) / 40:.6f} {(d - b) / 20:.6f}{more((a, b, c, d))}\n"
        for k, (a, b, c, d) in enumerate(CORNERS)
    )


def corners_of(box: tuple[int, int, int, int]) -> str:
    a, b, c, d = box[0] / 40, box[1] / 20, box[2] / 40, box[3] / 20
    return f"{a} {b} {c} {b} {c} {d} {a} {d}"


def points(box: tuple[int, int, int, int], flag: str) -> str:
    a, b, c, d = box
    return "".join(f" {x / 40:.6f} {y / 20:.6f}{flag}" for x, y in ((a + 1, b + 1), (c - 1, d - 2), (a + 2, d - 1)))


YAML = "train: images\nval:\nnames: [red, blue]\n"


def label_studio_yolo(folder: Path) -> None:
    picture(folder / "images/1f2e-a.jpg")
    files(folder, {"classes.txt": "red\nblue\n", "notes.json": {"categories": []}, "labels/1f2e-a.txt": rows()})


def label_studio_coco(folder: Path) -> None:
    picture(folder / "images/1f2e-a.jpg")
    files(folder, {"result.json": coco("images\\1f2e-a.jpg")})


def label_studio_voc(folder: Path) -> None:
    picture(folder / "images/1f2e-a.jpg")
    files(folder, {"Annotations/1f2e-a.xml": voc("1f2e-a")})


def cvat_coco(folder: Path) -> None:
    picture(folder / "images/default/a.jpg")
    files(folder, {"annotations/instances_default.json": coco("a.jpg")})


def cvat_yolo(folder: Path) -> None:
    picture(folder / "obj_train_data/clip/a.jpg")
    files(
        folder,
        {
            "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": "red\nblue\n",
            "train.txt": "data/obj_train_data/clip/a.jpg\n",
            "obj_train_data/clip/a.txt": rows(),
        },
    )


def cvat_ultralytics(folder: Path) -> None:
    picture(folder / "images/train/clip/a.jpg")
    files(
        folder,
        {
            "data.yaml": "names:\n  0: red\n  1: blue\npath: .\ntrain: train.txt\n",
            "train.txt": "data/images/train/clip/a.jpg\n",
            "labels/train/clip/a.txt": rows(),
        },
    )


def cvat_voc(folder: Path) -> None:
    picture(folder / "JPEGImages/clip/a.jpg")
    files(folder, {"Annotations/clip/a.xml": voc("clip/a.jpg"), "ImageSets/Main/default.txt": "clip/a\n", "labelmap.txt": "red:::\n"})


def roboflow_coco(folder: Path) -> None:
    """With a root category that no box has."""
    picture(folder / "train/a_jpg.rf.1.jpg")
    content = coco("a_jpg.rf.1.jpg")
    content["categories"] = [{"id": 0, "name": "blocks", "supercategory": "none"}]
    content["categories"] += [{"id": k, "name": name, "supercategory": "blocks"} for k, name in enumerate(NAMES, 1)]
    for annotation in content["annotations"]:
        annotation["category_id"] += 1
    files(folder, {"train/_annotations.coco.json": content})


def roboflow_voc(folder: Path) -> None:
    picture(folder / "train/a.jpg")
    files(folder, {"train/a.xml": voc("a.jpg")})


def roboflow_yolo(folder: Path) -> None:
    picture(folder / "train/images/a.jpg")
    files(
        folder,
        {
            "data.yaml": "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['red', 'blue']\n\nroboflow:\n  workspace: x\n",
            "train/labels/a.txt": rows(),
        },
    )


def roboflow_retinanet(folder: Path) -> None:
    picture(folder / "train/a.jpg")
    table = "".join(f"a.jpg,{a},{b},{c},{d},{name}\n" for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True))
    files(folder, {"train/_annotations.csv": table, "train/_classes.csv": "blue,0\nred,1\n"})


def roboflow_tensorflow(folder: Path) -> None:
    picture(folder / "train/a.jpg")
    table = "".join(f"a.jpg,40,20,{name},{a},{b},{c},{d}\n" for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True))
    files(folder, {"train/_annotations.csv": f"filename,width,height,class,xmin,ymin,xmax,ymax\n{table}"})


def keras_retinanet(folder: Path) -> None:
    picture(folder / "images/a.jpg", folder / "images/empty.jpg")
    table = "".join(f"{folder}/images/a.jpg,{a},{b},{c},{d},{name}\n" for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True))
    files(folder, {"annotations.csv": f"{table}{folder}/images/empty.jpg,,,,,\n", "classes.csv": "red,0\nblue,1\n"})


def sku110k(folder: Path) -> None:
    picture(folder / "images/train_0.jpg")
    table = "".join(f"train_0.jpg,{a},{b},{c},{d},{name},40,20\n" for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True))
    files(folder, {"annotations/annotations_train.csv": table})
    (folder / "annotations/annotations_train.csv").rename(folder / "annotations_train.csv")


def open_images(folder: Path) -> None:
    picture(folder / "images/000a1249af2bc5f0.jpg")
    table = "".join(
        f"000a1249af2bc5f0,xclick,/m/0{k},1,{a / 40},{c / 40},{b / 20},{d / 20},0,0,0,0,0\n" for k, (a, b, c, d) in enumerate(CORNERS)
    )
    header = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
    files(folder, {"train-annotations-bbox.csv": header + table, "class-descriptions-boxable.csv": "/m/00,red\n/m/01,blue\n/m/02,Tree\n"})


def deep_forest(folder: Path) -> None:
    picture(folder / "a.png")
    table = "".join(f"a.png,{a},{b},{c},{d},{name}\n" for name, (a, b, c, d) in zip(NAMES, CORNERS, strict=True))
    files(folder, {"annotations.csv": f"image_path,xmin,ymin,xmax,ymax,label\n{table}"})


def kaggle_voc(folder: Path) -> None:
    picture(folder / "images/road0.png")
    files(folder, {"annotations/road0.xml": voc("road0.png")})


def yolo_of(labels: str, more: str = "") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        picture(folder / "images/a.jpg")
        files(folder, {"data.yaml": YAML + more, "labels/a.txt": labels})

    return make


def polygons() -> str:
    return "".join(f"{k} {corners_of(box)} {box[0] / 40} {box[1] / 20 + 0.01}\n" for k, box in enumerate(CORNERS))


def coco_masks(folder: Path) -> None:
    picture(folder / "images/a.jpg")
    content = coco("a.jpg")
    red, blue = content["annotations"]
    a, b, c, d = CORNERS[0]
    red |= {"bbox": [], "segmentation": [[a, b, c, b, c, d, a, d]]}
    x, y, w, h = BOXES[1]
    blue |= {"segmentation": {"size": [20, 40], "counts": [x * 20 + y, *([h, 20 - h] * w)]}}
    del blue["bbox"]
    files(folder, {"train.json": content})


FORMS: dict[str, Callable[[Path], None]] = {
    "Label Studio YOLO": label_studio_yolo,
    "Label Studio COCO": label_studio_coco,
    "Label Studio VOC": label_studio_voc,
    "CVAT COCO": cvat_coco,
    "CVAT YOLO 1.1": cvat_yolo,
    "CVAT Ultralytics": cvat_ultralytics,
    "CVAT VOC": cvat_voc,
    "Roboflow COCO": roboflow_coco,
    "Roboflow VOC": roboflow_voc,
    "Roboflow YOLO": roboflow_yolo,
    "Roboflow RetinaNet CSV": roboflow_retinanet,
    "Roboflow TensorFlow CSV": roboflow_tensorflow,
    "keras-retinanet CSV": keras_retinanet,
    "SKU110K CSV": sku110k,
    "Open Images CSV": open_images,
    "DeepForest CSV": deep_forest,
    "Kaggle VOC": kaggle_voc,
    "YOLO polygons": yolo_of(polygons()),
    "YOLO oriented": yolo_of("".join(f"{k} {corners_of(box)}\n" for k, box in enumerate(CORNERS))),
    "YOLO pose": yolo_of(rows(lambda box: points(box, " 2.000000")), "kpt_shape: [3, 3]\n"),
    "YOLO pose without visibility": yolo_of(rows(lambda box: points(box, "")), "kpt_shape: [3, 2]\n"),
    "YOLO pose without kpt_shape": yolo_of(rows(lambda box: points(box, " 1"))),
    "YOLO confidences": yolo_of(rows(lambda box: " 0.873")),
    "YOLO tracks": yolo_of(rows(lambda box: " 0.873 17")),
    "COCO masks": coco_masks,
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_boxes(tmp_path: Path, form: str) -> None:
    FORMS[form](tmp_path)
    dataset = Dataset.open(tmp_path)
    records = dataset.ready(dataset.or_whole("train"))
    found = {records.class_names[label]: box for label, box in zip(records.labels.tolist(), records.boxes_xywh.tolist(), strict=True)}
    assert found.keys() == set(NAMES)
    for name, box in zip(NAMES, BOXES, strict=True):
        assert found[name] == pytest.approx(box, abs=2e-4 * 40 if form == "YOLO polygons" else 1e-4), name  # six digits of 40 px
    assert records.path(0).is_file()


NAMED: dict[str, tuple[dict[str, object], str]] = {
    "labelme": ({"a.json": {"version": "5", "shapes": [], "imagePath": "a.jpg"}, "b.json": {}}, "labelme's JSON.*labelme2coco"),
    "VIA": ({"via_project.json": {"_via_settings": {}, "_via_img_metadata": {}}}, r"VIA.*COCO format"),
    "VIA CSV": (
        {"via.csv": "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"},
        r"VIA.*COCO format",
    ),
    "CreateML": (
        {"_annotations.createml.json": [{"image": "a.jpg", "annotations": [{"label": "red", "coordinates": {"x": 1}}]}]},
        "CreateML's JSON.*export as COCO, YOLO or Pascal VOC",
    ),
    "Label Studio JSON": (
        {"project.json": [{"id": 1, "annotations": [{"id": 2, "result": []}], "data": {}}]},
        "Label Studio's own JSON.*COCO",
    ),
    "Label Studio CSV": (
        {"project.csv": "annotation_id,annotator,created_at,id,image,label,lead_time,updated_at\n1,1,x,1,/data/upload/a.jpg,[],2.1,x\n"},
        "a table of Label Studio.*COCO, YOLO",
    ),
    "Supervisely": ({"a.json": {"size": {}, "objects": [{"classTitle": "red"}]}}, "Supervisely's JSON.*COCO"),
    "BDD100K": ({"a.json": [{"name": "a.jpg", "labels": [{"category": "car", "box2d": {"x1": 1}}]}]}, "BDD100K's JSON.*to_coco"),
    "GeoJSON": ({"a.json": {"type": "FeatureCollection", "features": []}}, "GeoJSON.*pixel boxes"),
    "Datumaro": ({"a.json": {"info": {}, "categories": {"label": {"labels": []}}, "items": []}}, "Datumaro's JSON.*convert -f coco"),
    "Darwin": (
        {"a.json": {"version": "2.0", "item": {"name": "a.jpg", "slots": []}, "annotations": [{"name": "red"}]}},
        "Darwin's JSON.*COCO",
    ),
    "FiftyOne": (
        {"labels.json": {"classes": ["red"], "labels": {"a": [{"label": 0, "bounding_box": [0, 0, 1, 1]}]}}},
        "FiftyOne's own JSON.*COCODetectionDataset",
    ),
    "SageMaker": (
        {"output.json": {"source-ref": "s3://b/a.jpg", "boxes": {"annotations": [{"class_id": 0, "left": 1}]}}},
        "SageMaker.*COCO",
    ),
    "Labelbox": ({"export.json": [{"data_row": {"id": "x"}, "projects": {}}]}, "Labelbox's JSON.*COCO"),
    "CVAT XML": ({"annotations.xml": "<annotations><version>1.1</version></annotations>"}, "CVAT's own XML; export as COCO, YOLO"),
    "detections": ({"det.json": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]}, "as detections are written"),
    "Roboflow one-hot": ({"train/_classes.csv": "filename, red, blue\na.jpg, 1, 0\n"}, "classes of whole images, without boxes"),
    "unknown columns": ({"t.csv": "file,bbox_x,bbox_y,bbox_w,bbox_h,tag\na.jpg,1,2,3,4,red\n"}, "must name the columns image,xmin,ymin"),
    "labels without names": ({"images/readme.txt": "", "labels/a.txt": "0 0.5 0.5 0.1 0.1\n"}, r"without class names.*classes\.txt"),
    "ZIP": ({"set.json": "PK\x03\x04"}, "a ZIP archive; unpack it"),
}


@pytest.mark.parametrize("form", NAMED)
def test_what_is_not_read_is_named_with_what_to_do(tmp_path: Path, form: str) -> None:
    contents, message = NAMED[form]
    files(tmp_path, contents)
    with pytest.raises(DataError, match=message):
        Dataset.open(tmp_path).read()


def test_the_remedy_outlasts_a_long_path(tmp_path: Path) -> None:
    folder = tmp_path / ("a" * 150)
    folder.mkdir()
    files(folder, {"annotations.xml": "<annotations/>"})
    with pytest.raises(DataError, match=r"\.\.\./annotations\.xml: .*CVAT's own XML; export as COCO, YOLO or PASCAL VOC instead"):
        Dataset.open(folder).read()


def test_the_remedy_for_labels_without_names_works(tmp_path: Path) -> None:
    label_studio_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    with pytest.raises(DataError, match=r"write them into .*classes\.txt, one a line"):
        Dataset.open(tmp_path)
    (tmp_path / "classes.txt").write_text("red\nblue\n")
    assert Dataset.open(tmp_path).ready().num_boxes == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (rows(lambda box: " 0.873 1"), "class, box, confidence and track number, or triangles; keep the first five numbers"),
        (rows(lambda box: points(box, "")), "boxes with keypoints; write kpt_shape"),
        (rows() + "0 0.5 0.5 0.1 0.1 0.9\n", "6 numbers; a class number with 4"),
    ],
)
def test_rows_that_may_mean_two_things_are_refused(tmp_path: Path, labels: str, message: str) -> None:
    yolo_of(labels)(tmp_path)
    with pytest.raises(DataError, match=message):
        Dataset.open(tmp_path).read("train")


def test_the_remedies_for_tracks_and_triangles_work(tmp_path: Path) -> None:
    yolo_of(rows())(tmp_path)
    assert Dataset.open(tmp_path).read("train").boxes_xywh[0].tolist() == pytest.approx(BOXES[0], abs=1e-4)
    (tmp_path / "labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.1 1.0 0.1 1.0\n")
    assert Dataset.open(tmp_path).read("train").boxes_xywh[0].tolist() == pytest.approx([4, 2, 16, 18], abs=1e-9)


def test_a_table_made_for_images_of_another_size_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    files(tmp_path, {"t.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,80,40,red,1,2,30,15\n"})
    with pytest.raises(DataError, match=r"a\.jpg: 40 x 20, annotated 80 x 40"):
        Dataset.open(tmp_path).read()
    # Here the two columns are the size of the box.
    files(tmp_path, {"t.csv": "filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,29,13,red,1,2,30,15\n"})
    assert Dataset.open(tmp_path).read().num_boxes == 1


def test_groups_of_open_images_are_crowds(tmp_path: Path) -> None:
    open_images(tmp_path)
    table = tmp_path / "train-annotations-bbox.csv"
    table.write_text(table.read_text().replace("0,0,0,0,0\n", "0,0,1,0,0\n", 1))
    assert Dataset.open(tmp_path).read("train").is_crowd.tolist() == [True, False]


@pytest.mark.parametrize(
    "mask",
    [
        *(None, [], {}, [[1, 2, 3]], [["a", 1]], {"size": [2, 2], "counts": [9]}, {"size": [4, 4], "counts": [16]}, "x"),
        *({"size": [2, float("inf")], "counts": [0, 1]}, {"size": [10**400, 1], "counts": [10**399, 1]}, [[10**400, 1, 2, 3]]),
        {"size": [2, 2], "counts": "o" * 100_000},  # each of these says that the number goes on
    ],
)
def test_masks_without_a_box(mask: object) -> None:
    assert box_of_mask(mask) is None


def test_run_lengths_agree_with_pycocotools() -> None:
    masks = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for _ in range(30):
        height, width = rng.integers(1, 40, 2).tolist()
        mask = np.asfortranarray((rng.random((height, width)) > rng.random()).astype(np.uint8))
        packed = masks.encode(mask)
        expected = masks.toBbox(packed).tolist() if mask.any() else None
        assert box_of_mask({"size": packed["size"], "counts": packed["counts"].decode()}) == expected
