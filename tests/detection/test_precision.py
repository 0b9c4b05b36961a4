import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import lw_retinanet.detection.precision as module
from lw_retinanet.detection.precision import Times, cache_file, choose_precision, measure, measured_times
from lw_retinanet.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "multiplies_in_bf16", lambda *_: True)
    module._tell.cache_clear()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The works that were measured; bf16 is twice as fast."""
    asked: list[Any] = []

    def fake(_: torch.device, work: str) -> Times:
        asked.append(work)
        return Times(fp32=2.0, bf16=1.0)

    monkeypatch.setattr(module, "measure", fake)
    return asked


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"),
    [
        ([9.0, 2.0, 2.0], [9.0, 1.0, 1.0], True),
        ([9.0, 1.0, 1.0], [9.0, 2.0, 2.0], False),
        ([9.0, 1.0, 1.0], [1.0, 0.9, 0.9], False),  # not worth the rounding
        ([0.1, 2.0, 2.0], [99.0, 1.0, 1.0], True),  # the first call warms up
        ([9.0, 2.0, 2.0], [9.0, 7.0, 1.0], True),  # what disturbs makes slower, never faster
    ],
)
def test_the_faster_one_wins_by_a_margin(fp32: list[float], bf16: list[float], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def take(seconds: float) -> None:
        nonlocal now
        now += seconds / 1000

    left = {False: iter(fp32), True: iter(bf16)}
    monkeypatch.setattr(module, "_run", lambda *_, is_bf16: lambda: take(next(left[is_bf16])))
    monkeypatch.setattr(module, "_ROUNDS", 2)
    assert measure(CPU, "training", clock=lambda: now).bf16_pays is expected


def test_a_slow_emulation_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = 0.0, []

    def run(is_bf16: bool) -> None:
        nonlocal now
        calls.append(is_bf16)
        now += 3.0 if is_bf16 else 0.01

    monkeypatch.setattr(module, "_run", lambda *_, is_bf16: lambda: run(is_bf16))
    assert measure(CPU, "inference", clock=lambda: now) == pytest.approx((10.0, 3000.0))
    assert calls == [False, True, False]


@pytest.mark.parametrize("work", ["inference", "training"])
def test_both_are_measured_here(work: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROUNDS", 1)
    times = measure(CPU, work)
    assert times.fp32 > 0
    assert times.bf16 > 0


def test_one_measurement_serves_all_later_processes(measured: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert [choose_precision("auto", CPU, "training") for _ in range(2)] == ["bf16", "bf16"]
    assert measured == ["training"]
    assert caplog.messages == ["precision auto is bf16 for training here: a convolution takes 1.00 ms in bf16 and 2.00 ms in fp32"]
    assert choose_precision("auto", CPU, "inference") == "bf16"
    assert measured == ["training", "inference"]  # another work
    cache_file().unlink()
    measured_times(CPU, "training")
    assert len(measured) == 3


@pytest.mark.parametrize("variable", module.ISA_VARIABLES)
def test_a_cap_of_the_instruction_set_has_an_answer_of_its_own(variable: str, measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    measured_times(CPU, "training")
    monkeypatch.setenv(variable, "AVX2")
    measured_times(CPU, "training")
    assert len(measured) == 2


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", "full of nonsense", "KEY: 7", 'KEY: [1, "fast"]'])
def test_a_damaged_file_is_replaced(content: str, measured: list[Any]) -> None:
    measured_times(CPU, "training")
    content = "{" + content.replace("KEY", '"' + module._key(CPU, "training") + '"') + "}" if "KEY" in content else content
    cache_file().write_text(content)
    measured_times(CPU, "training")
    measured_times(CPU, "training")
    assert len(measured) == 2


def test_a_place_that_cannot_be_written_to_does_no_harm(measured: list[Any], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in its place")
    assert choose_precision("auto", CPU, "training") == "bf16"
    assert len(measured) == 1
    os.environ["XDG_CACHE_HOME"] = "/proc/nowhere"  # the fixture puts it back
    assert choose_precision("auto", CPU, "training") == "bf16"


def test_bf16_where_it_loses_is_done_with_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module, "measure", lambda *_: Times(fp32=1.0, bf16=2.5))
    assert choose_precision("auto", CPU, "training") == "fp32"
    assert choose_precision("bf16", CPU, "training") == "bf16"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "bf16 is slower than fp32 for training here: a convolution takes 2.50 ms in bf16 and 1.00 ms in fp32; "
        "the precision auto or fp32 is faster"
    ]


def test_apple_gpus_compute_in_fp32() -> None:
    assert choose_precision("auto", torch.device("mps"), "inference") == "fp32"
    with pytest.raises(InputError, match="use the precision fp16, fp32 or auto"):
        choose_precision("bf16", torch.device("mps"), "inference")


@pytest.mark.parametrize(("device", "work"), [("cpu", "inference"), ("cuda", "training"), ("mps", "training")])
def test_fp16_is_for_inference_on_gpus(device: str, work: Any) -> None:
    with pytest.raises(InputError, match=f"^fp16 is for inference on GPUs .* not for {work} on {device}; use the precision fp32 or auto$"):
        choose_precision("fp16", torch.device(device), work)
    assert choose_precision("fp16", torch.device("cuda"), "inference") == "fp16"


def test_nothing_is_measured_where_the_answer_is_known(measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_precision("fp32", CPU, "training") == "fp32"
    assert choose_precision("auto", torch.device("meta"), "training") == "fp32"
    monkeypatch.setattr(module, "multiplies_in_bf16", lambda *_: False)
    assert choose_precision("auto", CPU, "training") == "fp32"
    assert measured == []
