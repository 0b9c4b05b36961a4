import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import save_file

Edit = Callable[[dict[str, Any]], object]


def test_a_run_leaves_everything_in_its_folder(trained: Path) -> None:
    files = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    expected = {
        "config.yaml",
        "log.jsonl",
        "model.safetensors",
        "metrics.json",
        "detections.json",
        "checkpoints/step-00000002.safetensors",
        "pictures/curves.png",
        "pictures/detections.jpg",
        "pictures/precision_recall.png",
    }
    assert expected <= files
    assert [name for name in files if name.startswith("tensorboard/")]
    assert not [name for name in files if ".part" in name]
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2]
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["images"] == 4
    assert -1 <= metrics["AP"] <= 1


def test_the_table_has_cocos_twelve_lines(trained: Path) -> None:
    printed = (trained.parent / "stdout.txt").read_text().splitlines()
    twelve = [line for line in printed if line.startswith(" Average ")]
    assert len(twelve) == 12
    assert twelve[0].startswith(" Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = ")
    assert printed[-1].startswith(f"run folder: {trained}")


def test_the_written_config_makes_the_same_run(cli: Any, trained: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert (config["model"]["preset"], config["train"]["steps"], config["train"]["optimiser"]) == ("lw-v3", 2, "adamw")
    outcome = cli("train", "--config", trained / "config.yaml", "--out", tmp_path / "again")
    assert outcome.code == 0, outcome
    assert (tmp_path / "again" / "config.yaml").read_text() == (trained / "config.yaml").read_text()
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (trained / "model.safetensors").read_bytes()


def test_resuming_a_finished_run_repeats_its_end(cli: Any, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli("train", data, "--model", "retinanet", *cli.tiny, "--set", "train.steps=1", "--out", run).code == 0
    before = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    outcome = cli("train", "--resume", run)
    assert outcome.code == 0, outcome
    assert (run / "model.safetensors").read_bytes() == before
    # The data set may have been moved; what counts is what is in it.
    moved = data.rename(tmp_path / "moved")
    try:
        line = cli.refuses("train", "--resume", run, unchanged=tmp_path)
        assert f"data set {data}, which does not exist here" in line
        assert cli("train", moved, "--resume", run).code == 0
    finally:
        moved.rename(data)


def test_without_out_runs_are_numbered(cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "lw-v3-shapes-1").mkdir(parents=True)
    outcome = cli("train", data, *cli.tiny, "--set", "train.steps=1", "--set", "data.augment=none")
    assert outcome.code == 0, outcome
    assert (tmp_path / "runs" / "lw-v3-shapes-2" / "model.safetensors").is_file()


def test_data_without_val_is_trained_on_and_not_scored(cli: Any, data: Path, tmp_path: Path) -> None:
    outcome = cli("train", data / "train.json", *cli.tiny, "--set", "train.steps=1", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert "Average Precision" not in outcome.out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "lw-v33"], ["model.preset='lw-v33'", "did you mean lw-v3?"]),
        (["--set", "train.epoch=3"], ["unknown setting 'train.epoch'", "did you mean train.epochs?"]),
        (["--set", "trian.epochs=3"], ["unknown setting 'trian'", "did you mean train?"]),
        (["--set", "epochs=3"], ["section.name=value", "did you mean train.epochs?"]),
        (["--set", "train.epochs"], ["section.name=value"]),
        (["--set", "train.epochs=many"], ["train.epochs='many'", "integer"]),
        (["--set", "train.epochs=true"], ["train.epochs=True", "number"]),
        (["--set", "train.batch_size=0"], ["train.batch_size=0", "greater than"]),
        (["--set", "data.image_size=8"], ["data.image_size=8", "32"]),
        (["--set", "train.rate=.nan"], ["train.rate", "finite"]),
        (["--set", "train.schedule=cosin"], ["train.schedule='cosin'", "did you mean cosine?"]),
        (["--set", "model.backbone=resnet51"], ["resnet51", "did you mean resnet50?"]),
        (["--set", "model.backbone_weights=gone.pth"], ["gone.pth does not exist"]),
        (["--config", "gone.yaml"], ["gone.yaml", "No such file"]),
        (["--resume", "gone"], ["gone holds no run", "start a new run"]),
        (["--device", "gpu"], ["unknown device 'gpu'"]),
        (["--device", "cuda:99"], ["cuda:99"]),
    ],
)
def test_bad_settings(
    cli: Any, data: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "--resume" in arguments else ["--out", "run"]
    line = cli.refuses("train", data, *cli.tiny, *arguments, *out, unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_bad_settings_files(cli: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    for text, part in (
        ("train:\n  epochs: [1\n", "my.yaml, line"),
        ("train: {epoch: 3}", "did you mean train.epochs?"),
        ("train: 3", "train"),
        ("- a", "expected sections"),
    ):
        file.write_text(text)
        line = cli.refuses("train", data, "--config", file, "--out", tmp_path / "run", unchanged=tmp_path)
        assert part in line
        assert "my.yaml" in line


def test_weights_of_another_backbone(cli: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, file)
    line = cli.refuses("train", data, *cli.tiny, "--set", f"model.backbone_weights={file}", "--out", tmp_path / "run", unchanged=tmp_path)
    assert "do not fit backbone mobilenet_v2" in line


def empty(table: dict[str, Any]) -> None:
    table["annotations"] = []


def other_classes(table: dict[str, Any]) -> None:
    for category in table["categories"]:
        category["name"] = f"other {category['name']}"


def other_size(table: dict[str, Any]) -> None:
    table["images"][0]["height"] += 1


def specks(table: dict[str, Any]) -> None:
    for annotation in table["annotations"]:
        annotation["bbox"][2:] = [0.5, 0.5]


@pytest.mark.parametrize(
    ("edit", "split", "parts"),
    [
        (empty, "train", ["(train): 8 images but no boxes at all"]),
        (empty, "val", ["(val): 4 images but no boxes at all"]),
        (specks, "train", ["none of the", "covers 1 x 1 pixel"]),
        (other_classes, "val", ["none of the model's 4 classes ('disc' (id 1)", "among the data set's 4 ('other disc' (id 1)"]),
        (other_size, "train", ["train_0001.jpg is 64x64 pixels, its annotation says 64x65", "data check"]),
        (lambda table: table["annotations"][3].pop("bbox"), "train", ["train.json", "bbox"]),
        (lambda table: table["annotations"][3].update(category_id=77), "train", ["train.json", "77"]),
        (lambda table: table["annotations"][3].update(image_id=-3), "train", ["train.json", "-3"]),
    ],
)
def test_bad_data(cli: Any, edited_data: Callable[..., Path], edit: Edit, split: str, parts: list[str], tmp_path: Path) -> None:
    source = edited_data(edit, split)
    line = cli.refuses("train", source, *cli.tiny, "--out", tmp_path / "run", unchanged=tmp_path)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "broken json", "not there"])
def test_damaged_files(cli: Any, edited_data: Callable[..., Path], damage: str, tmp_path: Path) -> None:
    source = edited_data()
    picture = source / "images" / "val_0002.jpg"
    part = "val_0002.jpg"
    if damage == "missing":
        picture.unlink()
    elif damage == "empty":
        picture.write_bytes(b"")
    elif damage == "text":
        picture.write_text("no picture")
    elif damage == "broken json":
        (source / "val.json").write_text((source / "val.json").read_text()[:200])
        part = "val.json"
    else:
        source, part = tmp_path / "gone", "gone does not exist"
    assert part in cli.refuses("train", source, *cli.tiny, "--out", tmp_path / "run", unchanged=tmp_path)


def test_an_image_that_breaks_off_stops_before_anything_is_written(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source, run = edited_data(), tmp_path / "run"
    cut = min((source / "images").glob("train_*"))
    content = cut.read_bytes()
    cut.write_bytes(content[:-400])
    assert cut.name in cli.refuses("train", source, *cli.tiny, "--out", run, unchanged=tmp_path)
    cut.write_bytes(content)
    assert cli("train", source, *cli.tiny, "--out", run).code == 0


def test_a_folder_in_use_or_not_empty_is_left_alone(cli: Any, data: Path, trained: Path, tmp_path: Path) -> None:
    assert "is not empty" in cli.refuses("train", data, *cli.tiny, "--out", trained, unchanged=trained)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    assert "or resume the run" in cli.refuses("train", data, *cli.tiny, "--out", tmp_path / "mine", unchanged=tmp_path)
    line = cli.refuses("train", data, *cli.tiny, "--out", tmp_path / "mine" / "notes.txt" / "run", unchanged=tmp_path)
    assert "notes.txt is a file" in line
    locked = tmp_path / "locked"
    locked.mkdir()
    with FileLock(locked / ".lock"):
        assert "in use by another process" in cli.refuses("train", data, *cli.tiny, "--out", locked, unchanged=tmp_path)
    with FileLock(trained / ".lock"):
        assert "in use by another process" in cli.refuses("train", "--resume", trained, unchanged=trained)


def test_a_resumed_run_is_the_same_run(cli: Any, data: Path, trained: Path, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    line = cli.refuses("train", "--resume", trained, "--set", "train.rate=0.5", "--model", "lw-v2", unchanged=trained)
    assert "model.preset: lw-v3 then, lw-v2 now; train.rate: 0.0002 then, 0.5 now" in line
    other = edited_data(lambda table: table["annotations"].pop())
    assert "started on other data" in cli.refuses("train", other, "--resume", trained, unchanged=trained)
    assert "leave out the new run folder and the settings file" in cli.refuses(
        "train", data, "--resume", trained, "--out", tmp_path / "x", unchanged=tmp_path
    )
    assert "name the data set" in cli.refuses("train", unchanged=tmp_path)


def test_a_refusal_through_the_entry_point_is_one_line(data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lw_retinanet.cli.main", "train", str(data), "--set", "train.epoch=3", "--out", str(tmp_path / "run")]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr == "error: settings: unknown setting 'train.epoch'; did you mean train.epochs?\n"
    assert not list(tmp_path.iterdir())


def test_pictures_of_any_kind_are_trained_on(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source = edited_data()
    for number, mode in enumerate(("L", "RGBA", "P", "CMYK"), start=1):
        path = source / "images" / f"train_{number:04d}.jpg"
        with Image.open(path) as image:
            converted = image.convert(mode)
        converted.save(path, "JPEG" if mode in ("L", "CMYK") else "PNG")
    outcome = cli("train", source, *cli.tiny, "--set", "train.batch_size=4", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome
