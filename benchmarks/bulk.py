"""Prediction on a list: what survives kills, what memory it takes, and what it costs beside the detector alone.

    python benchmarks/bulk.py kills [--images 100000] [--processes 2] [--chunk 1000] [--batch 32]
    python benchmarks/bulk.py rate [--images 2000] [--rounds 10] [--batch 1] [--size 64]

``kills`` starts ``predict --manifest`` on links to eight images, kills it (-9) when a quarter, a half and seven eighths are done (first
its group, then one of its processes, then the command alone), starts it again each time, and checks that every image is there once with
the detections of the image that it links to. Memory is looked at all the time: of each process that lasted 10,000 images the slope from
the thousandth image on. ``rate`` times the same list and the same detector without list and parts in turns, after opening the model.
Both print one JSON object and end with 1 if what they found is wrong.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from lw_retinanet.benchmarking.machine import machine
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.counting.rounds import ratio_interval, take_turns
from lw_retinanet.data.records import Category
from lw_retinanet.data.sample import make_sample
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.heads import PRESETS
from lw_retinanet.jobs import predict_bulk as job
from lw_retinanet.jobs.merge_bulk import merge_bulk
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import make_record, save_model

PATIENCE_SECONDS = 60
SLOPE_KB, FIRST, LASTED = 1024, 1000, 10_000


def make_model(file: Path, size: int) -> None:
    """A small network with random weights that finds a few objects in each image."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"backbone": "mobilenet_v2", "width": 16, "norm": "frozen"}
    model = build(PRESETS["lw-v3"], num_classes=3, conventions=Conventions(input=InputRule(size=size)), **shape).eval()
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias") and parameter.numel() == 27:  # nine anchors of three classes, whose prior is taken out
                parameter.fill_(-1.0)
    names = tuple(Category(id=number, name=name) for number, name in enumerate("abc", start=1))
    save_model(file, model, make_record(model, preset="lw-v3", plan=PRESETS["lw-v3"], categories=names, notes={}, **shape))


def make_list(folder: Path, number: int, size: int) -> tuple[Path, list[str]]:
    """A list of links to eight images."""
    originals = sorted((make_sample(folder / "data", num_train=8, num_val=1, size=size) / "images").iterdir())[:8]
    (folder / "links").mkdir()
    files = [str(folder / "links" / f"{row:07d}.jpg") for row in range(number)]
    for row, file in enumerate(files):
        os.symlink(originals[row % 8], file)  # noqa: PTH211 - a hundred thousand of them
    (folder / "list.txt").write_text("\n".join(files))
    return folder / "list.txt", files


