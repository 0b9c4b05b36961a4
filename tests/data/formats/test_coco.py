import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from lw_retinanet.data.formats.coco import FORMAT as COCO
from lw_retinanet.data.formats.json_sections import iterate_sections
from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import DataError


def coco(**changes: Any) -> dict[str, Any]:
    """Two images, three boxes, two classes with gapped and string ids, everything out of order."""
    content: dict[str, Any] = {
        "annotations": [
            {"id": 7, "image_id": 5, "category_id": "z", "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 1},
            {"id": 0, "image_id": -3, "category_id": 90, "bbox": [10.5, 0, 1, 1]},
            {"id": 7, "image_id": 5, "category_id": 90, "bbox": [0, 0, 2, 2], "area": None, "ignore": 1},
        ],
        "images": [
            {"id": 5, "file_name": "b.jpg", "width": 40, "height": 30},
            {"id": 2**40, "file_name": "empty.jpg"},
            {"id": -3, "file_name": "a.jpg", "width": 20, "height": 10},
        ],
        "categories": [{"id": 90, "name": "cat", "supercategory": "animal"}, {"id": "z", "name": "dog"}],
        "info": {"nested": [{"a": [1]}]},
    }
    return content | changes


def write(folder: Path, content: Any) -> Path:
    path = folder / "train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_odd_ids_out_of_order(tmp_path: Path) -> None:
    records = COCO.read(write(tmp_path, coco()))
    assert records.image_ids == (5, 2**40, -3)
    assert records.category_ids == (90, "z")
    assert records.categories[0].supercategory == "animal"
    assert records.offsets.tolist() == [0, 2, 2, 3]  # the image without boxes stays
    assert records.sizes_hw.tolist() == [[30, 40], [0, 0], [10, 20]]
    assert records.annotation_ids.tolist() == [7, 7, 0]  # file order within an image
    assert records.labels.tolist() == [1, 0, 0]
    assert records.areas.tolist() == [5.5, 4.0, 1.0]
    assert records.is_crowd.tolist() == [True, False, False]
    assert records.is_difficult.tolist() == [False, True, False]
    assert records.boxes_xywh.tolist() == [[1, 2, 3, 4], [0, 0, 2, 2], [10.5, 0, 1, 1]]


def test_byte_order_mark_and_pretty_printing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(coco(), indent=4).encode())
    assert COCO.read(path).num_boxes == 3


def test_no_annotations_at_all(tmp_path: Path) -> None:
    records = COCO.read(write(tmp_path, {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}))
    assert (records.num_images, records.num_boxes, records.boxes_xywh.shape) == (1, 0, (0, 4))


@pytest.mark.parametrize("name", ["images", "pictures"])
def test_images_are_found_beside_or_in_images(tmp_path: Path, name: str) -> None:
    root = tmp_path / "images" if name == "images" else tmp_path
    (tmp_path / "images").mkdir()
    (root / "b.jpg").touch()
    assert COCO.read(write(tmp_path, coco())).root == root.resolve()


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ([0, 0, 1], "malformed_box"),
        ([0, 0, 1, 1, 1], "malformed_box"),
        (["0", "0", "1", "1"], "malformed_box"),  # numpy would read these as numbers
        ([0, 0, True, 1], "malformed_box"),
        ([0, 0, None, 1], "malformed_box"),
        (None, "malformed_box"),
        ("abcd", "malformed_box"),
        ({"0": 1, "1": 2, "2": 3, "3": 4}, "malformed_box"),
        ([0, 0, float("nan"), 1], "non_finite_box"),
        ([0, float("-inf"), 1, 1], "non_finite_box"),
        ([0, 0, 1e308, 1], "non_finite_box"),
        ([0, 0, 10**400, 1], "non_finite_box"),
    ],
)
def test_a_bad_box_names_its_annotation(tmp_path: Path, bbox: object, kind: str) -> None:
    bad = {"id": 77, "image_id": 5, "category_id": 90, "bbox": bbox}
    path = write(tmp_path, coco(annotations=[*coco()["annotations"], bad]))
    with pytest.raises(DataError, match="annotation 77"):
        COCO.read(path)
    problems = Problems(path)
    assert COCO.read(path, problems=problems).num_boxes == 3  # the sound ones of the batch are kept
    assert kind in [problem.kind for problem in problems.found() if problem.count == 1]


