"""The machine of a measurement: versions, processor, threads pinned to CPUs, and what a GPU says about a call."""

import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lw_retinanet import __version__
from lw_retinanet.detection.precision import ISA_VARIABLES, Work, measured_times
from lw_retinanet.devices import cpu_name, multiplies_in_bf16
from lw_retinanet.errors import InputError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "onnxruntime", "openvino")
IDLE_LOAD = 0.2  # of a core; a higher load means that something else is running


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, processor, threads and load. Ask before the measurement, which makes a load of its own."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "lw_retinanet": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.release()}",
        "processor": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "amx": has_amx(),
        "caps": {name: os.environ[name] for name in ISA_VARIABLES if name in os.environ},
        "bf16_pays": bf16_verdict(device),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": available_cpus(),
        "load_before": load,
    }


def has_amx() -> bool:
    """Whether convolutions can use AMX: the processor has it and no environment variable forbids it."""
    caps = [os.environ[name].upper() for name in ISA_VARIABLES if name.endswith("MAX_CPU_ISA") and name in os.environ]
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("amx_bf16")) and all("AMX" in cap or cap in ("ALL", "DEFAULT") for cap in caps)


def bf16_verdict(device: torch.device) -> dict[str, Any]:
    """For each work, whether bf16 pays on the device, and the times of a convolution that say so; empty where bf16 is not computed."""
    if not multiplies_in_bf16(device):
        return {}
    works: tuple[Work, ...] = ("inference", "training")
    times = {work: measured_times(device, work) for work in works}
    return {work: {"pays": each.bf16_pays, "fp32_ms": each.fp32, "bf16_ms": each.bf16} for work, each in times.items()}


def available_cpus() -> list[int]:
    """Numbers of the logical CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def pinned_threads(number: int | None) -> Iterator[int]:
    """Compute with this number of threads, on as many CPUs and no others. At the end the old settings return.

    Args:
        number: Number of threads. None takes as many as torch takes by itself, or as there are CPUs if these are fewer.

    Yields:
        The number of threads.

    Raises:
        InputError: If there are fewer CPUs than threads.
    """
    cpus, before = available_cpus(), torch.get_num_threads()
    number = min(before, len(cpus)) if number is None else number
    if not 1 <= number <= len(cpus):
        raise InputError(f"threads must be from 1 to {len(cpus)}, the number of CPUs that this process may use, got {number}")
    torch.set_num_threads(number)
    _pin(cpus[:number])
    try:
        yield number
    finally:
        _pin(cpus)
        torch.set_num_threads(before)


def waits_and_peak(call: Callable[[int], object], device: torch.device) -> dict[str, int]:
    """For one call on a CUDA device: ``waits`` of the host for it, and ``peak_bytes`` allocated at a time beside those before."""
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


def _pin(cpus: list[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return  # macOS and Windows have no such call; only the number of threads can be set there
    threads = Path("/proc/self/task")
    # Threads that exist already keep their own masks; new threads inherit the mask of their parent.
    for thread in [int(path.name) for path in threads.iterdir()] if threads.is_dir() else [0]:
        try:
            os.sched_setaffinity(thread, cpus)
        except (ProcessLookupError, PermissionError):
            continue  # it has ended since, or it is not ours


def _commit() -> str | None:
    """The commit of the checkout that this package runs from, with ``+`` if files differ from it; None if there is no checkout."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists() or (git := shutil.which("git")) is None:
        return None

    def answer(*arguments: str) -> str | None:
        asked = subprocess.run([git, "-C", str(root), *arguments], capture_output=True, text=True, check=False)
        return asked.stdout.strip() if asked.returncode == 0 else None

    commit = answer("rev-parse", "--short=10", "HEAD")
    return commit and commit + ("+" if answer("status", "--porcelain", "--untracked-files=no", "--", "src") else "")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
