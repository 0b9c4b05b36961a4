"""Timing two or more calls side by side: rounds in turns, medians, and the interval of a ratio. Shared by the scripts in this folder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torchvision

import lw_retinanet as lw

Times = dict[str, list[float]]


def take_turns(calls: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 2) -> Times:
    """Seconds of each call in each round; every second round runs in the opposite order (A B, B A), so that a drift hits all alike."""
    times: Times = {name: [] for name in calls}
    for turn in range(warm_up + rounds):
        for name in list(calls) if turn % 2 == 0 else reversed(list(calls)):
            started = time.perf_counter()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - started)
    return times


def summary(seconds: list[float]) -> dict[str, float]:
    """Median, 10th and 90th percentile in milliseconds."""
    p10, median, p90 = np.percentile(np.array(seconds) * 1e3, [10, 50, 90])
    return {"median_ms": round(float(median), 3), "p10_ms": round(float(p10), 3), "p90_ms": round(float(p90), 3)}


def ratio(slow: list[float], fast: list[float], *, draws: int = 10_000, seed: int = 0) -> dict[str, float]:
    """Median of ``slow`` over median of ``fast``, with the 95 % interval from drawing rounds, of which both have their times, anew."""
    rows = np.random.default_rng(seed).integers(len(slow), size=(draws, len(slow)))
    drawn = np.median(np.array(slow)[rows], axis=1) / np.median(np.array(fast)[rows], axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"ratio": round(float(np.median(slow) / np.median(fast)), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def machine() -> dict[str, object]:
    """Versions and what the numbers were measured on."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    load = _lines("/proc/loadavg")
    return {
        "lw_retinanet": lw.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "threads": torch.get_num_threads(),
        "processor": model,
        "isa": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "load_before": float(load[0].split()[0]) if load else None,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
