"""Check that FiftyOne reads what ``data convert`` writes. Not part of the tests: FiftyOne is large.

    for FORM in coco yolo voc; do lw-retinanet data convert DATA --to $FORM --out converted/$FORM; done
    python -m venv /tmp/fiftyone
    /tmp/fiftyone/bin/pip install fiftyone
    /tmp/fiftyone/bin/python scripts/readers/fiftyone_reads.py converted

Only its importers are used, which need no database. Exit code 1 if a box or a class of the split train differs from the COCO file.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from fiftyone.utils.coco import COCODetectionDatasetImporter
from fiftyone.utils.voc import VOCDetectionDatasetImporter
from fiftyone.utils.yolo import YOLOv5DatasetImporter

Boxes = list[tuple[str, list[float]]]


def written(folder: Path) -> dict[str, Boxes]:
    """Class and box, in fractions of the image, of every object of the COCO file, by file name."""
    table = json.loads((folder / "train.json").read_text())
    classes = {one["id"]: one["name"] for one in table["categories"]}
    images = {one["id"]: one for one in table["images"]}
    found: dict[str, Boxes] = {Path(one["file_name"]).name: [] for one in images.values()}
    for one in table["annotations"]:
        image = images[one["image_id"]]
        sides = [image["width"], image["height"]] * 2
        box = [value / side for value, side in zip(one["bbox"], sides, strict=True)]
        if not one.get("iscrowd"):
            found[Path(image["file_name"]).name].append((classes[one["category_id"]], box))
    return found


def main() -> int:
    root = Path(sys.argv[1])
    importers = {
        "coco": COCODetectionDatasetImporter(data_path=str(root / "coco/images"), labels_path=str(root / "coco/train.json")),
        "yolo": YOLOv5DatasetImporter(dataset_dir=str(root / "yolo"), yaml_path=str(root / "yolo/data.yaml"), split="train"),
        "voc": VOCDetectionDatasetImporter(data_path=str(root / "voc/JPEGImages"), labels_path=str(root / "voc/Annotations")),
    }
    expected, wrong = written(root / "coco"), 0
    for form, importer in importers.items():
        importer.setup()
        read: dict[str, Boxes] = defaultdict(list)
        for path, _, labels in importer:
            detections = labels["detections"] if isinstance(labels, dict) and "detections" in labels else labels
            read[Path(path).name] += [(one.label, one.bounding_box) for one in detections.detections] if detections else []
        worst = 0.0
        for name, boxes in expected.items():
            theirs = read[name]
            assert sorted(label for label, _ in boxes) == sorted(label for label, _ in theirs), (form, name, boxes, theirs)
            for label, box in boxes:
                nearest = min(max(map(abs, np.subtract(box, other))) for same, other in theirs if same == label)
                worst = max(worst, float(nearest))
        print(f"{form}: {len(expected)} images, {sum(map(len, expected.values()))} boxes, largest difference {worst:.1e} of the side")
        wrong += worst > (5e-3 if form == "voc" else 1e-5)  # FiftyOne cuts off the fractions of VOC's pixels
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
