import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError, DiskFullError
from lw_retinanet.evaluation.detections import DetectionTable, check_detections, concatenate, read_results, write_results


@pytest.fixture(scope="session")
def records(make_records: Any) -> Records:
    empty: Records = make_records([], image_ids=("a", "7", 7), categories=((90, "fish"), ("x", "eel"), (0, "ray")))
    return empty


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def entry(**changes: Any) -> dict[str, Any]:
    return {"image_id": "a", "category_id": 0, "bbox": [1, 2.5, 3, 4], "score": 0.5, **changes}


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=40)
@given(rows=st.lists(st.tuples(st.integers(0, 2), st.tuples(finite, finite, finite, finite), finite, st.integers(0, 2)), max_size=6))
def test_written_results_read_back_bit_for_bit(rows: list[Any], records: Records, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("results") / "new folder" / "dt.json"
    columns: list[Any] = list(zip(*rows, strict=True)) or [(), np.zeros((0, 4)), (), ()]
    table = DetectionTable.from_arrays(*columns)
    write_results(table, records, path)
    back = read_results(path, records)
    for name in ("image", "boxes_xywh", "scores", "labels"):
        assert getattr(back, name).tobytes() == getattr(table, name).tobytes()
        assert getattr(back, name).dtype == getattr(table, name).dtype
    assert list(path.parent.iterdir()) == [path]


def test_written_results_have_the_data_sets_own_ids(records: Records, tmp_path: Path) -> None:
    table = DetectionTable.from_arrays([2, 1], [[1, 2, 3, 4], [5, 6, 7, 8]], [0.5, 0.25], [1, 0])
    write_results(table, records, tmp_path / "dt.json")
    assert json.loads((tmp_path / "dt.json").read_text()) == [
        {"image_id": 7, "category_id": "x", "bbox": [1, 2, 3, 4], "score": 0.5},
        {"image_id": "7", "category_id": 90, "bbox": [5, 6, 7, 8], "score": 0.25},
    ]


def test_a_failed_write_leaves_the_old_file(records: Records, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "dt.json", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFullError, match=r"dt\.json: cannot be written \(No space left"):
        write_results(DetectionTable.empty(), records, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_results_kept_as_annotations(records: Records, tmp_path: Path) -> None:
    path = write(tmp_path / "dt.json", "\ufeff" + json.dumps({"images": [], "annotations": [entry(id=3)]}))
    table = read_results(path, records)
    assert table.boxes_xywh.tolist() == [[1.0, 2.5, 3.0, 4.0]]
    assert (table.image.tolist(), table.labels.tolist()) == ([0], [2])


def test_a_detectors_corners_become_width_and_height() -> None:
    # float32 in, float64 out: the subtraction must be made in float64
    first = DetectionTable.from_image(3, np.array([[0.1, 10, 20.3, 40]], dtype=np.float32), [0.5], [1])
    table = concatenate([first, DetectionTable.from_image(4, [], [], [])])
    assert table.boxes_xywh.tolist() == [[float(np.float32(0.1)), 10, float(np.float32(20.3)) - float(np.float32(0.1)), 30]]
    assert (table.image.tolist(), len(table), len(concatenate([]))) == ([3], 1, 0)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (entry(image_id="b"), r"detection \[1\]: image_id 'b' is neither an id nor the name of one file"),
        (entry(image_id=[1]), r"detection \[1\]: image_id is a list, not an id"),
        (entry(category_id="90"), r"category_id '90' is not in the data set, which has 90"),
        (entry(category_id=17), r"category_id 17 is not in the data set; give"),
        ({"image_id": "a", "bbox": [1, 2, 3, 4], "score": 1}, r"detection \[1\]: no 'category_id'"),
        ({"image_id": "a", "bbox": [1, 2, 3, 4], "category_id": 0}, "no 'score'.*looks like ground truth"),
        (entry(bbox=[1, 2, 3]), r"detection \[1\]: bbox is \[1, 2, 3\]; write four numbers"),
        (entry(bbox=None), "bbox is null; write four numbers"),
        (entry(bbox=[1, 2, "3", 4]), r'detection \[1\]: bbox holds "3", not a finite number'),
        (entry(bbox=[1, 2, float("nan"), 4]), r"detection \[1\]: bbox holds NaN"),
        (entry(bbox=[1, 2, 10**400, 4]), r"detection \[1\]: bbox holds 1000"),
        (entry(score=float("inf")), r"detection \[1\]: score holds Infinity"),
        (entry(score=None), r"detection \[1\]: score holds null"),
        (entry(score=True), r"detection \[1\]: score holds true"),
        ([1], r"detection \[1\]: expected an object with image_id"),
    ],
)
def test_a_bad_entry_is_named(broken: Any, message: str, records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path / "dt.json", [entry(), broken, entry()]), records)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[\n{"image_id": 1,}]', "dt.json: line 2, column 16: not JSON"),
        ("", "line 1, column 1: not JSON"),
        ("[" * 100_000, "not a results file"),
        ("[" + "9" * 5000 + "]", "not a results file"),
        ('{"detections": []}', "expected a JSON list of detections .* found an object"),
        ("3", "found a number"),
    ],
)
def test_a_broken_file_is_refused(content: str, message: str, records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        read_results(write(tmp_path / "dt.json", content), records)


def test_an_unreadable_file_is_refused(records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"dt\.json: cannot be read: No such file"):
        read_results(tmp_path / "dt.json", records)
    (tmp_path / "dt.json").write_bytes(b"[\xff]")
    with pytest.raises(DataError, match="byte 1: not UTF-8"):
        read_results(tmp_path / "dt.json", records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": [0, 3]}, r"detection 1: image row 3 is not one of the data set's 3"),
        ({"labels": [-1, 0]}, r"detection 0: label -1"),
        ({"boxes_xywh": [[0, 0, 1, 1], [0, np.inf, 1, 1]]}, r"detection 1 \(image '7\.jpg'\): its box is not finite, like 1 of 2"),
        ({"scores": [np.nan, np.nan]}, r"detection 0 \(image 'a\.jpg'\): its score is not finite, like 2 of 2"),
    ],
)
def test_impossible_detections_are_refused(change: dict[str, Any], message: str, records: Records) -> None:
    columns: dict[str, Any] = {"image": [0, 1], "boxes_xywh": np.zeros((2, 4)), "scores": [1, 1], "labels": [0, 0], **change}
    with pytest.raises(DataError, match=message):
        check_detections(DetectionTable.from_arrays(**columns), records)


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="must have shapes"):
        DetectionTable.from_arrays([0], np.zeros((2, 4)), [1, 1], [0, 0])


