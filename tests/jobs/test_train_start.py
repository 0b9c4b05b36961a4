"""Trainings that go on from a model file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.weights.model_files import write_model

from lw_retinanet.config import Config, parse_config
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Category
from lw_retinanet.data.sample import CATEGORIES, make_sample
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import RunFolderError
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.heads import PRESETS
from lw_retinanet.jobs.train import run_training
from lw_retinanet.weights.foreign.torchvision import TORCHVISION_V1
from lw_retinanet.weights.model_file import load_model

CPU = torch.device("cpu")
# As a converted file of torchvision's says, but for the size.
SMALL = {"size": 64, "max_size": 96}
TORCHVISION = TORCHVISION_V1.model_copy(update={"input": TORCHVISION_V1.input.model_copy(update=SMALL)})


def settings(start: Path, **train: Any) -> Config:
    values = {"steps": 4, "batch_size": 2, "precision": "fp32", "save_every": 2, **train}
    return parse_config({"model": {"start": str(start)}, "data": {"workers": 0}, "train": values})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=4, num_val=3, size=64)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two of the data set's four classes and one of its own, which finds something in every picture."""
    classes = (Category(id=5, name="star"), Category(id=6, name="fish"), Category(id=7, name="disc"))
    path = tmp_path_factory.mktemp("file") / "fish.safetensors"
    return write_model(path, "retinanet", classes, norm="frozen", conventions=TORCHVISION, spread=0.3)


@pytest.fixture(scope="module")
def run(file: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    before = file.read_bytes()
    out = tmp_path_factory.mktemp("runs") / "run"
    run_training(settings(file), data, out, device=CPU)
    assert file.read_bytes() == before
    return out


def test_the_run_trains_the_files_own_network(run: Path, file: Path) -> None:
    record = load_model(run).record
    assert [(one.id, one.name) for one in record.categories] == list(CATEGORIES)
    assert record.conventions == TORCHVISION
    assert (record.preset, record.backbone, record.norm, record.plan) == ("retinanet", "resnet18", "frozen", PRESETS["retinanet"])
    assert record.notes["start"]["file"] == file.name  # no folder: the file is given to others
    assert record.notes["settings"]["model"] == {"start": file.name}
    before, after = load_model(file).model.state_dict(), load_model(run).model.state_dict()
    # The stem is frozen by default; the rest has moved from where the file left it, and not far in four steps.
    stem, later = "backbone.conv1.weight", "backbone.layer4.1.conv2.weight"
    assert torch.equal(before[stem], after[stem])
    assert 0 < (before[later] - after[later]).abs().max() < 0.01


def test_before_the_first_step_it_answers_as_the_file(run: Path, file: Path, data: Path) -> None:
    # The run's start has the data set's classes. Those that the file knows are found as the file finds them; new ones stay below 0.05.
    held_out = Dataset.open(data).read("val")
    # Room for all that is above the threshold, so that no class takes the place of another.
    rule = TORCHVISION.output.model_copy(update={"candidates_per_level": 10_000, "max_detections": 10_000})
    found = []
    for one in (load_model(run / "start.safetensors"), load_model(file)):
        one.model.conventions = TORCHVISION.model_copy(update={"output": rule})
        table = detect_records(Detector.of_model(one.model, one.record.categories), held_out)
        order = np.lexsort((-table.scores, table.labels, table.image))
        found.append((table.image[order], table.labels[order], table.boxes_xywh[order], table.scores[order]))
    assert len(found[0][0]) > 100
    assert set(found[0][1]) == {0, 2}  # disc and star, by the data set's labels
    for ours, files in zip(*found, strict=True):
        np.testing.assert_allclose(ours, files, atol=1e-4)  # convolutions of another width may sum in another order


def test_an_interrupted_run_ends_in_the_same_model_without_the_file(
    run: Path, file: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lw_retinanet.training.step import accumulate_gradients

    calls: list[None] = []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) in (2, 5):  # before the first checkpoint; then in step 4, after the checkpoint of step 2
            raise KeyboardInterrupt
        return accumulate_gradients(*arguments, **options)

    monkeypatch.setattr("lw_retinanet.training.trainer.accumulate_gradients", killed)
    content = file.read_bytes()
    config, out = settings(file), tmp_path / "run"
    try:
        with pytest.raises(KeyboardInterrupt):
            run_training(config, data, out, device=CPU)
        file.unlink()
        with pytest.raises(KeyboardInterrupt):
            run_training(config, data, out, resume=True, device=CPU)
        run_training(config, data, out, resume=True, device=CPU)
    finally:
        file.write_bytes(content)
    for name in ("model.safetensors", "metrics.json", "start.safetensors"):
        assert (out / name).read_bytes() == (run / name).read_bytes()
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_resuming_from_another_file_or_without_the_start_is_refused(run: Path, file: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"model\.start: .*fish\.safetensors then, .*other\.safetensors now"):
        run_training(settings(tmp_path / "other.safetensors"), data, run, resume=True, device=CPU)
    start = (run / "start.safetensors").rename(tmp_path / "start.safetensors")
    try:
        with pytest.raises(RunFolderError, match=r"has no start\.safetensors"):
            run_training(settings(file), data, run, resume=True, device=CPU)
    finally:
        start.rename(run / "start.safetensors")
