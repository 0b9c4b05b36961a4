import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.evaluation.coco_metrics import ClassMetrics, Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.report import class_table, pr_figure, summary_table, write_metrics
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


def scored(names: list[str], box: Any, make_records: Any) -> Metrics:
    """Class k has k boxes, of which the first is found; class 0 has none."""
    truth = [box(xywh=(20 * column, 20 * label, 10, 10), label=label) for label in range(len(names)) for column in range(label)]
    records = make_records(truth, categories=list(enumerate(names)))
    labels = np.arange(len(names))
    boxes = np.stack([0 * labels, 20 * labels, 0 * labels + 10, 0 * labels + 10], axis=1)
    return evaluate(records, DetectionTable.from_arrays(0 * labels, boxes, labels / 100, labels))


def test_curves_and_legend(box: Any, make_records: Any) -> None:
    figure = pr_figure(scored(["none", "fish", "eel"], box, make_records)).figure
    fish, eel, mean = [np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert fish.tolist() == pytest.approx([1.0] * 101)
    assert eel.tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)  # one of two found
    assert mean.tolist() == pytest.approx([1.0] * 51 + [0.5] * 50)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.752  mean over classes", "1.000  fish", "0.505  eel"]


def test_of_many_classes_those_with_most_boxes_are_drawn(box: Any, make_records: Any) -> None:
    metrics = scored([f"c{label}" for label in range(16)], box, make_records)
    legend = pr_figure(metrics).figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split()[1] for text in legend.get_texts()] == ["mean", *(f"c{label}" for label in range(4, 16))]
    assert legend.get_title().get_text() == "AP50 (12 of 15 classes shown)"


def test_the_figure_is_written_whatever_the_names(box: Any, make_records: Any, tmp_path: Path) -> None:
    write_metrics(scored(["", "$5", "_hidden", "ウナギ", "x" * 200, r"$\frac{"], box, make_records), tmp_path, title="50% of $")
    path = tmp_path / "pictures" / "precision_recall.png"
    with Image.open(path) as figure:
        assert figure.size[0] == 870
        assert figure.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_to_find_still_gives_a_figure(make_records: Any, tmp_path: Path) -> None:
    write_metrics(evaluate(make_records([]), DetectionTable.empty()), tmp_path)
    with Image.open(tmp_path / "pictures" / "precision_recall.png") as figure:
        assert figure.size[0] == 870
