import logging
from types import SimpleNamespace

import pytest
from rich.console import Console

from lw_retinanet.training import progress
from lw_retinanet.training.progress import training_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that tests set by hand."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_line_now_and_then_and_one_at_the_end(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with training_progress(total_steps=40, first_step=10, images_per_step=8, steps_per_epoch=12, shown=True) as shown:
        for step in range(11, 41):
            clock.now += 2.0
            shown.update(step, loss=1.25, rate=2e-4)
    lines = [record.getMessage() for record in caplog.records]
    assert lines.pop(0) == "40 steps of 8 images, 3.333 epochs of 12; 10 steps are done"
    # 15 s are over after 8 steps of 2 s; 0.5 steps a second are 4 images; step 18 leaves 22 steps, 44 s.
    assert lines[0] == "epoch 2/4  step 18/40  loss 1.250  rate 2.0e-04  4.0 images/s  0:00:44 left"
    assert [line.split()[3] for line in lines] == ["18/40", "26/40", "34/40", "40/40"]
    assert lines[-1].endswith("0:00:00 left")


def test_two_steps_in_one_tick_of_the_clock_divide_by_nothing(clock: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with training_progress(total_steps=1, first_step=0, images_per_step=1, steps_per_epoch=1, shown=False) as shown:
        shown.update(1, loss=1.0, rate=1.0)
    assert "step 1/1" in caplog.text


def test_a_terminal_gets_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    console = Console(force_terminal=True, width=140, record=True, file=None, stderr=True)
    monkeypatch.setattr(progress, "Console", lambda **_: console)
    caplog.set_level(logging.INFO)
    with training_progress(total_steps=2, first_step=1, images_per_step=4, steps_per_epoch=2, shown=True) as shown:
        shown.update(2, loss=0.5, rate=1e-3)
    assert "2/2" in (text := console.export_text())
    assert "loss 0.500" in text
    assert "images/s" in text
    assert not caplog.records
