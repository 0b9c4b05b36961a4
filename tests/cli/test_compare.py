import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def scored_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two splits, 24 images and 21 images without pictures, and detections of ``val``."""
    folder = tmp_path_factory.mktemp("compare") / "data"
    folder.mkdir()
    for split, count in (("train", 21), ("val", 24)):
        table = {
            "images": [{"id": 10 + image, "file_name": f"{split}_{image}.jpg", "width": 80, "height": 80} for image in range(count)],
            "annotations": [
                {"id": image + 1, "image_id": 10 + image, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
                for image in range(count)
            ],
            "categories": [{"id": 5, "name": "a"}],
        }
        (folder / f"{split}.json").write_text(json.dumps(table))
    return folder


def write(path: Path, images: range) -> Path:
    """Exact detections of some images."""
    path.write_text(json.dumps([{"image_id": image, "category_id": 5, "bbox": [1, 1, 9, 9], "score": 0.5} for image in images]))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("found")
    return write(folder / "half.json", range(10, 22)), write(folder / "all.json", range(10, 34))


def test_json_has_the_keys_of_the_contract(cli: Any, scored_data: Path, files: tuple[Path, Path]) -> None:
    outcome = cli("compare", *files, "--data", scored_data, "--draws", 200, "--json")
    assert outcome.code == 0, outcome
    answer = outcome.json
    assert {"difference", "low", "high", "draws", "images", "ap_a", "ap_b", "metrics"} <= set(answer)
    # A finds 12 of 24 boxes: 51 of the 101 recall levels.
    assert (answer["ap_a"], answer["ap_b"]) == (pytest.approx(51 / 101), pytest.approx(1.0))
    assert answer["difference"] == pytest.approx(50 / 101)
    assert 0.1 < answer["low"] < answer["difference"] < answer["high"] < 0.9
    assert (answer["draws"], answer["images"]) == (200, 24)
    assert answer["metrics"]["APs"]["difference"] == answer["difference"]
    assert answer["metrics"]["APl"] is None
    again = cli("compare", *files, "--data", scored_data / "val.json", "--draws", 200, "--json")
    assert again.json == answer
    assert cli("compare", *files, "--data", scored_data, "--draws", 200, "--seed", 1, "--json").json != answer


def test_the_table(cli: Any, scored_data: Path, files: tuple[Path, Path]) -> None:
    outcome = cli("compare", *files, "--data", scored_data, "--draws", 100)
    lines = outcome.out.splitlines()
    assert lines[1].split()[:4] == ["AP", "50.50", "100.00", "+49.50"]
    assert "24 images" in lines[-1]
    assert len(lines) == 8


def test_another_split(cli: Any, scored_data: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    half = files[0]
    assert cli("compare", half, half, "--data", scored_data, "--split", "train", "--draws", 100, "--json").json["images"] == 21
    line = cli.refuses("compare", *files, "--data", scored_data, "--split", "train", unchanged=tmp_path)
    assert "image_id 31 is not in the data set" in line


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["{half}", "{all}"], ["--data"]),
        (["{half}", "--data", "{data}"], ["detections_b"]),
        (["gone.json", "{all}", "--data", "{data}"], ["gone.json does not exist"]),
        (["{half}", "gone.json", "--data", "{data}"], ["gone.json does not exist"]),
        (["{half}", "{all}", "--data", "gone"], ["data set gone does not exist"]),
        (["{half}", "{all}", "--data", "{data}", "--split", "holdout"], ["no split 'holdout'"]),
        (["{half}", "{all}", "--data", "{data}", "--draws", "5"], ["--draws", "100"]),
        (["{half}", "{all}", "--data", "{data}", "--seed", "-1"], ["--seed"]),
        (["{half}", "{data}/val.json", "--data", "{data}"], ["annotations[0]", "score"]),
    ],
)
def test_bad_input(
    cli: Any,
    scored_data: Path,
    files: tuple[Path, Path],
    arguments: list[str],
    parts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"half": files[0], "all": files[1], "data": scored_data}
    line = cli.refuses("compare", *(text.format(**named) for text in arguments), unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_a_small_data_set_gets_no_interval(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source = edited_data()
    (tmp_path / "none.json").write_text("[]")
    line = cli.refuses("compare", tmp_path / "none.json", tmp_path / "none.json", "--data", source, unchanged=tmp_path)
    assert "4 images are too few: an interval needs 20 or more" in line


def test_folders_of_a_run_and_of_predict_are_compared(cli: Any, scored_data: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("run", "predicted", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "detections.json").write_bytes(files[0].read_bytes())
    found = [
        {
            "file": f"elsewhere/val_{image}.jpg",
            "width": 80,
            "height": 80,
            "detections": [{"box": [1, 1, 10, 10], "score": 0.5, "category_id": 5}],
        }
        for image in range(24)
    ]
    (tmp_path / "predicted" / "predictions.json").write_text(json.dumps({"images": found}))
    outcome = cli("compare", tmp_path / "run", tmp_path / "predicted", "--data", scored_data, "--draws", 100, "--json")
    assert (outcome.json["ap_a"], outcome.json["ap_b"]) == (pytest.approx(51 / 101), pytest.approx(1.0))
    outcome = cli("compare", tmp_path / "run", tmp_path / "empty", "--data", scored_data)
    assert outcome.code == 2
    assert "holds none of detections.json, results.json, predictions.json; give a run folder that is finished" in outcome.err
