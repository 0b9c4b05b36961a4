"""What only a GPU tells about a call: how often the host waited for it, and how much memory it took."""

import warnings
from collections.abc import Callable
from typing import Any

import torch


def waits_and_peak(call: Callable[[int], object], device: torch.device) -> dict[str, int]:
    """``waits`` of the host for the GPU in one call, as torch's debug mode sees them, and ``peak_bytes`` that it allocated at
    a time, beside what lay there before. CUDA only.
    """
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    mode: Any = torch.cuda.set_sync_debug_mode
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        mode("warn")
        try:
            call(0)
        finally:
            mode("default")
    torch.cuda.synchronize(device)
    waits = sum("synchronizing" in str(warning.message) for warning in seen)
    return {"waits": waits, "peak_bytes": torch.cuda.max_memory_allocated(device) - before}
