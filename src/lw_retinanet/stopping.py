"""Signals that ask the program to end: Ctrl-C, SIGTERM and SIGHUP. Work that must not be torn apart is finished first."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None)
# `timeout`, a closing terminal and some schedulers send the same signal twice, to the process and to its group.
_SAME_REQUEST_SECONDS = 1.0


class Stopped(SystemExit):
    """SIGTERM or SIGHUP asked the program to end. The exit code is 128 plus the number of the signal.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopRequest:
    """Whether a signal has asked the program to end. Made by :func:`stopping`.

    Attributes:
        number: The signal; None as long as there was none.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0
        self._holds = 0

    def receive(self, number: int, _: FrameType | None = None) -> None:
        """Take a signal. The first one ends the program as soon as nothing holds it back; a second one ends it at once."""
        if self.number is None:
            self.number, self._since = number, time.monotonic()
            if not self._holds:
                self.obey()
        elif time.monotonic() - self._since > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def obey(self) -> None:
        """Raise what ends the program, whether or not a signal has come to this process.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            Stopped: After another signal, or if another process of the run got one.
        """
        if self.number == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped(self.number or signal.SIGTERM)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a piece of work finish. A signal that came meanwhile is obeyed at its end."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if self.number is not None and not self._holds:
            self.obey()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Within :meth:`held`: obey signals at once, one that has come already included."""
        holds, self._holds = self._holds, 0
        try:
            if self.number is not None:
                self.obey()
            yield
        finally:
            self._holds = holds


@contextmanager
def stopping() -> Iterator[StopRequest]:
    """Within the context, Ctrl-C, SIGTERM and SIGHUP raise an exception, so that files are closed and child processes ended.

    Signals that the caller ignores, as ``nohup`` does SIGHUP, stay ignored. Outside the main thread, which alone gets signals, nothing
    changes.
    """
    request = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    try:
        for number in before:
            signal.signal(number, request.receive)
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
