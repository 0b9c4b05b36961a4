"""Latency: turns, modes and precisions; the times themselves belong to the machine."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lw_retinanet.counting import latency
from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.errors import ConfigError

CALLS: list[tuple[str, Tensor, bool, torch.dtype]] = []


class Recorder(nn.Module):
    """Remembers how it was called."""

    def __init__(self, name: str, seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.seconds = name, seconds
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        time.sleep(self.seconds)
        result: Tensor = self.conv(images)
        CALLS.append((self.name, images, self.training, result.dtype))
        return result


@pytest.fixture(autouse=True)
def _forget() -> None:
    CALLS.clear()


@pytest.fixture(params=[True, False])
def bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(latency, "multiplies_in_bf16", lambda *_: request.param)
    return bool(request.param)


def test_models_and_precisions_take_turns_after_the_warm_up(bf16: bool) -> None:
    result = measure_latency({"a": Recorder("a"), "b": Recorder("b")}, size_hw=(5, 7), batch_size=2, rounds=8, warm_up=2)
    precisions = ["fp32", "bf16"] if bf16 else ["fp32"]
    assert {name: list(times) for name, times in result.items()} == {"a": precisions, "b": precisions}
    number = 2 * len(precisions)
    assert len(CALLS) == number * (2 + 8)
    timed = [(name, dtype) for name, _, _, dtype in CALLS[number * 2 :]]
    rounds = [timed[start : start + number] for start in range(0, len(timed), number)]
    assert all(len(set(each)) == number for each in rounds)  # every one once a round
    assert len({each[0] for each in rounds}) == number  # and not always the same one first
    assert all(images.shape == (2, 3, 5, 7) for _, images, _, _ in CALLS)


def test_bf16_runs_in_channels_last_and_fp32_does_not(bf16: bool) -> None:
    measure_latency({"a": Recorder("a")}, size_hw=(5, 7), rounds=1, warm_up=0)
    seen = {dtype: images.is_contiguous(memory_format=torch.channels_last) for _, images, _, dtype in CALLS}
    assert seen == ({torch.float32: False, torch.bfloat16: True} if bf16 else {torch.float32: False})


def test_models_are_measured_in_evaluation_mode_and_left_as_they_were() -> None:
    model = nn.Sequential(Recorder("a"), nn.BatchNorm2d(2)).train()
    strides: list[Any] = [parameter.stride() for parameter in model.parameters()]
    measure_latency({"a": model}, size_hw=(8, 8), rounds=1, warm_up=1)
    assert not any(training for _, _, training, _ in CALLS)
    assert all(module.training for module in model.modules())
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert not model[1].running_mean.any()  # type: ignore[operator]


def test_times_are_milliseconds_in_order() -> None:
    times = measure_latency({"a": Recorder("a", seconds=0.02)}, size_hw=(4, 4), rounds=5, warm_up=0)["a"]["fp32"]
    assert list(times) == ["median", "p10", "p90"]
    # Sleeping takes at least 20 ms; a busy machine may add much, not a thousandfold.
    assert 20 <= times["p10"] <= times["median"] <= times["p90"] < 20_000


@pytest.mark.parametrize("options", [{"rounds": 0}, {"batch_size": 0}, {"size_hw": (0, 8)}, {"warm_up": -1}])
def test_numbers_that_measure_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        measure_latency({"a": Recorder("a")}, **{"size_hw": (8, 8), **options})
