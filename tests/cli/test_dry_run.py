import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file


def test_the_plan_is_what_the_run_did(cli: Any, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = cli("train", data, *cli.tiny, "--dry-run", "--json").json
    log = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert plan["steps"] == sum("loss" in entry for entry in log) == 2
    assert plan["data"]["train"]["images"] == 8
    assert plan["data"]["val"]["images"] == json.loads((trained / "metrics.json").read_text())["images"]
    # 8 images, 2 a step.
    assert (plan["images_per_step"], plan["steps_per_epoch"], plan["epochs"]) == (2, 4, 0.5)
    assert plan["size_hw"] == [64, 64]
    # The tensors and some kilobytes of their names.
    file = next((trained / "checkpoints").glob("step-*.safetensors"))
    assert plan["checkpoint_bytes"] == pytest.approx(file.stat().st_size, rel=0.05)
    assert plan["checkpoint_bytes"] < file.stat().st_size
    assert plan["memory"]["total"] == sum(value for part, value in plan["memory"].items() if part != "total")
    assert (plan["images_per_second"], plan["hours"]) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_four_processes(cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "train.recipe=paper", "--set", "train.steps=null", "--set", "train.schedule=paper", "--set", "train.base_steps=90"]
    outcome = cli("train", data, *cli.tiny, *settings, "--model", "retinanet", "--dry-run", "--processes", 4)
    assert outcome.code == 0, outcome
    # 4 x 2 images are half of 16: half the rate, twice the steps, falling at 2/3 and 8/9.
    for part in (
        "180 steps",
        "8 images: 4 processes x 2 images",
        "sgd, 0.005 after 45 steps of warm-up",
        "a tenth from step 120, a hundredth from step 160",
    ):
        assert part in outcome.out
    assert "nothing was written" in outcome.out
    # As torchrun would have it, from its first process only.
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert cli("train", data, *cli.tiny, *settings, "--model", "retinanet", "--dry-run").out == outcome.out
    monkeypatch.setenv("RANK", "1")
    assert cli("train", data, *cli.tiny, *settings, "--model", "retinanet", "--dry-run").out == ""
    assert list(tmp_path.iterdir()) == []


def test_measured_steps_give_the_time(cli: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "train.steps=1000", "--device", "cpu"]
    plan = cli("train", data, *cli.tiny, *settings, "--dry-run", "--measure", "--json").json
    assert 0.01 < plan["images_per_second"] < 10_000
    assert plan["hours"] == pytest.approx(2000 / plan["images_per_second"] / 3600)
    assert list(tmp_path.iterdir()) == []


def test_pretrained_weights_are_not_fetched(cli: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("a dry run must not fetch weights")

    monkeypatch.setattr("lw_retinanet.weights.backbone_file._torchvision_weights", no_network)
    outcome = cli("train", data, *cli.tiny, "--set", "model.backbone_weights=imagenet", "--dry-run", "--json")
    assert outcome.code == 0, outcome
    # Pretrained weights freeze the stem, whose gradients and optimiser state then go.
    free = cli("train", data, *cli.tiny, "--set", "train.freeze=0", "--dry-run", "--json").json
    assert outcome.json["memory"]["optimiser"] < free["memory"]["optimiser"]


def test_a_run_that_goes_on_from_a_file(cli: Any, data: Path, trained: Path) -> None:
    plan = cli("train", data, "--model", trained, "--set", "data.workers=0", "--dry-run", "--json").json
    assert (plan["model"], plan["size_hw"]) == ("lw-v3", [64, 64])


def test_the_shorter_side_rules(cli: Any, data: Path) -> None:
    settings = ["--set", "data.resize=short_side", "--set", "data.image_size=96", "--set", "data.max_size=100"]
    plan = cli("train", data, *cli.tiny, *settings, "--dry-run", "--json").json
    # Squares become 96 x 96; every fifth image is 48 x 64: 96 x 128 would pass 100, so 75 x 100, padded to 96 x 128.
    assert plan["size_hw"] == [96, 96] or plan["largest_hw"] == [96, 128]
    assert plan["largest_hw"] == [96, 128]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--processes", "4"], ["--processes goes with --dry-run only"]),
        (["--json", "--measure"], ["--measure, --json goes with --dry-run only"]),
        (["--dry-run", "--resume", "gone"], ["--config RUN/config.yaml"]),
        (["--dry-run", "--processes", "0"], ["--processes", "greater than or equal to 1"]),
        (["--dry-run", "--model", "lw-v33"], ["lw-v33"]),
        (["--dry-run", "--set", "train.base_steps=3"], ["steps and base_steps", "leave one out"]),
        (["--dry-run", "--set", "model.backbone_weights=gone.pth"], ["gone.pth does not exist"]),
        (["--dry-run", "--set", "train.teacher=gone"], ["gone"]),
        (["--dry-run", "--device", "cuda:99"], ["cuda:99"]),
    ],
)
def test_bad_settings(
    cli: Any, data: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refuses("train", data, *cli.tiny, *arguments, unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_weights_of_another_backbone(cli: Any, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, file)
    line = cli.refuses("train", data, *cli.tiny, "--set", f"model.backbone_weights={file}", "--dry-run", unchanged=tmp_path)
    assert "do not fit backbone mobilenet_v2" in line


def test_bad_data_is_refused_as_by_a_real_run(cli: Any, edited_data: Callable[..., Path], tmp_path: Path) -> None:
    source = edited_data(lambda table: table.update(annotations=[]))
    line = cli.refuses("train", source, *cli.tiny, "--dry-run", unchanged=tmp_path)
    assert line == cli.refuses("train", source, *cli.tiny, "--out", tmp_path / "run", unchanged=tmp_path)
    assert "no boxes at all" in line
    (source / "images" / "train_0003.jpg").unlink()
    (source / "train.json").write_text((source / "val.json").read_text())
    (source / "images" / "val_0002.jpg").write_text("no picture")
    assert "val_0002.jpg" in cli.refuses("train", source, *cli.tiny, "--dry-run", "--json", unchanged=tmp_path)
    assert "gone does not exist" in cli.refuses("train", tmp_path / "gone", *cli.tiny, "--dry-run", unchanged=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        # One 32-pixel image is one cell of C5, and batch norm has a single value a channel.
        (["--set", "train.batch_size=1", "--set", "data.image_size=32", "--set", "data.augment=none"], "train.batch_size=2"),
        (["--set", "data.max_pixels=1000"], "raise max_pixels"),
        (["--out", "{trained}"], "choose another output folder"),
    ],
)
def test_what_a_run_refuses_a_dry_run_refuses_in_the_same_words(
    cli: Any, data: Path, trained: Path, arguments: list[str], part: str, tmp_path: Path
) -> None:
    given = [argument.format(trained=trained) for argument in arguments]
    out = [] if "--out" in given else ["--out", tmp_path / "run"]
    line = cli.refuses("train", data, *cli.tiny, *given, "--dry-run", unchanged=tmp_path)
    assert part in line
    assert line == cli.refuses("train", data, *cli.tiny, *given, *out, unchanged=tmp_path)


@pytest.mark.parametrize(
    ("spoil", "part"),
    [
        (lambda source: (source / "images" / "val_0001.jpg").unlink(), "val_0001.jpg is missing"),
        (lambda source: cut(source / "images" / "train_0001.jpg"), "train_0001.jpg"),
        (lambda source: rename_classes(source / "val.json"), "class"),
    ],
)
def test_files_and_classes_are_looked_at_as_by_a_run(
    cli: Any, edited_data: Callable[..., Path], spoil: Callable[[Path], None], part: str, tmp_path: Path
) -> None:
    source = edited_data(lambda _: None)
    spoil(source)
    line = cli.refuses("train", source, *cli.tiny, "--dry-run", unchanged=tmp_path)
    assert part in line
    assert line == cli.refuses("train", source, *cli.tiny, "--out", tmp_path / "run", unchanged=tmp_path)


def cut(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:-300])


def rename_classes(annotations: Path) -> None:
    table = json.loads(annotations.read_text())
    for category in table["categories"]:
        category["name"] = f"other {category['id']}"
    annotations.write_text(json.dumps(table))


def test_a_runs_own_settings_can_be_planned_again(cli: Any, trained: Path, tmp_path: Path) -> None:
    values = yaml.safe_load((trained / "config.yaml").read_text())
    values["train"]["steps"] = 5
    file = tmp_path / "longer.yaml"
    file.write_text(yaml.safe_dump(values))
    assert cli("train", "--config", file, "--dry-run", "--json").json["steps"] == 5
