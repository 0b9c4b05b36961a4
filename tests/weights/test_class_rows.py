"""Which class each row of a class predictor is."""

import json
from pathlib import Path

import pytest

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import DataError, InputError, WeightsError
from lw_retinanet.weights.foreign.class_rows import assign_classes, read_classes
from lw_retinanet.weights.foreign.coco_classes import COCO_CLASSES
from lw_retinanet.weights.foreign.weights_format import TensorNames, WeightsFormat

TORCHVISION = WeightsFormat(
    framework="torchvision", generation="", conventions=Conventions(), names=TensorNames({}), has_background_row=True
)
OTHER = WeightsFormat(framework="mmdet", generation="", conventions=Conventions(), names=TensorNames({}))


def with_ids(*ids: int | str) -> list[Category]:
    return [Category(id=i, name=f"n{i}") for i in ids]


def test_cocos_classes_are_80_with_the_ten_gaps_of_their_ids() -> None:
    ids = [category.id for category in COCO_CLASSES]
    assert ids == [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    assert len({category.name for category in COCO_CLASSES}) == 80
    assert {category.id: category.name for category in COCO_CLASSES}[44] == "bottle"


@pytest.mark.real
def test_cocos_classes_are_those_of_its_own_file(shared: Path) -> None:
    table = json.loads((shared / "fixtures/coco_val2014_100/instances_val2014_100.json").read_text())
    assert [(c.id, c.name, c.supercategory) for c in COCO_CLASSES] == [
        (c["id"], c["name"], c["supercategory"]) for c in table["categories"]
    ]


@pytest.mark.parametrize(
    ("layout", "num_rows", "classes", "rows", "ids"),
    [
        (TORCHVISION, 91, None, [c.id for c in COCO_CLASSES], [c.id for c in COCO_CLASSES]),
        (OTHER, 80, None, range(80), [c.id for c in COCO_CLASSES]),
        (TORCHVISION, 80, None, range(80), range(80)),
        (TORCHVISION, 3, None, range(3), range(3)),
        (OTHER, 3, ["a", "b", "c"], range(3), range(3)),
        (TORCHVISION, 3, ["a", "b", "c"], range(3), range(3)),
        (TORCHVISION, 4, ["a", "b", "c"], [1, 2, 3], [1, 2, 3]),
        # The largest id is the last row: rows are ids, those that no class has are left out.
        (TORCHVISION, 8, with_ids(7, 2, 5), [2, 5, 7], [2, 5, 7]),
        (TORCHVISION, 91, list(COCO_CLASSES), [c.id for c in COCO_CLASSES], [c.id for c in COCO_CLASSES]),
        (TORCHVISION, 3, with_ids(1, 2, 3), range(3), [1, 2, 3]),
        (TORCHVISION, 4, with_ids(9, 7, 8), [1, 2, 3], [7, 8, 9]),
        (OTHER, 3, with_ids(9, 7, 8), range(3), [7, 8, 9]),
        (OTHER, 2, with_ids("b", "a"), range(2), ["b", "a"]),
        # 80 other names for COCO's 80 rows.
        (TORCHVISION, 91, [f"n{i}" for i in range(80)], [c.id for c in COCO_CLASSES], [c.id for c in COCO_CLASSES]),
        (TORCHVISION, 91, [f"n{i}" for i in range(90)], range(1, 91), range(1, 91)),
    ],
)
def test_rows_become_classes(
    layout: WeightsFormat, num_rows: int, classes: list[str] | list[Category] | None, rows: list[int], ids: list[int | str]
) -> None:
    given = None if classes is None else read_classes(classes)
    found, change = assign_classes(num_rows, layout, given, "the file")
    assert change is None
    assert list(found.rows) == list(rows)
    assert [category.id for category in found.categories] == list(ids)
    if classes is not None:
        assert {category.name for category in found.categories} == {c if isinstance(c, str) else c.name for c in classes}
    if ids == [7, 8, 9]:
        assert [category.name for category in found.categories] == ["n7", "n8", "n9"]


@pytest.mark.parametrize(("layout", "num_rows"), [(TORCHVISION, 91), (OTHER, 80)])
def test_cocos_rows_with_a_list_of_another_length_are_changed(layout: WeightsFormat, num_rows: int) -> None:
    found, change = assign_classes(num_rows, layout, read_classes(["person", "fish"]), "the file")
    assert found.categories == COCO_CLASSES
    assert change is not None
    assert [c.name for c in change.categories] == ["person", "fish"]


@pytest.mark.parametrize(
    ("layout", "message"), [(TORCHVISION, r"give 6 \(row 0 being the background\) or 7 names"), (OTHER, "give 7 names")]
)
@pytest.mark.parametrize("count", [5, 8])
def test_a_list_of_no_fitting_length_is_refused(layout: WeightsFormat, message: str, count: int) -> None:
    with pytest.raises(WeightsError, match=f"the list of classes gives {count} classes, but the file has 7 class rows; {message}"):
        assign_classes(7, layout, read_classes([str(i) for i in range(count)]), "the file")


def test_the_forms_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\n\n b c \n", encoding="utf-8-sig")
    assert [c.name for c in read_classes(tmp_path / "names.txt").categories] == ["a", "b c"]
    assert [c.name for c in read_classes(" a, b c").categories] == ["a", "b c"]
    assert [c.name for c in read_classes("fish").categories] == ["fish"]
    table = {"images": [], "annotations": [], "categories": [{"id": 4, "name": "x"}, {"id": 2, "name": "y"}]}
    (tmp_path / "instances.json").write_text(json.dumps(table))
    found = read_classes(tmp_path / "instances.json")
    assert found.has_ids
    assert [(c.id, c.name) for c in found.categories] == [(4, "x"), (2, "y")]
    for wrong, error, message in (
        ("classes.txt", InputError, "classes classes.txt: there is no such file"),
        ("a,,b", InputError, "the list of classes holds an empty name"),
        ("a,b,a", InputError, "names 'a' twice"),
        ([], InputError, "holds no classes"),
        (tmp_path / "empty folder", InputError, "there is no such file"),
    ):
        with pytest.raises(error, match=message):
            read_classes(wrong)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError):
        read_classes(tmp_path / "broken.json")
