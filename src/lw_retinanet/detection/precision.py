"""Which precision is faster on this machine, by a measurement of a typical convolution that is made once and kept in a file."""

import functools
import json
import logging
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import nn

from lw_retinanet.devices import ChosenPrecision, Precision, cpu_name, multiplies_in_bf16, waiting_for
from lw_retinanet.errors import InputError, LwRetinaNetError
from lw_retinanet.files import write_text

Work = Literal["inference", "training"]
MIN_GAIN = 1.15  # bf16 costs accuracy, so it must be faster by more than a measurement errs
ISA_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that cap the instruction set of PyTorch's convolutions and of its other operators."""
_ROUNDS = 5
_MAX_SECONDS = 0.5  # where bf16 is emulated, one round can take this long
log = logging.getLogger(__name__)


class Times(NamedTuple):
    """Milliseconds of the same convolution in both precisions, on one core of a CPU."""

    fp32: float
    bf16: float

    @property
    def bf16_pays(self) -> bool:
        """Whether bf16 is clearly faster."""
        return self.bf16 * MIN_GAIN < self.fp32

    def __str__(self) -> str:
        return f"a convolution takes {self.bf16:.2f} ms in bf16 and {self.fp32:.2f} ms in fp32"


def choose_precision(precision: Precision, device: torch.device, work: Work) -> ChosenPrecision:
    """The precision to compute in, told in one log line. A precision that is asked for is taken; there is a warning where it is slower.

    Args:
        precision: ``auto`` is bf16 where it was measured to be faster by ``MIN_GAIN``. ``fp16`` is for inference on a GPU.
        device: To compute on.
        work: ``training`` measures a backward pass, too.

    Raises:
        InputError: for bf16 on an Apple GPU, for fp16 on a CPU, and for training in fp16.
    """
    if precision == "bf16" and device.type == "mps":
        raise InputError("bf16 is not for Apple GPUs (mps); use the precision fp16, fp32 or auto")
    if precision == "fp16" and (work == "training" or device.type not in ("cuda", "mps")):
        raise InputError(f"fp16 is for inference on GPUs (cuda, mps), not for {work} on {device.type}; use the precision fp32 or auto")
    if precision in ("fp32", "fp16"):
        return precision
    if device.type not in ("cpu", "cuda") or (precision == "auto" and not multiplies_in_bf16(device)):
        return "bf16" if precision == "bf16" else "fp32"
    times = measured_times(device, work)
    if precision == "auto":
        chosen: ChosenPrecision = "bf16" if times.bf16_pays else "fp32"
        _tell(logging.INFO, f"precision auto is {chosen} for {work} here: {times}")
        return chosen
    if times.bf16 > times.fp32:
        _tell(logging.WARNING, f"bf16 is slower than fp32 for {work} here: {times}; the precision auto or fp32 is faster")
    return "bf16"


@functools.cache
def _tell(level: int, message: str) -> None:
    log.log(level, message)


def measured_times(device: torch.device, work: Work) -> Times:
    """The times of this machine: from the file of an earlier measurement, or measured now and written there if that is possible."""
    key, file = _key(device, work), cache_file()
    kept = _read(file)
    try:
        return Times(*map(float, kept[key]))
    except (KeyError, TypeError, ValueError):
        times = measure(device, work)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({**kept, key: times}, indent=1))
    except (OSError, LwRetinaNetError):
        log.debug("%s cannot be written", file)
    return times


def cache_file() -> Path:
    """Where measurements are kept. Deleting the file is harmless: they are made again."""
    named = os.environ.get("XDG_CACHE_HOME")
    folder = Path(named) if named else Path(os.path.expanduser("~")) / ".cache"  # noqa: PTH111  (Path.home() may raise)
    return folder / "lw_retinanet" / "precision.json"


def _read(file: Path) -> dict[str, list[float]]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _key(device: torch.device, work: Work) -> str:
    """All that the times depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    caps = [f"{variable}={os.environ[variable]}" for variable in ISA_VARIABLES if variable in os.environ]
    instructions = torch.backends.cpu.get_cpu_capability()
    return ", ".join([name, platform.machine(), instructions, *caps, f"torch {torch.__version__}", work])


def measure(device: torch.device, work: Work, *, clock: Callable[[], float] | None = None) -> Times:
    """Run a 3x3 convolution with its ReLU in turns in fp32 and in bf16, for about a tenth of a second.

    Args:
        device: CPU or CUDA device.
        work: ``inference`` runs weights that are in bf16 already; ``training`` runs autocast, forward and backward.
        clock: Time in seconds; None takes that of the processor on a CPU. One thread by that clock is not disturbed by other programs.

    Returns:
        The shortest of each, since what disturbs makes slower and never faster.
    """
    threads = torch.get_num_threads()
    clock = clock or (time.process_time if device.type == "cpu" else time.perf_counter)
    torch.set_num_threads(1)
    try:
        return _take_turns(device, work, clock)
    finally:
        torch.set_num_threads(threads)


def _take_turns(device: torch.device, work: Work, clock: Callable[[], float]) -> Times:
    runs = {precision: _run(device, work, is_bf16=precision == "bf16") for precision in Times._fields}
    wait = waiting_for(device)
    times: dict[str, list[float]] = {precision: [] for precision in Times._fields}
    first = clock()
    for turn in range(_ROUNDS + 1):
        for precision, run in runs.items():
            started = clock()
            run()
            wait()
            if turn or clock() - first > _MAX_SECONDS:  # the first turn, which chooses kernels, does not count unless it is the only one
                times[precision].append(1000 * (clock() - started))
            if times["bf16"] and times["fp32"] and clock() - first > _MAX_SECONDS:
                return Times(**{precision: min(values) for precision, values in times.items()})
    return Times(**{precision: min(values) for precision, values in times.items()})


def _run(device: torch.device, work: Work, *, is_bf16: bool) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    # The width of ResNet's C3; a GPU gets a batch that fills it.
    images = torch.randn((1 if device.type == "cpu" else 32, 128, 28, 28), generator=generator).to(device)
    conv = nn.Conv2d(128, 128, 3, padding=1, device=device).to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)

    def train() -> None:
        with torch.enable_grad(), torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            output = conv(images).relu()
        output.backward(torch.ones_like(output))

    @torch.inference_mode()
    def infer() -> None:
        conv(images).relu_()

    if work == "training":
        images.requires_grad_()
        return train
    if is_bf16:
        conv, images = conv.bfloat16(), images.bfloat16()
    return infer
