"""``--classes``: some classes of a data set, for every command that reads its labels."""

import json
from pathlib import Path
from typing import Any


def test_a_class_is_trained_scored_compared_and_written_as_if_there_were_no_others(cli: Any, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    outcome = cli("train", data, *cli.tiny, "--classes", "star", "--out", run)
    assert outcome.code == 0, outcome
    metrics = json.loads((run / "metrics.json").read_text())
    assert [entry["name"] for entry in metrics["per_class"]] == ["star"]
    scored = cli("evaluate", run, data, "--classes", "star", "--json")
    assert scored.json["AP"] == metrics["AP"]
    written = cli("data", "convert", data, "--classes", "star", "--to", "coco", "--out", tmp_path / "stars")
    assert written.code == 0, written
    val, whole = (json.loads((folder / "val.json").read_text()) for folder in (tmp_path / "stars", data))
    (category,) = val["categories"]
    stars = [one for one in whole["annotations"] if one["category_id"] == category["id"]]
    assert (category["name"], len(val["annotations"]), len(val["images"])) == ("star", len(stars), len(whole["images"]))
    plain = cli("evaluate", run, tmp_path / "stars", "--json")
    assert plain.json["AP"] == metrics["AP"]
    checked = cli("data", "check", data, "--classes", "star", "--quick")
    assert "boxes of other classes than those asked for" in checked.out
    assert "did you mean star" in cli.refuses("evaluate", run, data, "--classes", "start", unchanged=tmp_path)
    assert "no class 'stra'; did you mean star" in cli.refuses(
        "train", data, *cli.tiny, "--classes", "disc, stra", "--out", tmp_path / "no", unchanged=tmp_path
    )
