"""Choosing a device and a precision, and what measurements need from a device."""

import importlib.util
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lw_retinanet.errors import InputError

ChosenPrecision = Literal["fp32", "bf16", "fp16"]
Precision = ChosenPrecision | Literal["auto"]
TrainingPrecision = Literal["fp32", "bf16", "auto"]
HALF_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device of this name; ``auto`` is CUDA if there is a GPU, else the CPU. An Apple GPU (``mps``) is used only if it is named.

    Raises:
        InputError: If torch does not know the name, or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = known_device(name)
    with warnings.catch_warnings(record=True) as told:  # a driver that is too old for torch, for one
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    if device.type == "cuda" and (not has_cuda or (device.index or 0) >= torch.cuda.device_count()):
        reason = f" ({' '.join(str(told[0].message).split())[:200]})" if told and not has_cuda else ""
        raise InputError(f"device {name} is not available here{reason}; use cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"device {name} is an Apple GPU, which is not available here; use cpu or auto")
    return device


def known_device(name: str) -> torch.device:
    """The device of this name, whether it is available or not.

    Raises:
        InputError: If torch does not know the name.
    """
    try:
        return torch.device(name)
    except RuntimeError:
        raise InputError(f"unknown device {name!r}; use auto, cpu, cuda or mps") from None


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device without waiting for it; one that is there already is returned itself."""
    is_upload = device.type == "cuda" and values.device.type == "cpu"
    return values.pin_memory().to(device, non_blocking=True) if is_upload else values.to(device)


@cache
def has_triton(device_type: str) -> bool:
    """Whether Triton's kernels run on a device of this type. Triton comes with PyTorch for CUDA on Linux."""
    return device_type == "cuda" and importlib.util.find_spec("triton") is not None


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether the device says that it multiplies in bf16. It may still be slower than fp32: see ``detection/precision.py``."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        # Without AVX512-BF16 or AMX, oneDNN emulates bf16 and is slower than fp32.
        if hasattr(torch.cpu, "get_capabilities"):
            capabilities = torch.cpu.get_capabilities()
            return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
        return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())  # before torch 2.11 or so
    return False


def waiting_for(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has finished its work."""
    if device.type == "mps":
        return torch.mps.synchronize
    return (lambda: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda: None)


def cpu_name() -> str:
    """The processor's name, as far as the system knows it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8", errors="replace").splitlines() if information.is_file() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Compute fp32 convolutions in fp32. By default a GPU rounds their inputs to TF32, which is another precision."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
