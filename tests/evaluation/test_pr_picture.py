from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.errors import ConfigError
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.pr_picture import pr_figure, save_pr_picture


def scored(names: list[str], box: Any, make_records: Any) -> Metrics:
    """Class k has k boxes, of which the first is found; class 0 has none."""
    truth = [box(xywh=(20 * column, 20 * label, 10, 10), label=label) for label in range(len(names)) for column in range(label)]
    records = make_records(truth, categories=list(enumerate(names)))
    labels = np.arange(len(names))
    boxes = np.stack([0 * labels, 20 * labels, 0 * labels + 10, 0 * labels + 10], axis=1)
    return evaluate(records, DetectionTable.from_arrays(0 * labels, boxes, labels / 100, labels))


def test_curves_and_legend(box: Any, make_records: Any) -> None:
    figure = pr_figure(scored(["none", "fish", "eel"], box, make_records))
    fish, eel, mean = [np.asarray(line.get_ydata()) for line in figure.axes[0].get_lines()]
    assert fish.tolist() == pytest.approx([1.0] * 101)
    assert eel.tolist() == pytest.approx([1.0] * 51 + [0.0] * 50)  # one of two found
    assert mean.tolist() == pytest.approx([1.0] * 51 + [0.5] * 50)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["0.752  mean over classes", "1.000  fish", "0.505  eel"]


def test_of_many_classes_those_with_most_boxes_are_drawn(box: Any, make_records: Any) -> None:
    metrics = scored([f"c{label}" for label in range(16)], box, make_records)
    legend = pr_figure(metrics).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text().split()[1] for text in legend.get_texts()] == ["mean", *(f"c{label}" for label in range(4, 16))]
    assert legend.get_title().get_text() == "AP50 (12 of 15 classes shown)"


def test_the_picture_is_written_whatever_the_names(box: Any, make_records: Any, tmp_path: Path) -> None:
    path = tmp_path / "pictures" / "pr.png"
    save_pr_picture(scored(["", "$5", "_hidden", "ウナギ", "x" * 200, r"$\frac{"], box, make_records), path, title="50% of $")
    with Image.open(path) as picture:
        assert picture.size == (1200, 720)
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
    assert list(path.parent.iterdir()) == [path]


def test_nothing_to_find_still_gives_a_picture(make_records: Any, tmp_path: Path) -> None:
    save_pr_picture(evaluate(make_records([]), DetectionTable.empty()), tmp_path / "pr.svg")
    assert b"<svg" in (tmp_path / "pr.svg").read_bytes()


def test_an_unknown_picture_format_is_refused(make_records: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        save_pr_picture(evaluate(make_records([]), DetectionTable.empty()), tmp_path / "pr.webp")
