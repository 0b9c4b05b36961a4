import warnings

import pytest
import torch

from lw_retinanet.devices import choose_device, multiplies_in_bf16
from lw_retinanet.errors import InputError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx512_f": True, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_the_processor_is_asked(capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert multiplies_in_bf16(CPU) is expected


def test_this_machine_gives_the_names_that_are_asked_for() -> None:
    if hasattr(torch.cpu, "get_capabilities"):
        assert {"avx512_bf16", "amx_bf16"} & set(torch.cpu.get_capabilities()) or torch.cpu.get_capabilities().get(
            "architecture"
        ) != "x86_64"


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == CPU
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(InputError, match="device cuda:1 is not available here"):
        choose_device("cuda:1")
    with pytest.raises(InputError, match="mps is an Apple GPU, which is not available here; use cpu or auto"):
        choose_device("mps")
    with pytest.raises(InputError, match="use auto, cpu, cuda or mps"):
        choose_device("gpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("mps").type == "mps"
    assert choose_device("auto") == CPU

    def too_old() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    with pytest.raises(InputError, match=r"cuda is not available here \(The NVIDIA driver on your system is too old\); use cpu or auto"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto").type == "cuda"
    with pytest.raises(InputError, match="device cuda:1 is not available here"):
        choose_device("cuda:1")
