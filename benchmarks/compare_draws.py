"""Compare two made-up sets of detections in a fresh process and print seconds and peak memory.

    python benchmarks/compare_draws.py [--images 5000] [--detections 100] [--classes 80] [--boxes 7] [--draws 1000]

The numbers of the defaults are those of COCO's val2017: 7 boxes an image, 100 detections an image. Most boxes are found, with errors of
all sizes, the other detections lie anywhere; scores rise with the overlap. Matching and drawing are timed apart.
"""

import argparse
import resource
import time
from pathlib import Path

import numpy as np

from lw_retinanet.data.records import Category, Records
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.match_tables import match
from lw_retinanet.evaluation.paired import compare


def make_records(rng: np.random.Generator, *, num_images: int, boxes_per_image: int, num_classes: int) -> Records:
    count = num_images * boxes_per_image
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    return Records(
        root=Path(),
        file_names=[f"{image}.jpg" for image in range(num_images)],
        image_ids=list(range(1, num_images + 1)),
        sizes_hw=np.full((num_images, 2), (480, 640), dtype=np.int32),
        offsets=np.arange(num_images + 1, dtype=np.int64) * boxes_per_image,
        boxes_xywh=np.hstack([rng.uniform(0, (340, 180), (count, 2)), sides]),
        labels=np.floor(num_classes * rng.random(count) ** 3).astype(np.int32),  # some classes are much more common than others
        is_crowd=rng.random(count) < 0.01,
        is_difficult=np.zeros(count, dtype=np.bool_),
        areas=sides.prod(axis=1) * 0.7,
        annotation_ids=np.arange(1, count + 1, dtype=np.int64),
        categories=tuple(Category(id=label + 1, name=f"class {label}") for label in range(num_classes)),
    )


def make_detections(rng: np.random.Generator, records: Records, *, detections_per_image: int, error: float) -> DetectionTable:
    found = rng.random(records.num_boxes) < 0.8
    image_of_box = records.image_of_box[found]
    shift = np.abs(rng.normal(0, error, int(found.sum())))
    near = records.boxes_xywh[found].copy()
    near[:, :2] += near[:, 2:] * shift[:, None]
    num_others = max(0, records.num_images * detections_per_image - len(near))
    others = np.hstack([rng.uniform(0, (340, 180), (num_others, 2)), np.exp(rng.uniform(np.log(8), np.log(300), (num_others, 2)))])
    return DetectionTable.from_arrays(
        np.concatenate([image_of_box, rng.integers(records.num_images, size=num_others)]),
        np.concatenate([near, others]),
        np.concatenate([np.clip(rng.normal(0.6, 0.2, len(near)) - shift, 0.05, 1), 0.05 + 0.6 * rng.random(num_others) ** 4]),
        np.concatenate([records.labels[found], rng.integers(len(records.categories), size=num_others)]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--boxes", type=int, default=7)
    parser.add_argument("--draws", type=int, default=1000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    records = make_records(rng, num_images=arguments.images, boxes_per_image=arguments.boxes, num_classes=arguments.classes)
    a, b = (make_detections(rng, records, detections_per_image=arguments.detections, error=error) for error in (0.06, 0.065))

    before = time.perf_counter()
    match(records, a)
    matching = time.perf_counter() - before
    before, cpu_before = time.perf_counter(), time.process_time()
    comparison = compare(records, a, b, draws=arguments.draws)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{records.summary()}; {len(a):,} and {len(b):,} detections")
    print(f"matching one table: {matching:.1f} s; all of it: {seconds:.1f} s ({cpu_seconds:.1f} s of processor), peak {peak:.2f} GiB")
    print("\n".join(comparison.lines()))


if __name__ == "__main__":
    main()
