import os
import signal
import threading
from collections.abc import Callable

import pytest

from lw_retinanet.stopping import Stopped, StopRequest, stopping


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_raises_at_once_and_the_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as caught, stopping():
        send(signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    with pytest.raises(KeyboardInterrupt), stopping():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def stopped(work: Callable[[StopRequest], None]) -> int | str | None:
    """The exit code with which work under :func:`stopping` ends."""
    try:
        with stopping() as stop:
            work(stop)
    except Stopped as end:
        return end.code
    return None


def test_held_work_is_finished_first() -> None:
    done = []

    def work(stop: StopRequest) -> None:
        with stop.held():
            with stop.held():
                send(signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("not reached")

    assert stopped(work) == 143
    assert done == ["inner", "outer"]


def test_work_that_may_be_torn_ends_at_once_within_held_work() -> None:
    done = []

    def torn(stop: StopRequest) -> None:
        with stop.held(), stop.released():
            send(signal.SIGTERM)
            done.append("not reached")

    def not_begun(stop: StopRequest) -> None:
        with stop.held():
            send(signal.SIGTERM)
            done.append("reached")
            with stop.released():
                done.append("not reached")

    assert (stopped(torn), stopped(not_begun)) == (143, 143)
    assert done == ["reached"]


def test_the_same_signal_twice_within_a_moment_counts_once() -> None:
    done = []

    def work(stop: StopRequest) -> None:
        with stop.held():
            send(signal.SIGTERM)
            send(signal.SIGTERM)  # as `timeout` does: to the process and to its group
            done.append("finished")

    assert stopped(work) == 143
    assert done == ["finished"]


def test_an_error_of_held_work_is_not_hidden() -> None:
    def work(stop: StopRequest) -> None:
        with stop.held():
            send(signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stopped(work)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")
def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping() as stop:
            send(signal.SIGHUP)
        assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_the_main_thread_nothing_changes() -> None:
    before, found = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with stopping() as stop:
            found.append((signal.getsignal(signal.SIGTERM), stop.number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, None)]


def test_a_process_that_got_no_signal_ends_with_the_others() -> None:
    with pytest.raises(Stopped) as caught:
        StopRequest().obey()
    assert caught.value.code == 143
