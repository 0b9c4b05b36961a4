"""OpenVINO leaves signal stacks behind; a process that used it must still take signals."""

import ctypes
import gc
import signal
import sys
from pathlib import Path

import pytest

import lw_retinanet as lw
from lw_retinanet.exporting.signal_stack import SignalStack, signal_stack, signal_stack_kept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sigaltstack is Linux's here")


def in_use() -> tuple[int | None, int, int]:
    stack = signal_stack()
    return stack.address, stack.flags, stack.size


def test_what_was_installed_inside_is_gone_outside() -> None:
    before = in_use()
    memory = ctypes.create_string_buffer(1 << 17)
    with signal_stack_kept():
        ctypes.CDLL(None).sigaltstack(ctypes.byref(SignalStack(ctypes.addressof(memory), 0, len(memory))), None)
        assert in_use() == (ctypes.addressof(memory), 0, len(memory))
    assert in_use() == before


def test_signals_arrive_after_detectors_went_in_the_order_they_came(openvino_file: Path) -> None:
    from tests.exporting.fakes import smooth_image

    before = in_use()
    first, second = lw.load(openvino_file), lw.load(openvino_file)
    for detector in (first, second):
        detector.predict(smooth_image(70, 96, seed=0))
    assert in_use() == before
    del first, detector
    gc.collect()
    del second
    gc.collect()
    assert in_use() == before
    arrived: list[int] = []
    previous = signal.signal(signal.SIGUSR1, lambda number, _: arrived.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert arrived == [signal.SIGUSR1]
