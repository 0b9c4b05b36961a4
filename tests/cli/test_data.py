import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.data.formats.table import FORMATS
from lw_retinanet.data.sample import CATEGORIES


def test_check_of_good_data(cli: Any, data: Path, folder_state: Callable[[Path], object]) -> None:
    before = folder_state(data)
    outcome = cli("data", "check", data, "--image-size", "64")
    assert outcome.code == 0
    for part in ("8 images", "4 images", CATEGORIES[1][1], "anchors at image size 64", "errors: 0"):
        assert part in outcome.out
    result = cli("data", "check", data, "--split", "val", "--json").json
    assert list(result["anchor_recall"]) == ["val"]
    assert result["anchor_recall"]["val"]["image_size"] == 640
    assert 0 < result["anchor_recall"]["val"]["covered"] <= 1
    assert folder_state(data) == before


def test_check_counts_what_is_wrong_and_ends_with_2(cli: Any, edited_data: Callable[..., Path]) -> None:
    source = edited_data(lambda table: table["annotations"][0].update(bbox=[1, 1, float("nan"), 4]))
    (source / "images" / "val_0001.jpg").unlink()
    outcome = cli("data", "check", source)
    assert outcome.code == 2
    assert "val_0001.jpg" in outcome.out
    assert outcome.err == f"error: {source} has 2 errors, listed in the report; correct them and check again\n"


def test_preview_draws(cli: Any, data: Path, tmp_path: Path) -> None:
    outcome = cli("data", "preview", data, "--out", tmp_path / "look", "--count", "3")
    assert outcome.code == 0
    assert outcome.out.startswith("3 images in")
    names = sorted(path.name for path in (tmp_path / "look").iterdir())
    assert len(names) == 4
    assert names[-1] == "contact_sheet.jpg"


@pytest.mark.parametrize("form", FORMATS)
def test_convert_and_read_back(cli: Any, data: Path, form: str, tmp_path: Path) -> None:
    outcome = cli("data", "convert", data, "--to", form, "--out", tmp_path / form)
    assert outcome.code == 0
    assert outcome.out.startswith("12 images, ")
    back = cli("data", "check", tmp_path / form, "--json")
    assert back.code == 0
    reports = back.json["splits"]
    assert sum(report["images"] for report in reports) == 12
    assert {report["form"] for report in reports} == {form}


@pytest.mark.parametrize("command", [["check"], ["preview", "--out", "out"], ["convert", "--to", "voc", "--out", "out"]])
def test_what_is_no_data_set_is_refused(cli: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "gone does not exist" in cli.refuses("data", command[0], "gone", *command[1:], unchanged=tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in cli.refuses("data", command[0], "empty", *command[1:], unchanged=tmp_path)


def test_a_broken_annotation_file_is_named_with_the_place(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source = edited_data()
    (source / "train.json").write_text('{"images": [\n  {"id": 1,, }]}')
    for command in (["preview", source, "--out", tmp_path / "out"], ["convert", source, "--to", "yolo", "--out", tmp_path / "out"]):
        line = cli.refuses("data", *command, unchanged=tmp_path)
        assert "train.json" in line
        assert "line 2" in line
    # A check goes on, and lists it.
    checked = cli("data", "check", source)
    assert checked.code == 2
    assert "train.json" in checked.out


def test_outputs_do_not_land_on_other_files(cli: Any, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("precious")
    line = cli.refuses("data", "convert", data, "--to", "coco", "--out", tmp_path / "out", unchanged=tmp_path)
    assert "another folder" in line or "new folder" in line
    file = tmp_path / "file"
    file.write_text("precious")
    for command in (["preview", data, "--out", file], ["convert", data, "--to", "coco", "--out", file]):
        cli.refuses("data", *command, unchanged=tmp_path)


def test_a_missing_picture_stops_a_conversion(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source = edited_data()
    (source / "images" / "train_0003.jpg").unlink()
    line = cli.refuses("data", "convert", source, "--to", "voc", "--out", tmp_path / "out", unchanged=tmp_path)
    assert "train_0003.jpg" in line


def test_a_split_that_is_not_there(cli: Any, data: Path, tmp_path: Path) -> None:
    line = cli.refuses("data", "check", data, "--split", "holdout", unchanged=tmp_path)
    assert "no split 'holdout'; it has train, val" in line
    assert json.loads(cli("data", "check", data, "--split", "train", "--json").out)["anchor_recall"].keys() == {"train"}
