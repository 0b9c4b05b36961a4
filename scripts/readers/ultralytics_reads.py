"""Check that Ultralytics reads what ``data convert --to yolo`` writes. Not part of the tests: Ultralytics is under AGPL.

    python -m venv /tmp/ultra
    /tmp/ultra/bin/pip install ultralytics .
    /tmp/ultra/bin/python scripts/readers/ultralytics_reads.py [DATA]

DATA is any data set with train and val; without it, one is drawn. Exit code 1 if a box or a class differs.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from ultralytics.data.dataset import YOLODataset
from ultralytics.data.utils import check_det_dataset

from lw_retinanet.data.convert import convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.records import Records
from lw_retinanet.data.sample import make_sample


def expected_boxes(records: Records) -> dict[str, np.ndarray]:
    """Class and centre, width and height in fractions of the image, of every box that YOLO can hold, by file name."""
    found = {}
    for image, name in enumerate(records.file_names):
        rows = records.rows(image)
        keep = ~records.is_crowd[rows] & (records.boxes_xywh[rows, 2:] > 0).all(axis=1)
        x, y, width, height = records.boxes_xywh[rows][keep].T
        high, wide = records.sizes_hw[image]
        boxes = np.column_stack([records.labels[rows][keep], (x + width / 2) / wide, (y + height / 2) / high, width / wide, height / high])
        found[Path(name).name] = boxes[np.lexsort(boxes.T)]
    return found


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(sys.argv[1]) if len(sys.argv) > 1 else make_sample(Path(scratch) / "shapes", num_train=6, num_val=3, size=96)
        splits = {split: with_sizes(Dataset.open(source).read(split)) for split in ("train", "val")}
        convert(splits, "yolo", Path(scratch) / "yolo")
        # From another working directory than the data set's, as Ultralytics is used.
        description = check_det_dataset(str(Path(scratch) / "yolo/data.yaml"))
        names = [description["names"][label] for label in sorted(description["names"])]
        assert names == list(splits["train"].class_names), names
        worst = 0.0
        for split, records in splits.items():
            read = YOLODataset(img_path=description[split], data=description, task="detect", augment=False)
            found = {Path(one["im_file"]).name: np.column_stack([one["cls"], one["bboxes"]]) for one in read.labels}
            wanted = expected_boxes(records)
            assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
            for name, boxes in wanted.items():
                ours = np.clip(boxes, 0, None)
                theirs = found[name][np.lexsort(found[name].T)]
                assert len(theirs) == len(np.unique(ours, axis=0)), (name, len(theirs), len(ours))  # it drops repeated boxes
                if len(theirs) == len(ours):
                    worst = max(worst, float(np.abs(theirs - ours).max(initial=0)))
            print(f"{split}: {len(found)} images, {sum(map(len, found.values()))} boxes")
        print(f"largest difference: {worst:.1e} of the image's side")
        return int(worst > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
