"""What was measured on: versions, processor, threads; and holding on to these while something is measured."""

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lw_retinanet import __version__
from lw_retinanet.devices import cpu_name
from lw_retinanet.errors import InputError

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "onnxruntime", "openvino")
IDLE_LOAD = 0.2  # of a core; above it something else wants the machine too


def machine(device: torch.device) -> dict[str, Any]:
    """Versions, processor, threads and load, to be asked before the measurement makes a load of its own."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "lw_retinanet": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "system": f"{platform.system()} {platform.release()}",
        "processor": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "cpus": available_cpus(),
        "load_before": load,
    }


def available_cpus() -> list[int]:
    """Numbers of the logical CPUs that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@contextmanager
def pinned_threads(number: int | None) -> Iterator[int]:
    """Compute with so many threads, on as many CPUs and no others; afterwards all is as it was.

    Args:
        number: None for as many as torch takes by itself, or as there are CPUs, if these are fewer.

    Yields:
        The number.

    Raises:
        InputError: for more threads than CPUs.
    """
    cpus, before = available_cpus(), torch.get_num_threads()
    number = min(before, len(cpus)) if number is None else number
    if not 1 <= number <= len(cpus):
        raise InputError(f"--threads {number}: this process may use {len(cpus)} CPUs; more threads than that would wait for each other")
    torch.set_num_threads(number)
    _pin(cpus[:number])
    try:
        yield number
    finally:
        _pin(cpus)
        torch.set_num_threads(before)


def _pin(cpus: list[int]) -> None:
    if not hasattr(os, "sched_setaffinity"):
        return  # macOS and Windows have no such call; there the number of threads has to do
    threads = Path("/proc/self/task")
    # Threads that exist already keep their own masks; new ones take over their parent's.
    for thread in [int(path.name) for path in threads.iterdir()] if threads.is_dir() else [0]:
        try:
            os.sched_setaffinity(thread, cpus)
        except (ProcessLookupError, PermissionError):
            continue  # has ended since, or is not ours to move


def _commit() -> str | None:
    """Of the checkout that this package runs from, with a ``+`` where files differ from it; None where it was installed otherwise."""
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
