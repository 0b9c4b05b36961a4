"""``lw-retinanet report``."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.evaluation.detections import DetectionTable, write_results
from lw_retinanet.reporting.evidence import gather
from lw_retinanet.reporting.run_page import TITLES
from lw_retinanet.training.run_folder import locked


@pytest.fixture
def run(trained: Path, data: Path, tmp_path: Path) -> Path:
    """A copy of a run with made-up detections: every second box is found, and one thing that is not there."""
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    records = Dataset.open(data).read("val")
    rows = range(0, records.num_boxes, 2)
    found = DetectionTable.from_arrays(
        [*records.image_of_box[rows], 0], [*records.boxes_xywh[rows], (1, 1, 9, 9)], [0.9] * len(rows) + [0.4], [*records.labels[rows], 0]
    )
    write_results(found, records, folder / "detections.json")
    return folder


def test_the_page_has_everything_and_needs_nothing(cli: Any, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    outcome = cli("report", run, "--out", out, "--json")
    assert outcome.code == 0, outcome
    assert set(outcome.json) == {"page", "findings", "missing"}
    assert outcome.json["page"] == str(out)
    assert outcome.json["missing"] == []
    assert any("too few to say" in one["what"] for one in outcome.json["findings"])  # four images
    page = out.read_text(encoding="utf-8")
    assert re.findall(r'<h2 id="(\w+)">', page) == [name for name in TITLES if name != "missing"]
    assert re.findall(r'<a href="#(\w+)">Show</a>', page) == [one["section"] for one in outcome.json["findings"]]
    assert page.index("What to do next") < page.index("<svg")
    assert page.count("<svg") == 6
    assert "//" not in re.sub(r"base64,[^\"]*", "", page).replace("http://www.w3.org", "")
    images = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    assert len(images) >= 8
    assert all(base64.b64decode(one)[:2] == b"\xff\xd8" for one in images)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    command = re.search(r"<code>(lw-retinanet train .*?)</code>", page)
    assert command
    assert "config.yaml" in command[1]


def test_the_command_on_the_page_repeats_the_run(cli: Any, run: Path) -> None:
    repeat = gather(run).repeat_command.split()[1:]
    assert cli(*repeat).code == 0
    again, before = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (run.with_name("run-again"), run))
    assert again == before


def _without_evaluation(run: Path) -> None:
    (run / "detections.json").unlink()
    (run / "metrics.json").unlink()


def _of_an_older_version(run: Path) -> None:
    """No notes, other settings, and a record of the model that nobody knows any more."""
    (run / "config.yaml").write_text("model: {preset: lw-v3, colour: blue}\ntrain: twelve\n")
    (run / "model.safetensors").write_bytes(b"old")
    (run / "log.jsonl").write_text('{"step": 1, "total": 3.0}\n')


def _interrupted(run: Path) -> None:
    for name in ("detections.json", "metrics.json", "model.safetensors"):
        (run / name).unlink()
    with (run / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "lo')


def _of_other_data(run: Path) -> None:
    (run / "detections.json").write_text(json.dumps([{"image_id": "elsewhere", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_without_evaluation, ["The run is not evaluated: lw-retinanet evaluate "]),
        (_of_an_older_version, ["no curves", "The model cannot be used", "does not say what it was trained on"]),
        (_interrupted, ["There is no model: lw-retinanet train --resume ", "not evaluated"]),
        (_of_other_data, ["elsewhere"]),
    ],
)
def test_the_page_says_what_is_missing(cli: Any, run: Path, damage: Callable[[Path], None], said: list[str]) -> None:
    damage(run)
    outcome = cli("report", run, "--json")
    assert outcome.code == 0, outcome
    missing = outcome.json["missing"]
    assert len(missing) == len(said)
    assert all(part in one for part, one in zip(said, missing, strict=True))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "not evaluated" in page
    assert page.index('id="missing"') < page.index('id="training"')


def test_the_remedy_for_a_run_that_is_not_evaluated_works(cli: Any, run: Path) -> None:
    _without_evaluation(run)
    [missing] = gather(run).missing
    command = re.search(r"lw-retinanet (evaluate .*) does it", missing)
    assert command
    assert cli(*command[1].split()).code == 0
    assert gather(run).missing == ()


def test_images_and_data_that_are_gone(cli: Any, run: Path, edited_data: Any) -> None:
    moved = edited_data()
    shutil.rmtree(moved / "images")
    outcome = cli("report", run, "--data", moved, "--json")
    assert outcome.code == 0, outcome
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "images cannot be read any more at" in page
    assert page.count("<svg") == 6  # all that needs no image is there
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["run"]["data"] = str(run / "nowhere")
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    assert ["is not here" in one for one in gather(run).missing] == [True]


def test_a_run_that_is_being_written(run: Path) -> None:
    (run / "model.safetensors").unlink()
    with locked(run):
        evidence = gather(run)
    assert evidence.is_written
    assert evidence.missing == ("There is no model yet: the training goes on.",)
    assert not gather(run).is_written


def test_no_run_and_no_place_for_the_page(cli: Any, run: Path, tmp_path: Path) -> None:
    assert "holds no run (no config.yaml)" in cli.refuses("report", tmp_path / "nothing", unchanged=tmp_path)
    assert "is no folder" in cli.refuses("report", run, "--out", tmp_path / "no" / "page.html", unchanged=tmp_path)
    assert "is a folder; name the HTML file" in cli.refuses("report", run, "--out", tmp_path, unchanged=tmp_path)
    assert "does not exist" in cli.refuses("report", run, "--data", tmp_path / "none", unchanged=tmp_path)
    (run / "config.yaml").write_text("- a list\n")
    assert "config.yaml" in cli.refuses("report", run, unchanged=tmp_path)


def test_only_the_classes_of_the_run_are_read(run: Path) -> None:
    settings = yaml.safe_load((run / "config.yaml").read_text())
    kept = gather(run).held_out
    assert kept
    settings["data"]["classes"] = [kept.class_names[0]]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "detections.json").write_text("[]")
    evidence = gather(run)
    assert evidence.held_out
    assert evidence.held_out.class_names == kept.class_names[:1]
