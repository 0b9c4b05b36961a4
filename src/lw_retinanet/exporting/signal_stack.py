"""The stack that the operating system gives signal handlers, protected from OpenVINO."""

import contextlib
import ctypes
import sys
from collections.abc import Iterator

_DISABLED = 2  # SS_DISABLE


class SignalStack(ctypes.Structure):
    """``stack_t`` of Linux (man 2 sigaltstack)."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack:
    """This thread's alternative stack. Linux only."""
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextlib.contextmanager
def signal_stack_kept() -> Iterator[None]:
    """Give this thread its alternative signal stack back, whatever was put in its place meanwhile.

    On processors with AMX, OpenVINO's CPU plugin installs a signal stack of its own and removes it when it is unloaded. If there are two
    plugins, the one that is unloaded last restores the other one's stack, which may be unmapped by then. The next signal that Python
    handles (Ctrl-C, a timer, a child that ends) then kills the process. A plugin that finds a stack other than its own leaves it alone, so
    it is enough to restore the original one wherever plugins are loaded.
    """
    if sys.platform != "linux":
        yield
        return
    stack = signal_stack()
    try:
        yield
    finally:
        # Linux refuses a stack that has become too small for the registers in use; handlers then run on the ordinary one.
        if ctypes.CDLL(None).sigaltstack(ctypes.byref(stack), None):
            ctypes.CDLL(None).sigaltstack(ctypes.byref(SignalStack(flags=_DISABLED)), None)
