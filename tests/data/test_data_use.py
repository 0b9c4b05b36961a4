import json
from dataclasses import replace
from pathlib import Path

import pytest

from lw_retinanet.data.data_use import data_use, use_line, write_data_use
from lw_retinanet.data.problems import Problem
from lw_retinanet.data.records import Category, Records, build_records


@pytest.fixture
def records() -> Records:
    """Twelve boxes: four of zero size, one outside, one below a pixel, two crowds (one of zero size), one difficult, three sound."""
    boxes: list[list[float]] = [[0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 5], [0, 0, 0, 5], [90, 0, 5, 5], [0, 0, 0.5, 5], [0, 0, 0, 5]]
    boxes += [[1, 1, 5, 5], [2, 2, 5, 5], [3, 3, 5, 5], [3, 3, 5, 5], [3, 3, 5, 5]]
    return build_records(
        root=Path("x"),
        file_names=["a.jpg"],
        sizes_hw=[(20, 20)],
        image_of_box=[0] * 12,
        boxes_xywh=boxes,
        labels=[0] * 12,
        categories=[Category(id=1, name="cat")],
        is_crowd=[row in (6, 7) for row in range(12)],
        is_difficult=[row == 8 for row in range(12)],
    )


def test_every_box_is_counted_once(records: Records) -> None:
    reasons = "4 of zero size, 1 outside their image, 1 below 1 px, 2 crowd, 1 difficult"
    assert use_line(records, Path("my data"), "train") == (
        f"train: 9 of 12 boxes are not used ({reasons}); details: lw-retinanet data check my data"
    )
    scoring = data_use(records, scoring=True).sentence()
    assert scoring == (
        "3 of 12 boxes are not used (2 crowd, 1 difficult); "
        "6 of 12 boxes count as missed (4 of zero size, 1 outside their image, 1 below 1 px)"
    )


def test_nothing_to_say_is_no_line(records: Records) -> None:
    sound = build_records(
        root=Path("x"),
        file_names=["a"],
        sizes_hw=[(9, 9)],
        image_of_box=[0],
        boxes_xywh=[[0, 0, 5, 5]],
        labels=[0],
        categories=records.categories,
    )
    assert use_line(sound, Path("x")) is None


def test_the_file_of_a_run_folder(records: Records, tmp_path: Path) -> None:
    remark = Problem("duplicate_file_name", 2, ["a.jpg"])
    write_data_use(tmp_path, trained={"train": replace(records, remarks=(remark,))}, scored={"val2017": records})
    content = json.loads((tmp_path / "data.json").read_text())
    assert content["train"]["unused"] == {"of zero size": 4, "outside their image": 1, "below 1 px": 1, "crowd": 2, "difficult": 1}
    assert content["train"]["notes"] == {"more entries of a file joined with its first": 2}
    assert content["train"]["remarks"][0]["examples"] == ["a.jpg"]
    assert content["val2017"]["unused"] == {"crowd": 2, "difficult": 1}
