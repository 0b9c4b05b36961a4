"""Open a COCO-sized annotation file in a fresh process and print seconds and peak memory.

    python benchmarks/open_coco_sized.py [--images 118287] [--boxes 860001] [--points 20]

The file is made in a temporary folder: gapped category ids, crowds, polygons of ``--points`` points (COCO's own masks are most of its
448 MB). The limit that the project sets itself is 15 s and 1.5 GB.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make_file(path: Path, *, num_images: int, num_boxes: int, num_points: int, seed: int = 0) -> None:
    """Write a COCO file of random boxes, unsorted, an annotation a line."""
    rng = np.random.default_rng(seed)
    category_ids = [k for k in range(1, 91) if k not in {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}]
    image_ids = rng.permutation(600_000)[:num_images]
    with path.open("w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        images = ({"license": 3, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": int(i)} for i in image_ids)
        file.write(",\n".join(map(json.dumps, images)))
        file.write('], "annotations": [\n')
        for start in range(0, num_boxes, 10_000):
            count = min(10_000, num_boxes - start)
            low = np.round(rng.uniform(0, [500, 400], (count, 2)), 2)
            side = np.round(rng.uniform(1, 80, (count, 2)), 2)
            polygons = np.round(np.repeat(low, num_points, axis=0).reshape(count, -1) + rng.uniform(0, 80, (count, 2 * num_points)), 2)
            columns = zip(
                polygons.tolist(),
                np.hstack([low, side]).tolist(),
                rng.choice(image_ids, count).tolist(),
                rng.choice(category_ids, count).tolist(),
                (rng.random(count) < 0.01).astype(int).tolist(),
                strict=True,
            )
            lines = [
                json.dumps(
                    {
                        "segmentation": [polygon],
                        "area": bbox[2] * bbox[3] * 0.7,
                        "iscrowd": crowd,
                        "image_id": image_id,
                        "bbox": bbox,
                        "category_id": category_id,
                        "id": start + row,
                    }
                )
                for row, (polygon, bbox, image_id, category_id, crowd) in enumerate(columns)
            ]
            file.write((",\n" if start else "") + ",\n".join(lines))
        file.write('], "categories": ')
        json.dump([{"supercategory": "thing", "id": k, "name": f"class {k}"} for k in category_ids], file)
        file.write("}")


def open_file(path: Path) -> None:
    from lw_retinanet.data.formats.coco import FORMAT as COCO

    before, cpu_before = time.perf_counter(), time.process_time()
    records = COCO.read(path)
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu_before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    times = f"{seconds:.1f} s ({cpu_seconds:.1f} s of processor)"
    print(f"{records.summary()}: {times}, peak {peak:.2f} GiB (file {path.stat().st_size / 2**20:.0f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=860_001)
    parser.add_argument("--points", type=int, default=20)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)  # the child process
    arguments = parser.parse_args()
    if arguments.open is not None:
        open_file(arguments.open)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances_train.json"
        make_file(path, num_images=arguments.images, num_boxes=arguments.boxes, num_points=arguments.points)
        subprocess.run([sys.executable, __file__, "--open", str(path)], check=True)


if __name__ == "__main__":
    main()
