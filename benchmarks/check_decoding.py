"""Time `data check` of a split against the bare decoder on the same files, with as many threads, in alternating rounds.

    python benchmarks/check_decoding.py DATA [--split train] [--rounds 5]

The limit that the project sets itself is 10 % more than the decoder alone.
"""

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.images import decode
from lw_retinanet.jobs.data import check_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    records = Dataset.open(arguments.data).read(arguments.split)
    paths = [records.path(row) for row in range(records.num_images)]
    bare, whole = [], []
    for _ in range(arguments.rounds + 1):  # the first one warms up
        start = time.perf_counter()
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            shapes = list(pool.map(lambda path: decode(path).shape, paths))
        middle = time.perf_counter()
        check_data(arguments.data, split=arguments.split)
        bare.append(middle - start)
        whole.append(time.perf_counter() - middle)
    ratios = [one / other for one, other in zip(whole[1:], bare[1:], strict=True)]
    print(
        f"{len(shapes)} images, {os.cpu_count()} threads: decoder {median(bare[1:]):.2f} s, data check {median(whole[1:]):.2f} s, "
        f"ratio {median(ratios):.3f} (each round: {', '.join(f'{ratio:.2f}' for ratio in ratios)})"
    )


if __name__ == "__main__":
    main()
