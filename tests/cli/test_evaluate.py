import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TWELVE = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


@pytest.fixture(scope="module")
def scored(cli: Any, lively: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``evaluate --out`` leaves."""
    out = tmp_path_factory.mktemp("scored") / "deep" / "out"
    outcome = cli("evaluate", lively, data, "--out", out, "--json")
    assert outcome.code == 0, outcome
    assert outcome.json == json.loads((out / "metrics.json").read_text())
    return out


def test_json_has_the_keys_of_the_contract(cli: Any, lively: Path, data: Path, scored: Path) -> None:
    outcome = cli("evaluate", lively, data, "--json")
    assert list(outcome.json) == [*TWELVE, "per_class", "images"]
    assert outcome.json["images"] == 4
    assert outcome.json["AR100"] > 0
    assert outcome.json == json.loads((scored / "metrics.json").read_text())


def test_files_and_pictures(scored: Path, data: Path) -> None:
    assert {str(path.relative_to(scored)) for path in scored.rglob("*.*")} == {
        "data.json",
        "metrics.json",
        "detections.json",
        "pictures/precision_recall.png",
        "pictures/detections.jpg",
    }
    detections = json.loads((scored / "detections.json").read_text())
    table = json.loads((data / "val.json").read_text())
    # The data set's own ids, which have gaps.
    assert {detection["image_id"] for detection in detections} == {image["id"] for image in table["images"]}
    assert {detection["category_id"] for detection in detections} <= {category["id"] for category in table["categories"]}


def test_a_file_of_detections_scores_as_the_model_did(cli: Any, scored: Path, data: Path, tmp_path: Path) -> None:
    forms = ["--ground-truth", data / "val.json", "--detections", scored / "detections.json"]
    expected = json.loads((scored / "metrics.json").read_text())
    outcome = cli("evaluate", *forms, "--json", "--out", tmp_path / "again")
    assert outcome.json == expected
    assert (tmp_path / "again" / "metrics.json").is_file()
    assert cli("evaluate", "--ground-truth", data, "--split", "val", "--detections", scored / "detections.json", "--json").json == expected
    table = cli("evaluate", *forms).out.splitlines()
    assert len([line for line in table if line.startswith(" Average ")]) == 12


def test_perfect_detections_score_one(cli: Any, data: Path, tmp_path: Path) -> None:
    table = json.loads((data / "val.json").read_text())
    boxes = [{**box, "score": 0.9} for box in table["annotations"]]
    (tmp_path / "perfect.json").write_text(json.dumps(boxes))
    result = cli("evaluate", "--ground-truth", data / "val.json", "--detections", tmp_path / "perfect.json", "--json").json
    assert result["AP"] == pytest.approx(1.0)


def test_other_splits_and_batches(cli: Any, lively: Path, data: Path) -> None:
    assert cli("evaluate", lively, data, "--split", "train", "--json").json["images"] == 8
    assert cli("evaluate", lively, data / "val.json", "--batch-size", "3", "--json").json["images"] == 4


def test_a_lightened_model_is_scored_with_either_head(cli: Any, full_and_light: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    full, light = full_and_light
    found = {}
    for name, model, head in (("expected", full, "light"), ("full", light, "full"), ("light", light, "light")):
        assert cli("evaluate", model, data, "--head", head, "--out", tmp_path / name).code == 0
        found[name] = json.loads((tmp_path / name / "detections.json").read_text())
    assert found["full"] == found["expected"] != found["light"]
    forms = ("--ground-truth", data / "val.json", "--detections", tmp_path / "full" / "detections.json")
    assert cli("evaluate", light, data, "--head", "full", "--json").json == cli("evaluate", *forms, "--json").json


def test_classes_that_the_data_set_lacks_are_left_out_with_a_note(
    cli: Any, lively: Path, edited_data: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    def only_the_first(table: dict[str, Any]) -> None:
        first = table["categories"][0]["id"]
        table["categories"] = table["categories"][:1]
        table["annotations"] = [box for box in table["annotations"] if box["category_id"] == first]

    outcome = cli("evaluate", lively, edited_data(only_the_first, "train"), "--split", "train", "--json")
    assert outcome.code == 0
    assert [entry["name"] for entry in outcome.json["per_class"]] == ["disc"]
    assert "none of 3 of the model's classes" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["give either a model and a data set, or the files ground_truth and detections"]),
        (["{model}"], ["give either a model and a data set"]),
        (["--ground-truth", "{data}/val.json"], ["detections"]),
        (["{model}", "{data}", "--detections", "x.json"], ["give either"]),
        (["{model}", "gone"], ["gone does not exist"]),
        (["gone.safetensors", "{data}"], ["gone.safetensors does not exist"]),
        (["{data}", "{data}"], ["holds no model.safetensors"]),
        (["{model}", "{data}", "--split", "holdout"], ["no split 'holdout'; it has train, val"]),
        (["{model}", "{data}/val.json", "--split", "val"], ["no splits"]),
        (["{model}", "{data}", "--precision", "fp8"], ["--precision fp8", "did you mean fp32?"]),
        (["{model}", "{data}", "--device", "gpu"], ["unknown device 'gpu'"]),
        (["{model}", "{data}", "--head", "full", "--out", "new"], ["model.safetensors", "holds one head only", "`lw-retinanet lighten`"]),
        (["{model}", "{data}", "--head", "Full"], ["head 'Full'", "did you mean full?"]),
        (["{model}", "{data}", "--out", "{data}/val.json"], ["val.json is a file", "choose another output folder"]),
        (["--ground-truth", "gone.json", "--detections", "{data}/val.json"], ["gone.json does not exist"]),
        (["--ground-truth", "{data}/val.json", "--detections", "gone.json"], ["gone.json does not exist"]),
        (["--ground-truth", "{data}/val.json", "--detections", "{data}/train.json"], ["annotations[0]", "score"]),
    ],
)
def test_bad_input(
    cli: Any, lively: Path, data: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refuses("evaluate", *(text.format(model=lively, data=data) for text in arguments), unchanged=tmp_path)
    assert all(part in line for part in parts), line


def rename_all(table: dict[str, Any]) -> None:
    for category in table["categories"]:
        category["name"] += "!"


def other_size(table: dict[str, Any]) -> None:
    table["images"][1]["width"] -= 1


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (rename_all, ["none of the model's 4 classes ('disc' (id 1)", "data set's 4 ('disc!' (id 1)"]),
        (lambda table: table.update(annotations=[]), ["4 images but no boxes at all"]),
        (other_size, ["val_0002.jpg is 64x64 pixels, its annotation says 63x64"]),
        (lambda table: table["annotations"][0].update(bbox=[0, 0, None, 3]), ["val.json", "bbox"]),
    ],
)
def test_data_that_does_not_fit(
    cli: Any, lively: Path, edited_data: Callable[..., Path], edit: Callable[[Any], object], parts: list[str], tmp_path: Path
) -> None:
    source = edited_data(edit, "val")
    line = cli.refuses("evaluate", lively, source, "--out", tmp_path / "out", unchanged=tmp_path)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_picture_that_cannot_be_read_is_named(
    cli: Any, lively: Path, edited_data: Callable[..., Path], damage: str, tmp_path: Path
) -> None:
    source = edited_data()
    picture = source / "images" / "val_0003.jpg"
    if damage == "missing":
        picture.unlink()
    else:
        picture.write_bytes(picture.read_bytes()[:-300])
    assert "val_0003.jpg" in cli.refuses("evaluate", lively, source, "--out", tmp_path / "out", unchanged=tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"image_id": 999}, "image_id 999 is not in the data set"),
        ({"category_id": "1"}, "category_id '1' is not in the data set, which has 1"),
        ({"score": float("nan")}, "NaN"),
        ({"bbox": [1, 2, 3]}, "bbox is [1, 2, 3]"),
    ],
)
def test_bad_detections(cli: Any, data: Path, change: dict[str, Any], part: str, tmp_path: Path) -> None:
    good = {"image_id": 10, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    (tmp_path / "found.json").write_text(json.dumps([good, {**good, **change}]))
    line = cli.refuses("evaluate", "--ground-truth", data / "val.json", "--detections", tmp_path / "found.json", unchanged=tmp_path)
    assert part in line
    assert "[1]" in line


def test_ground_truth_without_boxes_is_refused(cli: Any, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    (tmp_path / "found.json").write_text("[]")
    line = cli.refuses("evaluate", "--ground-truth", tmp_path / "truth.json", "--detections", tmp_path / "found.json", unchanged=tmp_path)
    assert "no boxes at all" in line


def test_detections_are_scored_without_pictures(cli: Any, tmp_path: Path) -> None:
    images = [{"id": 1, "file_name": "nowhere.jpg", "width": 80, "height": 80}]
    boxes = [{"id": 1, "image_id": 1, "category_id": 5, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    (tmp_path / "truth.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 5, "name": "a"}]}))
    (tmp_path / "found.json").write_text("[]")
    result = cli("evaluate", "--ground-truth", tmp_path / "truth.json", "--detections", tmp_path / "found.json", "--json").json
    assert result["AP"] == 0.0


def test_turned_pictures_are_scored_as_displayed(cli: Any, lively: Path, tmp_path: Path) -> None:
    # One scene, stored upright and stored on its side with an EXIF note: the same score.
    (tmp_path / "images").mkdir()
    shown = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(shown))).save(tmp_path / "images" / "turned.png", exif=exif)
    Image.fromarray(shown).save(tmp_path / "images" / "upright.png")
    results = []
    for name in ("turned", "upright"):
        images = [{"id": 1, "file_name": f"{name}.png", "width": 48, "height": 64}]
        boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 20, 30, 40], "area": 1200, "iscrowd": 0}]
        table = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "disc"}]}
        (tmp_path / "val.json").write_text(json.dumps(table))
        results.append(cli("evaluate", lively, tmp_path / "val.json", "--json").json)
    assert results[0] == results[1]


def test_what_predict_wrote_can_be_scored(cli: Any, scored: Path, data: Path, lively: Path, tmp_path: Path) -> None:
    images = [data / "images" / image["file_name"] for image in json.loads((data / "val.json").read_text())["images"]]
    assert cli("predict", lively, *images, "--score", "0.05", "--out", tmp_path / "out").code == 0
    aps = []
    for name in ("predictions.json", "results.json"):
        result = cli("evaluate", "--ground-truth", data, "--split", "val", "--detections", tmp_path / "out" / name, "--json")
        aps.append(result.json["AP"])
    assert aps == [json.loads((scored / "metrics.json").read_text())["AP"]] * 2


def test_more_detections_than_coco_counts_can_be_scored(cli: Any, data: Path, lively: Path) -> None:
    assert "AR300" in cli("evaluate", lively, data, "--max-detections", "300", "--json").json
    assert cli("evaluate", lively, data, "--max-detections", "5").code == 2
