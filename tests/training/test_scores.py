import logging
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from lw_retinanet.errors import DataError
from lw_retinanet.training.scores import Scores


def promise() -> "Future[dict[str, Any]]":
    return Future()


def test_each_score_is_written_with_its_own_step_when_it_arrives() -> None:
    written: list[dict[str, Any]] = []
    scores = Scores(lambda entry, _: written.append(entry))
    first, second = promise(), promise()
    scores.add(2, first)
    scores.add(4, second)
    scores.add(6, {"AP": 0.6})
    assert written == [{"step": 6, "AP": 0.6}]
    second.set_result({"AP": 0.4})
    scores.write_arrived()
    scores.write_arrived()
    assert written == [{"step": 6, "AP": 0.6}, {"step": 4, "AP": 0.4}]
    first.set_result({"AP": 0.2})
    scores.write_arrived(wait_before=2)
    assert written[-1] == {"step": 2, "AP": 0.2}


def test_waits_for_the_steps_before_and_no_others() -> None:
    class Slow(Future[dict[str, Any]]):
        """Is there only if somebody waits."""

        def result(self, timeout: float | None = None) -> dict[str, Any]:
            return {"AP": 0.5}

    written: list[dict[str, Any]] = []
    scores = Scores(lambda entry, _: written.append(entry))
    scores.add(2, Slow())
    scores.add(4, Slow())
    scores.write_arrived()
    assert written == []
    scores.write_arrived(wait_before=4)
    assert written == [{"step": 2, "AP": 0.5}]


def test_a_failure_is_one_line_and_no_entry(caplog: pytest.LogCaptureFixture) -> None:
    written: list[dict[str, Any]] = []
    scores = Scores(lambda entry, _: written.append(entry))
    failing, cancelled = promise(), promise()
    cancelled.cancel()
    failing.set_exception(DataError("detection 3: its box is not finite"))
    scores.add(2, failing)
    scores.add(4, cancelled)
    scores.add(6, {"AP": 0.6})
    assert written == [{"step": 6, "AP": 0.6}]
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert caplog.messages[0] == "step 2: not scored (detection 3: its box is not finite); training goes on"


def test_weights_come_with_their_own_score_and_those_without_one_are_kept() -> None:
    written: list[tuple[dict[str, Any], Any]] = []
    scores = Scores(lambda entry, weights: written.append((entry, weights)))
    late, in_time = promise(), promise()
    ones, others = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    scores.add(2, late, ones)
    scores.add(4, in_time, others)
    in_time.set_result({"AP": 0.4})
    scores.write_arrived(wait_before=5, seconds=0.0)
    assert written == [({"step": 4, "AP": 0.4}, others)]
    assert scores.missed == [(2, ones)]
