"""Which precision is faster on this machine: not asked of the processor's name, but measured."""

import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

MIN_GAIN = 1.1  # bf16 rounds; it must be worth it
_ROUNDS = 3
_PROBE_SIDE = 320  # of a 800 x 800 picture 16 %; on a CPU, time goes with the pixels


@torch.inference_mode()
def faster_precision(
    fp32: Callable[[Tensor], object], bf16: Callable[[Tensor], object], images: Tensor, *, clock: Callable[[], float] = time.perf_counter
) -> Literal["fp32", "bf16"]:
    """Run both in turns on a corner of the first picture, and name the faster one.

    Args:
        fp32: of images (N, 3, H, W).
        bf16: the same in bf16.
        images: the input that is waiting.
        clock: in seconds.

    Returns:
        ``bf16`` if the shorter of its times is less than that of ``fp32`` by ``MIN_GAIN``.
    """
    on_cpu = images.device.type == "cpu"
    # A small input says little about a GPU, which it does not fill.
    probe = images[:1, :, :_PROBE_SIDE, :_PROBE_SIDE].contiguous(memory_format=torch.channels_last) if on_cpu else images
    times: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for turn in range(_ROUNDS + 1):
        for name, run in (("fp32", fp32), ("bf16", bf16)):
            started = clock()
            run(probe)
            if images.device.type == "cuda":
                torch.cuda.synchronize(images.device)
            if turn:  # the first one chooses kernels and fills caches
                times[name].append(clock() - started)
    return "bf16" if min(times["bf16"]) * MIN_GAIN < min(times["fp32"]) else "fp32"
