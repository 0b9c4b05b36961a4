"""Frames a second of ``predict`` on a video, against the detector alone on the same decoded frames; or its memory over a long video.

    OMP_NUM_THREADS=2 python benchmarks/video.py [--frames 795] [--rounds 5] [--model FILE] [--precision fp32] [--format .webm] [--every 1]
    OMP_NUM_THREADS=1 python benchmarks/video.py --memory 10000

The video is made up: 768 x 576 at 25 frames a second, textured and moving, so that it is neither free to decode nor to encode. In each
round both take their turn, on frames / rounds of it. Without ``--model`` the network is lw-v3 with ResNet-50 at 800 px and random weights.
The score is chosen so that some ten boxes are drawn in a frame. ``ratio`` is the time alone over the time of the whole, so 0.9 means frames
a second within 10 %. Prints one JSON object.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lw_retinanet.benchmarking.machine import machine
from lw_retinanet.config import ModelConfig
from lw_retinanet.counting.rounds import ratio_interval, summary, take_turns
from lw_retinanet.data.records import Category
from lw_retinanet.data.video import VideoReader, VideoWriter
from lw_retinanet.detection.detector import Detector
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.jobs.predict_video import run_video_prediction
from lw_retinanet.weights.create import create_model

BOXES = 10
RATE = 25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=795)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--format", default=".webm")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--memory", type=int, metavar="FRAMES")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(memory(Path(folder), a.memory) if a.memory else speed(Path(folder), a)))


def speed(folder: Path, a: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds a frame of both, and their ratio."""
    network = ModelConfig(preset="lw-v3", backbone="resnet50", norm="frozen")
    detector = open_detector(a.model or random_detector(network, 800, a.precision), device=a.device, precision=a.precision)
    before = machine(detector.device)
    count = max(1, a.frames // a.rounds)
    clip = make_clip(folder / "clip.mp4", count, (768, 576))
    frames = [frame.pixels for frame in VideoReader(clip).frames()]
    scores = np.sort(detector.predict([frames[0]], score=0.0)[0].scores)[::-1]
    score = float(scores[min(BOXES, len(scores) - 1)])
    boxes: list[int] = []

    def alone(number: int) -> None:
        for frame in frames[:: a.every]:
            detector.predict_arrays([frame], score=score)

    def whole(number: int) -> None:
        done = run_video_prediction(detector, clip, out=folder / f"out{a.format}", every=a.every, score=score)
        boxes.append(done.num_detections)

    detector.predict_arrays([frames[0]], score=score)
    times = take_turns({"alone": alone, "whole": whole}, rounds=a.rounds, warm_up=0)
    per_frame = {name: [one / count for one in each] for name, each in times.items()}
    return {
        "frames": count * a.rounds,
        "every": a.every,
        "format": a.format,
        "model": detector.name or "lw-v3, ResNet-50, 800 px, random weights",
        "precision": detector.chosen_precision,
        "boxes_per_frame": sum(boxes) / (len(boxes) * len(range(0, count, a.every))),
        "ms_per_frame": {name: summary(each) for name, each in per_frame.items()},
        "frames_per_second": {name: 1e3 / summary(each)["median"] for name, each in per_frame.items()},
        "ratio": ratio_interval(per_frame["alone"], per_frame["whole"]).as_dict("ratio"),
        "machine": before,
    }


def memory(folder: Path, count: int) -> dict[str, Any]:
    """Resident memory in MiB at each tenth of a video, for ``stream`` and for the whole of ``predict``."""
    detector = random_detector(ModelConfig(preset="lw-v3", backbone="mobilenet_v2", head_width=16, norm="batch"), 64, "fp32")
    clip = make_clip(folder / "clip.mp4", count, (320, 240))
    seen: dict[str, list[float]] = {"stream": [], "predict": []}

    def note(name: str, number: int) -> None:
        if number % (count // 10) == count // 10 - 1:
            seen[name].append(resident())

    for result in detector.stream(clip, score=0.0):
        note("stream", result.frame)

    def watched(items: Any, total: int, what: str) -> Any:
        for number, item in enumerate(items):
            note("predict", number)
            yield item

    run_video_prediction(detector, clip, out=folder / "out.webm", score=0.02, progress=watched)
    return {"frames": count, "resident_mib": seen}


def random_detector(config: ModelConfig, size: int, precision: Any) -> Detector:
    """A detector with random weights, for one class."""
    model = create_model(config, num_classes=1, image_size=size, seed=0)
    return Detector.of_model(model, (Category(id=1, name="thing"),), precision=precision)


def make_clip(path: Path, count: int, size: tuple[int, int]) -> Path:
    """A view that moves over a large texture of blobs of all sizes."""
    width, height = size
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, height // step, width // step, generator=generator) for step in (4, 16, 64)]
    layers = [torch.nn.functional.interpolate(layer, size=(height + 200, width + 200), mode="bilinear") for layer in layers]
    texture = (torch.stack(layers).mean(dim=0)[0].permute(1, 2, 0) * 255).byte().numpy()
    writer = VideoWriter(path, rate=RATE, size_hw=(height, width))
    for number in range(count):
        x, y = (int(100 + 99 * wave(number / period)) for wave, period in ((np.sin, 37), (np.cos, 53)))
        writer.add(np.ascontiguousarray(texture[y : y + height, x : x + width]), number / RATE)
    assert writer.close()
    return path


def resident() -> float:
    """Resident memory of this process in MiB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


if __name__ == "__main__":
    main()