@pytest.mark.parametrize(
    ("field", "value"),
    [("iscrowd", "0"), ("iscrowd", 2), ("area", "12"), ("area", float("nan")), ("image_id", [5]), ("category_id", None), ("ignore", {})],
)
def test_a_bad_field_names_its_annotation(tmp_path: Path, field: str, value: object) -> None:
    bad = {"id": 78, "image_id": 5, "category_id": 90, "bbox": [0, 0, 1, 1]} | {field: value}
    with pytest.raises(DataError, match=f"annotation 78: {field}"):
        COCO.read(write(tmp_path, coco(annotations=[bad])))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [*coco()["images"], {"id": 5, "file_name": "c.jpg"}]}, r"image ids used twice: 1 \(5\)"),
        ({"categories": [*coco()["categories"], {"id": 90, "name": "x"}]}, r"category ids used twice: 1 \(90\)"),
        ({"images": coco()["images"][:1]}, r"annotations of an image that is not listed: 1 \(annotation 0: image_id -3\)"),
        ({"categories": coco()["categories"][:1]}, r"class that is not listed: 1 \(annotation 7: category_id 'z'\)"),
        ({"images": [{"id": 5, "file_name": "../b.jpg"}]}, r"'../b.jpg'"),
        ({"images": [{"id": 5, "file_name": "/etc/b.jpg"}]}, "leave the image folder"),
        ({"images": [{"id": 5, "file_name": "x.jpg", "width": "40", "height": 30}]}, "image entries"),
        ({"images": [{"id": True, "file_name": "x.jpg"}]}, "image entries"),
        ({"categories": [{"id": 1}]}, "categories without"),
        ({"images": None}, "no list 'images'"),
    ],
)
def test_errors_of_the_tables(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        COCO.read(write(tmp_path, coco(**changes)))


def test_one_line_counts_all_and_shows_five(tmp_path: Path) -> None:
    lost = [{"id": i, "image_id": 999, "category_id": 90, "bbox": [0, 0, 1, 1]} for i in range(12)]
    with pytest.raises(DataError) as caught:
        COCO.read(write(tmp_path, coco(annotations=lost)))
    assert "12 (annotation 0: " in str(caught.value)
    assert "annotation 4" in str(caught.value)
    assert "annotation 5" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_string_annotation_ids_are_numbered(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][1]["id"] = "second"
    problems = Problems("x")
    records = COCO.read(write(tmp_path, content), problems=problems)
    assert records.annotation_ids.tolist() == [1, 2, 3]
    assert "renumbered_annotation_ids" in [problem.kind for problem in problems.found() if problem.count == 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n{"id": 1,, }]}', "line 2, column 10"),
        ('{"images": [{"id": 1}', "line 1, column 22"),
        ('{"images": [] "a": 1}', "line 1, column 15"),
        ('{"images": []} x', "line 1, column 16"),
        ('{"images": [], "images": []}', "appears twice"),
        ("", "line 1, column 1"),
        ("[1, 2]", "line 1, column 1"),
        ('{"images": [' + "[" * 100_000, "nested too deeply"),
        ('{"info": ' + "9" * 5000 + "}", "malformed JSON"),
    ],
)
def test_malformed_json_is_located(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        COCO.read(write(tmp_path, text))


def test_the_garbage_collector_is_on_again(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        COCO.read(write(tmp_path, "{"))
    assert gc.isenabled()


def test_not_utf_8_and_missing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff"}')
    with pytest.raises(DataError, match="byte 12"):
        COCO.read(tmp_path / "a.json")
    with pytest.raises(DataError, match="no such file"):
        COCO.read(tmp_path / "b.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@hypothesis_settings(deadline=None, max_examples=40)
@given(content=st.dictionaries(st.text(), json_values, max_size=5), indent=st.none() | st.integers(0, 2), batch=st.integers(1, 3))
def test_sections_equal_the_json_module(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any], indent: int | None, batch: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "sections.json"
    path.write_text(json.dumps(content, indent=indent), encoding="utf-8")
    found: dict[str, list[object] | None] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lw_retinanet.data.formats.json_sections._BATCH", batch)
        for key, elements in iterate_sections(path):
            found[key] = None if elements is None else [*(found.get(key) or []), *elements]
    assert found == {key: value if isinstance(value, list) else None for key, value in content.items()}


@pytest.mark.real
def test_coco_itself(shared: Path) -> None:
    path = shared / "data" / "coco_cc" / "train.json"
    records = COCO.read(path)
    content = json.loads(path.read_text())
    assert (records.num_images, int((~records.is_crowd).sum())) == (678, 6093)
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    for row in range(0, records.num_boxes, 97):
        annotation = by_id[int(records.annotation_ids[row])]
        image = int(np.searchsorted(records.offsets, row, side="right")) - 1
        assert records.boxes_xywh[row].tolist() == annotation["bbox"]
        assert records.areas[row] == annotation["area"]
        assert records.image_ids[image] == annotation["image_id"]
        assert records.category_ids[records.labels[row]] == annotation["category_id"]
    assert records.path(0).is_file()