def test_importing_evaluation_loads_nothing_heavy() -> None:
    code = (
        "import sys, lw_retinanet.evaluation.report;"
        "print([name for name in ('torch', 'matplotlib', 'hotcoco', 'rich') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_what_predict_wrote_is_matched_by_file_name(make_records: Any, tmp_path: Path) -> None:
    records = replace(make_records([], image_ids=(1, 2, 3)), file_names=["a/x.jpg", "b/x.jpg", "y.jpg"])
    names = ["/home/me/data/images/b/x.jpg", "y.jpg", "a\\\\x.jpg".replace("\\\\", "\\")]
    listed = write(tmp_path / "results.json", [entry(image_id=name, category_id=1) for name in names])
    assert read_results(listed, records).image.tolist() == [1, 2, 0]
    one = {"box": [1, 2, 4, 6], "score": 0.5, "label": 0, "name": "fish", "category_id": 1}
    own = write(
        tmp_path / "predictions.json", {"images": [{"file": names[0], "detections": [one]}, {"file": "other.jpg", "detections": []}]}
    )
    table = read_results(own, records)
    assert table.image.tolist() == [1]
    assert table.boxes_xywh.tolist() == [[1, 2, 3, 4]]
    for wrong in ("x.jpg", "z.jpg", "", "ax.jpg"):
        with pytest.raises(DataError, match="is neither an id nor the name of one file of the data set"):
            read_results(write(tmp_path / "dt.json", [entry(image_id=wrong, category_id=1)]), records)
    with pytest.raises(DataError, match=r"images\[0\]: not as `predict` writes it"):
        read_results(write(tmp_path / "dt.json", {"images": [{"file": "y.jpg"}]}), records)


@pytest.mark.parametrize("changes", [{"image_id": True}, {"category_id": True}])
def test_true_is_no_id(changes: dict[str, Any], make_records: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a boolean, not an id; write the data set's own id"):
        read_results(write(tmp_path / "dt.json", [entry(**{"image_id": 1, "category_id": 1, **changes})]), make_records([]))


def test_a_long_id_is_shortened(records: Records, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image_id 'xxx") as caught:
        read_results(write(tmp_path / "dt.json", [entry(image_id="x" * 1_000_000)]), records)
    assert len(str(caught.value)) < 500
