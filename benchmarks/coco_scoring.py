"""COCO scoring: ``lw_retinanet.evaluation.coco_metrics`` against pycocotools, on the same made-up boxes and detections.

    python benchmarks/coco_scoring.py [--images 5000] [--classes 80] [--boxes 36000] [--most 100] [--rounds 3] [--json]

Both start with the ground truth loaded and the detections in memory as they take them: pycocotools a list of results (so its ``loadRes``
counts; it is also shown by itself), ours a ``DetectionTable``. Parity comes first: the twelve numbers within 1e-9. If it fails, nothing is
timed and the exit code is 1. Needs pycocotools.

Boxes are as in COCO: most images have few, some have many, classes are as uneven as words are, a hundredth are crowds. Detections are found
boxes with their place and size a little off, the same again, other classes in the same place, and boxes where there is nothing.
"""

import argparse
import contextlib
import copy
import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lw_retinanet.benchmarking.machine import IDLE_LOAD, machine
from lw_retinanet.counting.rounds import ratio_interval, summary, take_turns
from lw_retinanet.data.records import Category, Records
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.tables import aligned

KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
TOLERANCE = 1e-9
GOAL = 20.0
SIZE_HW = (480, 640)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=36_000, help="of the ground truth, about")
    parser.add_argument("--most", type=int, default=100, help="detections of an image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    a = parser.parse_args()
    before = machine(torch.device("cpu"))
    random = np.random.default_rng(a.seed)
    records = made_up_records(random, a.images, a.classes, a.boxes)
    detections = made_up_detections(random, records, a.most)
    theirs = Pycocotools(records, detections)

    ours_now, theirs_now = numbers(evaluate(records, detections)), theirs.score()
    worst = max(abs(one - other) for one, other in zip(ours_now, theirs_now, strict=True))
    result: dict[str, Any] = {
        "what": "COCO scoring: detections in memory to twelve numbers",
        "machine": before,
        "images": records.num_images,
        "boxes": records.num_boxes,
        "classes": len(records.categories),
        "detections": len(detections),
        "numbers": dict(zip(KEYS, ours_now, strict=True)),
        "parity": {"largest_difference": worst, "tolerance": TOLERANCE},
    }
    if not worst <= TOLERANCE:
        print(json.dumps(result, indent=None if a.json else 2))
        print(f"error: the twelve numbers differ by up to {worst:.3g}, so nothing was timed", file=sys.stderr)
        return 1
    theirs.parts.clear()
    whole: list[float] = []

    def ours(_: int) -> None:
        started = time.perf_counter()
        evaluate(records, detections)
        whole.append((time.perf_counter() - started) * 1e3)

    take_turns({"pycocotools": lambda _: theirs.score(), "ours": ours}, rounds=a.rounds, warm_up=0)
    parts = {name: [row[name] for row in theirs.parts] for name in theirs.parts[0]}
    total = [sum(row.values()) for row in theirs.parts]
    scoring = [sum(row.values()) - row["loadRes"] for row in theirs.parts]
    result |= {
        "rounds": a.rounds,
        "pycocotools_ms": {**{name: summary(times) for name, times in parts.items()}, "all": summary(total)},
        "ours_ms": summary(whole),
        "pycocotools_over_ours": ratio_interval(total, whole).as_dict("ratio"),
        "pycocotools_without_loadRes_over_ours": ratio_interval(scoring, whole).as_dict("ratio"),
        "goal": GOAL,
    }
    print(json.dumps(result) if a.json else table(result))
    return 0


class Pycocotools:
    """The same ground truth and detections in its forms, and the milliseconds of each of its steps in ``parts``, one row a call."""

    def __init__(self, records: Records, detections: DetectionTable) -> None:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        self._evaluation: Callable[..., Any] = COCOeval
        self._truth: Any = COCO()
        self._truth.dataset = as_json(records)
        with quiet():
            self._truth.createIndex()
        image_ids, category_ids = np.array(records.image_ids), np.array(records.category_ids)
        columns = (image_ids[detections.image], category_ids[detections.labels], detections.boxes_xywh, detections.scores)
        self._results = [
            {"image_id": image, "category_id": category, "bbox": box, "score": score}
            for image, category, box, score in zip(*(column.tolist() for column in columns), strict=True)
        ]
        self.parts: list[dict[str, float]] = []

    def score(self) -> list[float]:
        """The twelve numbers."""
        results = copy.deepcopy(self._results)  # loadRes writes into them
        parts: dict[str, float] = {}

        def timed(name: str, step: Callable[[], Any]) -> Any:
            started = time.perf_counter()
            answer = step()
            parts[name] = (time.perf_counter() - started) * 1e3
            return answer

        with quiet():
            found = timed("loadRes", lambda: self._truth.loadRes(results))
            evaluation = timed("COCOeval", lambda: self._evaluation(self._truth, found, "bbox"))
            for name in ("evaluate", "accumulate", "summarize"):
                timed(name, getattr(evaluation, name))
        self.parts.append(parts)
        return [float(value) for value in evaluation.stats]


def numbers(metrics: Metrics) -> list[float]:
    return [getattr(metrics, key) for key in KEYS]


def made_up_records(random: np.random.Generator, num_images: int, num_classes: int, num_boxes: int) -> Records:
    """Ground truth of which some images have no box."""
    per_image = random.geometric(min(1.0, num_images / (num_boxes + num_images)), num_images) - 1
    total = int(per_image.sum())
    frequency = 1 / np.arange(1, num_classes + 1) ** 0.8
    boxes = placed(random, np.exp(random.normal(4.2, 1.0, total)), np.exp(random.normal(0, 0.4, total)))
    return Records(
        root=Path(),
        file_names=[f"{number}.jpg" for number in range(num_images)],
        image_ids=list(range(1, num_images + 1)),
        sizes_hw=np.full((num_images, 2), SIZE_HW, dtype=np.int32),
        offsets=np.concatenate([[0], per_image.cumsum()]).astype(np.int64),
        boxes_xywh=boxes,
        labels=random.choice(num_classes, total, p=frequency / frequency.sum()).astype(np.int32),
        is_crowd=random.random(total) < 0.01,
        is_difficult=np.zeros(total, dtype=np.bool_),
        areas=boxes[:, 2] * boxes[:, 3] * random.uniform(0.4, 0.9, total),
        annotation_ids=np.arange(1, total + 1),
        categories=tuple(Category(id=number, name=f"class_{number}") for number in range(1, num_classes + 1)),
    )


def placed(random: np.random.Generator, sides: NDArray[np.float64], shapes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 4) xywh inside the image, with the root of their area and the root of their width over height as asked, where that fits."""
    height, width = SIZE_HW
    sizes = np.stack([np.minimum(sides * shapes, width), np.minimum(sides / shapes, height)], axis=1).clip(min=4)
    corners = random.random((len(sides), 2)) * (np.array([width, height]) - sizes)
    return np.concatenate([corners, sizes], axis=1).round(2)


def made_up_detections(random: np.random.Generator, records: Records, most: int) -> DetectionTable:
    """At most ``most`` an image, scores in falling order, as detectors give them."""
    num_classes = len(records.categories)
    image = np.repeat(np.arange(records.num_images), np.diff(records.offsets))
    seen = np.flatnonzero(random.random(records.num_boxes) < 0.8)
    # A box that was found is found with one to four boxes; a fifth of them have another class.
    source = np.repeat(seen, random.integers(1, 5, len(seen)))
    near = records.boxes_xywh[source].copy()
    near[:, :2] += random.normal(0, 0.08, (len(source), 2)) * near[:, 2:]
    near[:, 2:] *= np.exp(random.normal(0, 0.1, (len(source), 2)))
    wrong = random.random(len(source)) < 0.2
    near_labels = np.where(wrong, random.integers(num_classes, size=len(source)), records.labels[source])
    near_scores = random.beta(2, 2, len(source)) * np.where(wrong, 0.5, 1.0)
    # Boxes where there is nothing: many, with low scores.
    extra = np.repeat(np.arange(records.num_images), random.integers(0, most, records.num_images))
    far = placed(random, np.exp(random.normal(4.0, 1.0, len(extra))), np.exp(random.normal(0, 0.4, len(extra))))
    rows = np.concatenate([image[source], extra])
    scores = np.concatenate([near_scores, random.beta(1, 8, len(extra))]).clip(0.01).astype(np.float32).astype(np.float64)
    order = np.lexsort((-scores, rows))
    ends = np.searchsorted(rows[order], np.arange(records.num_images))
    order = order[np.arange(len(order)) - ends[rows[order]] < most]
    boxes, labels = np.concatenate([near, far]), np.concatenate([near_labels, random.integers(num_classes, size=len(extra))])
    return DetectionTable.from_arrays(rows[order], boxes[order], scores[order], labels[order])


def as_json(records: Records) -> dict[str, Any]:
    """What the annotation file would hold."""
    image = np.repeat(np.array(records.image_ids), np.diff(records.offsets))
    category = np.array(records.category_ids)[records.labels]
    numbers_of_boxes = (records.annotation_ids, image, category, records.boxes_xywh, records.areas, records.is_crowd.astype(int))
    columns = [column.tolist() for column in numbers_of_boxes]
    names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    return {
        "images": [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, name, (height, width) in zip(records.image_ids, records.file_names, records.sizes_hw.tolist(), strict=True)
        ],
        "annotations": [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)],
        "categories": [{"id": category.id, "name": category.name} for category in records.categories],
    }


def quiet() -> contextlib.AbstractContextManager[Any]:
    """pycocotools reports every step."""
    return contextlib.redirect_stdout(io.StringIO())


def table(result: dict[str, Any]) -> str:
    """For people."""
    rows = [["step", "median, ms", "low", "high"]]
    steps = {**{f"pycocotools {name}": times for name, times in result["pycocotools_ms"].items()}, "lw_retinanet": result["ours_ms"]}
    rows += [[name, *(f"{times[key]:,.1f}" for key in ("median", "low", "high"))] for name, times in steps.items()]
    lines = [
        f"{result['images']:,} images, {result['boxes']:,} boxes, {result['detections']:,} detections, {result['rounds']} rounds",
        f"the twelve numbers agree within {result['parity']['largest_difference']:.1g}; AP {result['numbers']['AP']:.4f}",
        "",
        *aligned(rows),
        "",
    ]
    named = {"pycocotools over ours": "pycocotools_over_ours", "without its loadRes": "pycocotools_without_loadRes_over_ours"}
    for words, key in named.items():
        ratio = result[key]
        lines.append(f"{words}: {ratio['ratio']:.1f} ({ratio['low']:.1f} to {ratio['high']:.1f}); goal {result['goal']:.0f}")
    load = result["machine"]["load_before"]
    if load is not None and load > IDLE_LOAD:
        lines.append(f"note: the machine was not idle: load {load:.1f} before the measurement")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
