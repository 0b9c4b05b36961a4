"""Small data sets for the evaluation tests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lw_retinanet.data.records import Category, Id, Records

MakeRecords = Callable[..., Records]


@dataclass(frozen=True, kw_only=True)
class Box:
    xywh: tuple[float, float, float, float]
    image: int = 0
    label: int = 0
    crowd: bool = False
    difficult: bool = False
    area: float | None = None


def make(
    boxes: Sequence[Box],
    *,
    image_ids: Sequence[Id] = (1,),
    categories: Sequence[tuple[Id, str]] = ((1, "fish"),),
    annotation_ids: Sequence[int] | None = None,
) -> Records:
    order = sorted(range(len(boxes)), key=lambda index: boxes[index].image)
    boxes = [boxes[index] for index in order]
    ids = range(1, len(boxes) + 1) if annotation_ids is None else [annotation_ids[index] for index in order]
    counts = np.bincount([box.image for box in boxes], minlength=len(image_ids)) if boxes else np.zeros(len(image_ids), np.int64)
    xywh = np.array([box.xywh for box in boxes], dtype=np.float64).reshape(-1, 4)
    return Records(
        root=Path(),
        file_names=[f"{image_id}.jpg" for image_id in image_ids],
        image_ids=image_ids,
        sizes_hw=np.full((len(image_ids), 2), 200, dtype=np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        boxes_xywh=xywh,
        labels=np.array([box.label for box in boxes], dtype=np.int32),
        is_crowd=np.array([box.crowd for box in boxes], dtype=np.bool_),
        is_difficult=np.array([box.difficult for box in boxes], dtype=np.bool_),
        areas=np.array([w * h if box.area is None else box.area for box, (_, _, w, h) in zip(boxes, xywh, strict=True)], dtype=np.float64),
        annotation_ids=np.array(ids, dtype=np.int64),
        categories=tuple(Category(id=category_id, name=name) for category_id, name in categories),
    )


@pytest.fixture(scope="session")
def box() -> type[Box]:
    return Box


@pytest.fixture(scope="session")
def make_records() -> MakeRecords:
    return make


@pytest.fixture(scope="session")
def as_coco() -> Callable[[Records], dict[str, Any]]:
    """Records as the JSON object of a COCO annotation file."""

    def convert(records: Records) -> dict[str, Any]:
        return {
            "images": [{"id": image_id, "file_name": "", "height": 200, "width": 200} for image_id in records.image_ids],
            "categories": [{"id": category.id, "name": category.name} for category in records.categories],
            "annotations": [
                {
                    "id": row + 1,
                    "image_id": records.image_ids[image],
                    "category_id": records.category_ids[records.labels[row]],
                    "bbox": records.boxes_xywh[row].tolist(),
                    "area": float(records.areas[row]),
                    "iscrowd": int(records.is_crowd[row]),
                }
                for image in range(records.num_images)
                for row in range(records.num_boxes)[records.rows(image)]
            ],
        }

    return convert
