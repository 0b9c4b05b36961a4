"""Which precision is faster on this machine, by a measurement."""

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

MIN_GAIN = 1.1  # bf16 costs accuracy, so it must be clearly faster
_ROUNDS = 3
_PROBE_SIDE = 320  # 16 % of an 800 x 800 image; on a CPU, time is proportional to the pixels


@torch.inference_mode()
def faster_precision(
    fp32: Callable[[Tensor], object], bf16: Callable[[Tensor], object], images: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> Literal["fp32", "bf16"]:
    """Run both in turns on a corner of the first image, and name the faster one.

    Args:
        fp32: The network; takes images (N, 3, H, W).
        bf16: The same in bf16.
        images: The first input, which is to be predicted next.
        clock: Time in seconds.

    Returns:
        ``bf16`` if the shortest time of ``fp32`` is more than ``MIN_GAIN`` times that of ``bf16``.
    """
    on_cpu = images.device.type == "cpu"
    # A GPU gets the whole input, because a small one does not fill it.
    probe = images[:1, :, :_PROBE_SIDE, :_PROBE_SIDE].contiguous(memory_format=torch.channels_last) if on_cpu else images
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for turn in range(_ROUNDS + 1):
        for name, run in (("fp32", fp32), ("bf16", bf16)):
            started = clock()
            run(probe)
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
            if turn:  # the first turn, which chooses kernels and fills caches, does not count
                times[name].append(clock() - started)
    return "bf16" if min(times["bf16"]) * MIN_GAIN < min(times["fp32"]) else "fp32"
