import os

import pytest
import torch

from lw_retinanet.benchmarking.machine import available_cpus, has_amx, machine, pinned_threads
from lw_retinanet.devices import exact_fp32
from lw_retinanet.errors import InputError


def test_threads_are_pinned_and_given_back() -> None:
    cpus, threads = available_cpus(), torch.get_num_threads()
    with pinned_threads(1) as number:
        assert number == torch.get_num_threads() == 1
        if hasattr(os, "sched_getaffinity"):
            assert available_cpus() == cpus[:1]
            assert machine(torch.device("cpu"))["cpus"] == cpus[:1]
    assert (available_cpus(), torch.get_num_threads()) == (cpus, threads)


def test_threads_are_given_back_after_an_error() -> None:
    before = available_cpus(), torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), pinned_threads(1):
        1 / 0  # noqa: B018
    assert (available_cpus(), torch.get_num_threads()) == before


@pytest.mark.parametrize("number", [0, 10_000])
def test_threads_that_are_not_there(number: int) -> None:
    with pytest.raises(InputError, match=f"threads must be from 1 to {len(available_cpus())}.*got {number}"), pinned_threads(number):
        pass


def test_the_record_says_what_ran() -> None:
    found = machine(torch.device("cpu"))
    assert found["packages"]["torch"] == torch.__version__.split("+")[0] or found["packages"]["torch"] == torch.__version__
    assert (found["device"], found["threads"]) == ("cpu", torch.get_num_threads())
    assert found["processor"]
    assert set(found["bf16_pays"]) in (set(), {"inference", "training"})


@pytest.mark.parametrize(("cap", "expected"), [(None, True), ("ALL", True), ("AVX512_CORE_AMX", True), ("AVX512_CORE_BF16", False)])
def test_a_cap_takes_amx_away(cap: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True}, raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if cap:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert has_amx() is expected
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False}, raising=False)
    assert not has_amx()


def test_tf32_is_off_inside_only() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_fp32():
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