class Command:
    """``predict --manifest`` in a session of its own, and the memory of its processes."""

    def __init__(self, arguments: list[str], out: Path, first: int) -> None:
        self.out, self.first, self.memory = out, first, dict[int, list[tuple[int, int]]]()
        command = [sys.executable, "-m", "lw_retinanet.cli.main", "predict", *arguments, "--out", str(out)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)

    def running(self) -> list[int]:
        """Its processes, the first one first."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return sorted(found)

    def watch(self, until: int) -> int:
        """Wait until so many parts are there or it has ended; the number of parts."""
        while (done := len(list(self.out.glob("part-*.parquet")))) < until and self.process.poll() is None:
            for process in self.running():
                with suppress(OSError, StopIteration):
                    lines = Path(f"/proc/{process}/status").read_text().splitlines()
                    kilobytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
                    self.memory.setdefault(process, []).append((done - self.first, kilobytes))
            time.sleep(0.2)
        return done

    def is_gone(self) -> bool:
        """Whether all of its processes end within a minute."""
        self.process.wait(PATIENCE_SECONDS)
        limit = time.monotonic() + PATIENCE_SECONDS
        while self.running() and time.monotonic() < limit:
            time.sleep(0.1)
        return not self.running()

    def slopes(self, chunk: int, processes: int) -> Iterator[float]:
        """Kilobytes per 1,000 images of each process that lasted long enough, without its first 1,000 images."""
        for samples in self.memory.values():
            images, kilobytes = np.array(samples, float).T
            images *= chunk / processes
            late = images >= FIRST + chunk
            if late.any() and images.max() >= LASTED:
                yield float(np.polyfit(images[late], kilobytes[late], 1)[0] * 1000)


def kills(a: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], bool]:
    """The report, and whether all is right."""
    make_model(folder / "model.safetensors", a.size)
    listed, files = make_list(folder, a.images, a.size)
    out, parts = folder / "out", -(-a.images // a.chunk)
    arguments = [str(folder / "model.safetensors"), "--manifest", str(listed), "--score", "0.05"]
    arguments += ["--chunk", str(a.chunk), "--batch-size", str(a.batch), "--processes", str(a.processes)]
    started, done, gone, codes, slopes = time.monotonic(), 0, [], [], list[float]()
    for eighths in (2, 4, 7, 9):
        command = Command(arguments, out, done)
        done = command.watch(parts * eighths // 8)
        if eighths == 4:  # a process that the command started, if it started any: it ends when the others are done
            os.kill(command.running()[-1], signal.SIGKILL)
            done = command.watch(parts + 1)
        elif eighths == 7:
            os.kill(command.process.pid, signal.SIGKILL)
        elif eighths == 2:
            os.killpg(command.process.pid, signal.SIGKILL)
        gone.append(command.is_gone())
        codes.append(command.process.returncode)
        slopes += command.slopes(a.chunk, a.processes)
        errors = command.process.stderr.read().decode(errors="replace") if command.process.stderr else ""
    seconds = time.monotonic() - started
    merge_bulk(out)
    from pyarrow import parquet

    table = parquet.read_table(out / "predictions.parquet")
    rows = dict(zip(table["file"].to_pylist(), table["detections"].to_pylist(), strict=True))
    detector = open_detector(folder / "model.safetensors", device="cpu")
    alone = [len(one.scores) for one in detector.predict(files[:8], score=0.05)]
    report = {
        "machine": machine(torch.device("cpu")),
        "images": a.images,
        "processes": a.processes,
        "codes": codes,
        "errors": errors[-300:] if codes[-1] else "",
        "rows": table.num_rows,
        "in_order_once_each": table["file"].to_pylist() == files,
        "like_their_originals": sum(len(rows[file]) == alone[row % 8] for row, file in enumerate(files)),
        "detections": sum(alone) / 8,
        "nothing_left_running": gone,
        "kilobytes_per_1000_images": [round(slope, 1) for slope in slopes],
        "seconds": round(seconds, 1),
    }
    is_right = report["in_order_once_each"] and report["like_their_originals"] == a.images and all(gone) and sum(alone) > 0
    return report, is_right and max(slopes, default=0) < SLOPE_KB


def rate(a: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], bool]:
    """The report, and whether the list takes at most 5 % longer."""
    make_model(folder / "model.safetensors", a.size)
    listed, files = make_list(folder, a.images, a.size)
    detector = open_detector(folder / "model.safetensors", device="cpu")

    def on_list(number: int) -> None:
        out = str(folder / f"out{number}-{time.monotonic_ns()}")
        settings = job.BulkSettings(
            model=str(folder / "model.safetensors"),
            manifest=str(listed),
            out=out,
            chunk=a.chunk,
            score=0.05,
            batch_size=a.batch,
            device="cpu",
        )
        with mock.patch.object(job, "open_detector", return_value=detector):
            job.predict_bulk(settings)

    def alone(_: int) -> None:
        for _outcome in detector.predict_files(files, score=0.05, batch_size=a.batch):
            pass

    times = take_turns({"detector": alone, "list": on_list}, rounds=a.rounds, warm_up=1)
    ratio = ratio_interval(times["detector"], times["list"])
    report = {
        "machine": machine(torch.device("cpu")),
        "images": a.images,
        "batch": a.batch,
        "size": a.size,
        "images_a_second": {name: round(a.images / (float(np.median(values)) / 1000), 1) for name, values in times.items()},
        "rate_of_the_detector_alone": ratio.as_dict("ratio"),
    }
    return report, ratio.value >= 0.95


def main() -> int:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["kills", "rate"])
    parser.add_argument("--images", type=int)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    a = parser.parse_args()
    a.images = a.images or (100_000 if a.what == "kills" else 2000)
    with tempfile.TemporaryDirectory() as folder:
        report, is_right = (kills if a.what == "kills" else rate)(a, Path(folder))
    print(json.dumps({**report, "right": is_right}, indent=1))
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())
