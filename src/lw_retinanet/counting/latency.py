"""Latency of a forward pass on this machine, which MACs alone do not decide."""

import copy
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from lw_retinanet.counting.rounds import take_turns
from lw_retinanet.devices import exact_fp32, multiplies_in_bf16, waiting_for
from lw_retinanet.errors import ConfigError

WARM_UP = 3
ROUNDS = 20


def measure_latency(
    models: Mapping[str, nn.Module],
    *,
    size_hw: tuple[int, int] | Mapping[str, tuple[int, int]],
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    rounds: int = ROUNDS,
    warm_up: int = WARM_UP,
) -> dict[str, dict[str, dict[str, float]]]:
    """Time ``model(images)``, from image tensor to raw predictions, without reading, resizing, decoding and NMS.

    All models and precisions take turns in every round, so that a machine that slows down slows all of them. Copies in evaluation mode are
    timed; the given models do not change.

    Args:
        models: Models by name. Modules that several models share are also shared by the copies.
        size_hw: Height and width of the padded input in pixels, of all models or by the model's name.
        batch_size: Images of one call.
        device: Device to measure on.
        rounds: Timed calls of each model and precision.
        warm_up: Rounds before these, which choose kernels and fill caches and are not timed.

    Returns:
        By model and precision, ``median``, ``p10`` and ``p90`` in milliseconds a call. Precisions are ``fp32`` and, if the device computes
        in it, ``bf16`` in channels_last.

    Raises:
        ConfigError: If a number is not positive.
    """
    sizes = dict(size_hw) if isinstance(size_hw, Mapping) else dict.fromkeys(models, size_hw)
    smallest = min((min(sizes[name]) for name in models), default=1)
    for name, value in (("rounds", rounds), ("batch_size", batch_size), ("size_hw", smallest), ("warm_up", warm_up + 1)):
        if value < 1:
            raise ConfigError(f"{name} is too small to measure a latency; use a positive number")
    place = torch.device(device)
    images = {name: torch.randn((batch_size, 3, *sizes[name]), generator=torch.Generator().manual_seed(0)).to(place) for name in models}
    calls: dict[tuple[str, str], Callable[[int], object]] = {}
    timed = {name: model.eval().to(place) for name, model in copy.deepcopy(dict(models)).items()}
    for name, model in timed.items():
        calls[name, "fp32"] = _call(model, images[name], use_bf16=False)
    if multiplies_in_bf16(place):
        # These are copies again, since channels_last would change the models above.
        for name, model in copy.deepcopy(timed).items():
            fast = model.to(memory_format=torch.channels_last)
            calls[name, "bf16"] = _call(fast, images[name].contiguous(memory_format=torch.channels_last), use_bf16=True)
    with torch.inference_mode(), exact_fp32():
        times = take_turns(calls, rounds=rounds, warm_up=warm_up, wait=waiting_for(place))
    result: dict[str, dict[str, dict[str, float]]] = {name: {} for name in models}
    for (name, precision), milliseconds in times.items():
        p10, median, p90 = np.percentile(milliseconds, (10, 50, 90))
        result[name][precision] = {"median": float(median), "p10": float(p10), "p90": float(p90)}
    return result


def _call(model: nn.Module, images: Tensor, *, use_bf16: bool) -> Callable[[int], object]:
    def call(_: int) -> object:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=use_bf16):
            return model(images)

    return call
