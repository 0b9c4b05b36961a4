import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.drawn_cases import table

from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError
from lw_retinanet.evaluation.best_score import best_scores
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.scoring_process import ScoringProcess


@pytest.fixture
def records(box: Any, make_records: Any) -> Records:
    """With all that scoring treats in a way of its own: crowds, difficult objects, ids that are no numbers and out of order."""
    boxes = [
        box(xywh=(0, 0, 10, 10)),
        box(xywh=(50, 50, 40, 40), label=1),
        box(xywh=(9, 9, 90, 90), crowd=True),
        box(xywh=(0, 0, 5, 5), image=1, difficult=True),
        box(xywh=(20, 0, 15, 25), image=2),
    ]
    found: Records = make_records(boxes, image_ids=("b", "a", 7), categories=(("f", "fish"), (9, "eel")))
    return found


FINDS = table((0, 0, (0, 0, 10, 11), 0.9), (0, 1, (52, 50, 40, 40), 0.8), (1, 0, (0, 0, 5, 5), 0.7), (2, 0, (0, 0, 9, 9), 0.6))


def expected(records: Records, detections: DetectionTable) -> dict[str, Any]:
    numbers = {name: value for name, value in evaluate(records, detections).as_dict().items() if name != "per_class"}
    return {**numbers, "best_score": best_scores(records, detections)}


def test_the_same_numbers_from_over_there(records: Records) -> None:
    with ScoringProcess(records) as scoring:
        answers = [scoring.submit(detections) for detections in (FINDS, DetectionTable.empty(), FINDS)]
        found = [answer.result(timeout=60) for answer in answers]
        assert not scoring._is_lost
    assert found == [expected(records, FINDS), expected(records, DetectionTable.empty()), expected(records, FINDS)]
    assert 0 < found[0]["AP"] < 1


def test_what_cannot_be_scored_is_refused_and_the_next_is_scored(records: Records) -> None:
    foreign = table((3, 0, (0, 0, 5, 5), 0.5))
    with pytest.raises(DataError) as here:
        evaluate(records, foreign)
    with ScoringProcess(records) as scoring:
        with pytest.raises(DataError) as there:
            scoring.submit(foreign).result(timeout=60)
        assert str(there.value) == str(here.value)
        assert scoring.submit(FINDS).result(timeout=60) == expected(records, FINDS)
        assert not scoring._is_lost


def test_a_process_that_dies_is_told_of_once_and_not_needed(records: Records, caplog: pytest.LogCaptureFixture) -> None:
    with ScoringProcess(records) as scoring:
        scoring.submit(FINDS).result(timeout=60)
        assert scoring._process is not None
        scoring._process.kill()
        scoring._process.wait()
        assert [scoring.submit(FINDS).result(timeout=60) for _ in range(2)] == [expected(records, FINDS)] * 2
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the scoring process has ended" in caplog.text


def test_a_process_that_cannot_start_is_not_needed(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with ScoringProcess(records) as scoring:
        assert scoring.submit(FINDS).result(timeout=60) == expected(records, FINDS)


def test_leaving_ends_the_process_and_forgets_what_waits(records: Records) -> None:
    count = 200_000
    many = DetectionTable.from_arrays(np.zeros(count), np.tile([0.0, 0.0, 9.0, 9.0], (count, 1)), np.linspace(0, 1, count), np.zeros(count))
    with ScoringProcess(records) as scoring:
        scoring.submit(FINDS).result(timeout=60)
        waiting = [scoring.submit(many) for _ in range(20)]
    assert scoring._process is not None
    assert scoring._process.returncode is not None
    assert waiting[-1].cancelled()
    assert all(answer.done() for answer in waiting)


SCRIPT = """
import sys
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.scoring_process import ScoringProcess
print("runs", flush=True)
with ScoringProcess(Dataset.open({data!r}).read("val")) as scoring:
    print(scoring.submit(DetectionTable.empty()).result()["AP"], scoring._is_lost, "torch" in sys.modules)
"""


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    from lw_retinanet.data.sample import make_sample

    data = make_sample(tmp_path / "data", num_train=1, num_val=2, size=64)
    (tmp_path / "script.py").write_text(SCRIPT.format(data=data).replace("PosixPath(", "__import__('pathlib').Path("))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["runs", "0.0", "False", "False"]
    assert run.stderr == ""
