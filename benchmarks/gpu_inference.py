"""Inference on a GPU: images per second, kernels, waits and memory, against the matrix rate of the same GPU in the same run.

    python benchmarks/gpu_inference.py [--size 800] [--classes 80] [--backbone resnet50] [--batches 1 8 32] [--compile] [--rounds 30]
        [--presets NAME ...] [--json]

Detectors compute in bf16. ``network`` is the network alone; ``detections`` adds post-processing and the copy of the boxes to the host.
Images lie on the GPU, resized and normalised: decoding them is the work of a CPU. Weights are random with realistic scores.

A detector's share of the matrix rate is twice the multiply-accumulates of its convolutions, times the images per second of its network,
over the best rate of large bf16 matrix products. Goals: half of that rate, and 1,500 images per second of lw-v3, 800 x 800, in batches of
32 with post-processing.

``--device cpu --size 128 --backbone resnet18 --batches 1 2 --rounds 2`` tries the script where there is no GPU; what only a GPU can tell is
left out then, and said so.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from lw_retinanet.benchmarking.entries import give_scores, made_up_network
from lw_retinanet.benchmarking.images import made_up_images
from lw_retinanet.benchmarking.machine import machine, waits_and_peak
from lw_retinanet.benchmarking.realistic import CANDIDATES
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.counting.rounds import summary, take_turns
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector, NetworkInputs
from lw_retinanet.detection.runtime import TorchRuntime
from lw_retinanet.devices import waiting_for
from lw_retinanet.structures import Predictions
from lw_retinanet.tables import aligned

PRESETS = ("retinanet", "lw-v3", "lw-narrow")
PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 4096))
SMALL_PRODUCTS = ((512, 512, 512), (1024, 1024, 512))  # for a CPU
SHARE_GOAL = 0.5
RATE_GOAL = {"preset": "lw-v3", "batch": 32, "size": 800, "images_per_second": 1500}
WARM_UP = 3
RUNTIME_LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu for a trial of this script")
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--backbone", default="resnet50")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--presets", nargs="+", default=list(PRESETS))
    parser.add_argument("--candidates", type=int, default=CANDIDATES, help="pairs over the score threshold in the first image")
    parser.add_argument("--compile", action="store_true", help="also through torch.compile: a minute for each network and batch")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    a = parser.parse_args()
    device = torch.device(a.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here; --device cpu --size 128 --backbone resnet18 tries the script", file=sys.stderr)
        return 2
    images = made_up_images(a.size)
    result: dict[str, Any] = {
        "what": "inference in bf16, images on the device",
        "machine": machine(device),
        "size": a.size,
        "classes": a.classes,
        "backbone": a.backbone,
        "rounds": a.rounds,
        "matrix_rate": matrix_rate(device, a.rounds),
        "goals": {"share_of_matrix_rate": SHARE_GOAL, "rate": RATE_GOAL},
        "left_out": [] if device.type == "cuda" else ["kernels", "waits", "peak memory"],
        "rows": [],
    }
    categories = tuple(Category(id=number, name=f"class_{number}") for number in range(a.classes))
    for preset in a.presets:
        network = made_up_network(preset, size=a.size, num_classes=a.classes, backbone=a.backbone).to(device)
        give_scores(network, images, candidates=a.candidates)
        for compiled in (False, True) if a.compile else (False,):
            detector = Detector.of_model(network, categories, device=device, precision="bf16", compile=compiled)
            for batch in a.batches:
                inputs = detector.prepare([images.decoded(number % len(images.files)) for number in range(batch)])
                macs = sum(cost.macs for cost in count_blocks(network, inputs.size_hw).values())
                about = {"preset": preset, "compiled": compiled, "batch": batch, "gmacs": macs / 1e9}
                measured = measure(detector, inputs, device, a.rounds)
                result["rows"].append({**about, **with_rates(measured, batch, macs, result["matrix_rate"]["flops_per_second"])})
    print(json.dumps(result) if a.json else "\n".join(table(result)))
    return 0


@torch.inference_mode()
def measure(detector: Detector, inputs: NetworkInputs, device: torch.device, rounds: int) -> dict[str, Any]:
    """Milliseconds a batch of the network and of all up to boxes on the host, in turns, and what a GPU tells about each."""
    runtime = detector.runtime
    assert isinstance(runtime, TorchRuntime)

    def network_only(network: Callable[..., Predictions], images: torch.Tensor) -> torch.Tensor:
        return network(images).deltas[:, 0]  # a small answer, so that the copy to the host takes no time

    is_gpu = device.type == "cuda"  # which runs both as CUDA graphs
    calls: dict[str, Callable[[int], Any]] = {
        "network": lambda _: runtime.repeated("network", network_only, inputs.images) if is_gpu else detector.network(inputs.images),
        "detections": lambda _: detector.detections(inputs, detector.conventions),
    }
    found = calls["detections"](0)  # makes and compiles what is made once
    times = take_turns(calls, rounds=rounds, warm_up=WARM_UP, wait=waiting_for(device))
    row: dict[str, Any] = {"boxes_per_image": float(found.counts.float().mean())}
    for name, call in calls.items():
        row[name] = {"ms": summary(times[name]), **(on_gpu(call, device) if device.type == "cuda" else {})}
    return row


def on_gpu(call: Callable[[int], Any], device: torch.device) -> dict[str, int]:
    """Of one call: kernels, launches by the host, waits as torch's debug mode sees them, and the peak of allocated bytes."""
    found = waits_and_peak(call, device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        call(0)
        torch.cuda.synchronize(device)
    events = [event for event in profiled.events() if not getattr(event, "is_user_annotation", False)]
    return {**found, **count_events((event.name, event.device_type.name) for event in events)}


def count_events(events: Iterable[tuple[str, str]]) -> dict[str, int]:
    """Kernels that ran and launches that the host made, from (name, device) of a profile; copies and fills are no kernels."""
    kernels = launches = 0
    for name, device in events:
        kernels += device == "CUDA" and not name.startswith(("Memcpy", "Memset"))
        launches += device == "CPU" and name in RUNTIME_LAUNCHES
    return {"kernels": kernels, "launches": launches}


@torch.inference_mode()
def matrix_rate(device: torch.device, rounds: int) -> dict[str, Any]:
    """The best rate of large bf16 matrix products: the most that convolutions could reach here."""
    best: dict[str, Any] = {"flops_per_second": 0.0}
    for rows, inner, columns in PRODUCTS if device.type == "cuda" else SMALL_PRODUCTS:
        left = torch.randn(rows, inner, device=device).bfloat16()
        right = torch.randn(inner, columns, device=device).bfloat16()

        def product(_: int, left: torch.Tensor = left, right: torch.Tensor = right) -> torch.Tensor:
            return left @ right

        times = take_turns({"product": product}, rounds=rounds, warm_up=WARM_UP, wait=waiting_for(device))["product"]
        rate = 2 * rows * inner * columns / (float(np.median(times)) / 1e3)
        if rate > best["flops_per_second"]:
            best = {"flops_per_second": rate, "shape": [rows, inner, columns]}
    return best


def with_rates(measured: Mapping[str, Any], batch: int, macs: int, flops_per_second: float) -> dict[str, Any]:
    """The same row with images per second, and the network's share of the matrix rate."""
    row = dict(measured)
    for name in ("network", "detections"):
        row[name] = {**measured[name], "images_per_second": batch / (measured[name]["ms"]["median"] / 1e3)}
    row["share_of_matrix_rate"] = 2 * macs * row["network"]["images_per_second"] / flops_per_second
    return row


def verdicts(rows: Sequence[Mapping[str, Any]], size: int, is_gpu: bool) -> list[str]:
    """Both goals beside what was measured."""
    best = max(rows, key=lambda row: row["share_of_matrix_rate"])
    name = f"{best['preset']}{' compiled' if best['compiled'] else ''}, batch {best['batch']}"
    lines = [f"goal {SHARE_GOAL:.0%} of the matrix rate: {best['share_of_matrix_rate']:.0%} at best ({name})"]
    like = [row for row in rows if row["preset"] == RATE_GOAL["preset"] and row["batch"] == RATE_GOAL["batch"]]
    words = f"goal {RATE_GOAL['images_per_second']:,} images per second of {RATE_GOAL['preset']} with post-processing"
    if not is_gpu or size != RATE_GOAL["size"] or not like:
        return [*lines, f"{words}: not run (it is for a GPU, {RATE_GOAL['size']} x {RATE_GOAL['size']}, batch {RATE_GOAL['batch']})"]
    return [*lines, f"{words}: {max(row['detections']['images_per_second'] for row in like):,.0f}"]


def table(result: Mapping[str, Any]) -> list[str]:
    """For people."""
    is_gpu = not result["left_out"]
    head = ["", "batch", "GMACs", "network, ms", "with boxes, ms", "images/s", "with boxes", "share of rate"]
    lines = [[*head, *(["kernels per image", "launches", "waits a batch", "peak GiB"] if is_gpu else [])]]
    for row in result["rows"]:
        network, whole = row["network"], row["detections"]
        cells = [f"{row['preset']}{' compiled' if row['compiled'] else ''}", str(row["batch"]), f"{row['gmacs']:.1f}"]
        cells += [f"{part['ms']['median']:.2f} ({part['ms']['low']:.2f} to {part['ms']['high']:.2f})" for part in (network, whole)]
        cells += [f"{part['images_per_second']:,.1f}" for part in (network, whole)]
        cells.append(f"{row['share_of_matrix_rate']:.1%}")
        if is_gpu:
            cells += [f"{whole[key] / row['batch']:.1f}" for key in ("kernels", "launches")]
            cells += [f"{network['waits']} + {whole['waits'] - network['waits']}", f"{whole['peak_bytes'] / 2**30:.2f}"]
        lines.append(cells)
    about, rate = result["machine"], result["matrix_rate"]
    device = about["device"] if is_gpu else f"{about['processor']} (no GPU: {', '.join(result['left_out'])} left out)"
    size = result["size"]
    return [
        f"{device}; torch {about['packages']['torch']}; bf16; {result['backbone']}, {size} x {size}, {result['classes']} classes",
        f"best matrix product: {rate['flops_per_second'] / 1e12:.2f} TFLOP/s, {' x '.join(map(str, rate['shape']))}",
        "",
        *aligned(lines),
        "",
        *verdicts(result["rows"], size, is_gpu),
    ]


if __name__ == "__main__":
    sys.exit(main())
