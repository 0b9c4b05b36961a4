import contextlib
import dataclasses
import io
from typing import Any

import numpy as np
import pytest

from lw_retinanet.evaluation.coco_metrics import ClassMetrics, Metrics
from lw_retinanet.evaluation.tables import class_table, summary_table
from lw_retinanet.tables import aligned


@pytest.fixture
def metrics() -> Metrics:
    values = np.linspace(0.05, 0.9876, 12).tolist()
    keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    numbers: dict[str, Any] = {**dict(zip(keys, values, strict=True)), "APl": -1.0}
    fish = ClassMetrics(name="fish", category_id=1, AP=0.5, AP50=0.75, images=1200, boxes=3323)
    eel = ClassMetrics(name="ウナギ\n(eel)", category_id=2, AP=-1.0, AP50=-1.0, images=0, boxes=0)
    return Metrics(**numbers, max_detections=(1, 10, 100), images=5, per_class=(fish, eel), precision50=np.zeros((2, 101)))


def test_the_twelve_lines_are_those_of_pycocotools(metrics: Metrics) -> None:
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    evaluation = cocoeval.COCOeval(iouType="bbox")
    # An evaluation whose slices hold one value each, at the places that summarize() reads; so AP, AP50 and AP75 are equal.
    precision, recall = np.full((10, 1, 1, 4, 3), -1.0), np.full((10, 1, 4, 3), -1.0)
    precision[:, 0, 0, 0, 2] = metrics.AP
    for area, value in enumerate((metrics.APs, metrics.APm, metrics.APl), start=1):
        precision[:, 0, 0, area, 2] = value
    for limit, value in enumerate((metrics.AR1, metrics.AR10, metrics.AR100)):
        recall[:, 0, 0, limit] = value
    for area, value in enumerate((metrics.ARs, metrics.ARm, metrics.ARl), start=1):
        recall[:, 0, area, 2] = value
    evaluation.eval = {"precision": precision, "recall": recall}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        evaluation.summarize()
    same = dataclasses.replace(metrics, AP50=metrics.AP, AP75=metrics.AP)
    assert summary_table(same).splitlines() == printed.getvalue().splitlines()
    assert summary_table(metrics).splitlines()[1] == (
        f" Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = {metrics.AP50:.3f}"
    )


def test_the_class_table_is_aligned(metrics: Metrics) -> None:
    assert class_table(metrics).splitlines() == [
        "class         images  boxes     AP   AP50",
        "fish           1,200  3,323  0.500  0.750",
        "ウナギ (eel)       0      0      -      -",
    ]
    assert class_table(dataclasses.replace(metrics, per_class=())) == "class  images  boxes  AP  AP50"


def test_some_columns_are_on_the_left() -> None:
    assert aligned([("a", "1", "x"), ("bb", "10", "ウナギ"), ("c", "", "")], left=(0, 2)) == ["a    1  x", "bb  10  ウナギ", "c"]
