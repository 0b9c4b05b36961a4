"""``train --model FILE``."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

SHORT = ("--set", "train.steps=1", "--set", "train.batch_size=2", "--set", "data.workers=0", "--set", "train.precision=fp32")


def test_training_goes_on_from_a_run(cli: Any, data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lw_retinanet.weights.model_file import load_model

    monkeypatch.chdir(tmp_path)
    outcome = cli("train", data, "--model", trained, *SHORT)
    assert outcome.code == 0, outcome
    run = tmp_path / "runs" / f"{trained.name}-shapes-1"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"] == {"start": str(trained)}
    before, after = load_model(trained), load_model(run)
    assert after.record.conventions.input.size == 64
    assert (after.record.backbone, after.record.width, after.record.norm) == ("mobilenet_v2", 16, "batch")
    # Two steps, the first of them warm-up, move weights by no more than the rate (2e-4) each and some weight decay.
    for name, parameter in before.model.named_parameters():
        torch.testing.assert_close(after.model.get_parameter(name), parameter, atol=5e-4, rtol=0)
    assert cli("train", "--resume", run).code == 0
    # The file itself does as well as its folder, and gives its folder's name to the run.
    assert cli("train", data / "train.json", "--model", trained / "model.safetensors", *SHORT, "--set", "data.image_size=96").code == 0
    assert load_model(tmp_path / "runs" / f"{trained.name}-train-1").record.conventions.input.size == 96


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model", "gone.safetensors"], ["gone.safetensors does not exist"]),
        (["--model", "runs/gone"], ["runs/gone does not exist"]),
        (["--model", "text.safetensors"], ["cannot read model file text.safetensors"]),
        (["--model", "text.pth"], ["text.pth is not a model file", "lw-retinanet convert text.pth"]),
        (["--model", "empty"], ["empty holds no model.safetensors"]),
        (["--model", "lw-v33"], ["model.preset='lw-v33'", "did you mean lw-v3?"]),
        (["--set", "model.strat=x"], ["unknown setting 'model.strat'", "did you mean model.start?"]),
        (["--model", "text.safetensors", "--set", "model.backbone=resnet18"], ["decides the architecture; leave out backbone"]),
    ],
)
def test_what_cannot_be_gone_on_from(
    cli: Any, data: Path, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("text.safetensors", "text.pth"):
        (tmp_path / name).write_text("no model")
    (tmp_path / "empty").mkdir()
    line = cli.refuses("train", data, *arguments, *SHORT, "--out", "run", unchanged=tmp_path)
    assert all(part in line for part in parts), line


def test_a_run_does_not_change_its_start(cli: Any, trained: Path) -> None:
    line = cli.refuses("train", "--resume", trained, "--model", trained / "model.safetensors", unchanged=trained)
    assert "did not start from" in line
