import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lw_retinanet.data.check import check
from lw_retinanet.data.check_report import SplitReport
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.errors import DataError


def counts(report: SplitReport) -> dict[str, int]:
    return {problem.kind: problem.count for problem in report.problems}


def save(folder: Path, name: str, content: dict[str, Any]) -> Path:
    (folder / "images").mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder / name


def annotation(number: int, bbox: object, **changes: object) -> dict[str, object]:
    return {"id": number, "image_id": 1, "category_id": 1, "bbox": bbox} | changes


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """One file with every kind of problem that a COCO file can have."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (100, 80)).save(images / "a.png")
    Image.new("RGB", (50, 50)).save(images / "turned.png")
    (images / "broken.png").write_bytes(b"no image")
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 2, "file_name": "turned.png", "width": 50, "height": 40},
            {"id": 3, "file_name": "broken.png", "width": 5, "height": 5},
            {"id": 4, "file_name": "lost.png", "width": 5, "height": 5},
            {"id": 5, "file_name": "../../secret.png", "width": 5, "height": 5},
            {"id": 6, "file_name": "a.png", "width": 100, "height": 80},
            {"id": 6, "file_name": "again.png"},
            {"file_name": "no id.png"},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "dog"}, {"id": 1, "name": "cow"}, {"id": 9}],
        "annotations": [
            annotation(1, [10, 10, 20, 20]),
            annotation(1, [10, 10, 20, 20]),  # same id, same box
            annotation(3, [0, 0, 0, 10]),
            annotation(4, [0, 0, -5, 10]),
            annotation(5, [0, 0, 0.5, 10]),
            annotation(6, [200, 10, 10, 10]),
            annotation(7, [90, 70, 20, 20]),
            annotation(8, [90, 70, 10.2, 10]),  # a rounding error out of the image
            annotation(9, [0, 0, 10, 10], image_id=99),
            annotation(10, [0, 0, 10, 10], category_id=99),
            annotation(11, [0, 0, 10]),
            annotation(12, [0, 0, 10, float("nan")]),
            annotation(13, [0, 0, 10, 10], area="big"),
            annotation(14, [50, 10, 20, 40], category_id=2, iscrowd=1),
        ],
    }
    return save(tmp_path, "train.json", content)


def test_every_kind_is_counted(broken: Path) -> None:
    report = check(Dataset.open(broken)).splits[0]
    assert counts(report) == {
        "malformed_image": 1,
        "duplicate_image_id": 1,
        "unsafe_path": 1,
        "malformed_category": 1,
        "duplicate_category_id": 1,
        "malformed_box": 1,
        "non_finite_box": 1,
        "malformed_annotation": 1,
        "unknown_image": 1,
        "unknown_category": 1,
        "missing_image": 1,
        "unreadable_image": 1,
        "size_mismatch": 1,
        "reversed_box": 1,  # -5..0, so it is outside of the image, too
        "empty_box": 1,
        "tiny_box": 1,
        "outside_box": 2,
        "partly_outside_box": 1,
        "duplicate_box": 1,
        "duplicate_annotation_id": 1,
        "duplicate_file_name": 1,
        "duplicate_class_name": 1,
        "image_without_boxes": 5,
        "class_without_boxes": 1,
    }
    examples = {problem.kind: problem.examples for problem in report.problems}
    assert examples["empty_box"] == ["annotation 3 of a.png"]
    assert examples["size_mismatch"] == ["turned.png: 50 x 50, annotated 50 x 40"]
    assert examples["unknown_image"] == ["annotation 9: image_id 99"]


def test_the_report_as_json_and_text(broken: Path) -> None:
    report = check(Dataset.open(broken))
    content = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert content["errors"] == report.num_errors == 13
    assert content["splits"][0]["classes"][1] == {"id": 2, "name": "dog", "images": 1, "boxes": 0, "ignored": 1}
    lines = report.lines()
    assert any("error: images that do not exist: 1 (" in line and "lost.png" in line for line in lines)
    assert lines[-1] == f"errors: 13, warnings: {report.num_warnings}"


def test_size_histograms(tmp_path: Path) -> None:
    # Square roots 8, 31.9, 32, 600; areas 64, 1024 (still small), 96 ** 2 (still medium), 360000. The crowd does not count.
    boxes: list[tuple[list[float], float]] = [
        ([0, 0, 4, 16], 64),
        ([0, 0, 31.9, 31.9], 1024),
        ([1, 1, 32, 32], 9216),
        ([0, 0, 600, 600], 36e4),
    ]
    annotations = [annotation(number, bbox, area=area) for number, (bbox, area) in enumerate(boxes)]
    annotations.append(annotation(9, [5, 5, 100, 100], iscrowd=1))
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 700, "height": 700}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    report = check(Dataset.open(save(tmp_path, "x.json", content))).splits[0]
    assert {label: count for label, count in report.side_histogram.items() if count} == {"8-16": 1, "16-32": 1, "32-64": 1, "512+": 1}
    assert report.coco_sizes == {"small": 2, "medium": 1, "large": 1}


def test_splits_are_compared(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / "images" / name)

    def content(names: list[str], category: str) -> dict[str, Any]:
        images = [{"id": i, "file_name": name, "width": 20, "height": 20} for i, name in enumerate(names, start=1)]
        annotations = [annotation(i, [1, 1, 5, 5], image_id=i) for i in range(1, len(names) + 1)]
        return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": category}]}

    save(tmp_path, "train.json", content(["a.png", "b.png"], "cat"))
    save(tmp_path, "val.json", content(["b.png"], "dog"))
    report = check(Dataset.open(tmp_path))
    assert [counts(part) for part in report.splits] == [{}, {"image_in_two_splits": 1, "different_classes": 1}]
    assert counts(check(Dataset.open(tmp_path), "val").splits[0]) == {}


def test_a_broken_split_does_not_hide_the_other(tmp_path: Path) -> None:
    save(tmp_path, "train.json", {"images": [], "annotations": []})
    (tmp_path / "val.json").write_text('{"images": [')
    report = check(Dataset.open(tmp_path))
    assert counts(report.splits[0]) == {"no_images": 1}
    assert counts(report.splits[1]) == {"broken_file": 1}
    assert "line 1, column 13" in report.splits[1].problems[0].examples[0]


def test_other_forms_do_not_stop_either(tmp_path: Path) -> None:
    (tmp_path / "boxes.csv").write_text("image,xmin,ymin,xmax,ymax,label\na.png,1,1,x,4,cat\nb.png,1,1,4,4,cat\n")
    assert counts(check(Dataset.open(tmp_path / "boxes.csv")).splits[0]) == {"malformed_box": 1, "missing_image": 1}


def test_no_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        check(Dataset.open(tmp_path / "nowhere"))


@pytest.mark.real
@pytest.mark.parametrize("name", ["aquarium", "bccd", "coco_cc"])
def test_the_real_sets_have_no_errors(shared: Path, name: str) -> None:
    assert check(Dataset.open(shared / "data" / name)).num_errors == 0
