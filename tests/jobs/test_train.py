import json
import logging
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lw_retinanet.config import Config, parse_config
from lw_retinanet.data.records import Category, Records
from lw_retinanet.data.sample import make_sample
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError, DataError, DiskFullError, RunFolderError, TrainingError
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.jobs.run_request import checked_request
from lw_retinanet.jobs.train import open_training_data, run_training, with_chosen_precision
from lw_retinanet.training.distributed import World
from lw_retinanet.training.run_folder import RunFolder, read_log
from lw_retinanet.training.run_plan import macs_reduction
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.model_file import load_model

VALUES: dict[str, dict[str, Any]] = {
    "model": {"backbone": "mobilenet_v2", "head_width": 16, "preset": "lw-v3"},
    "data": {"image_size": 64, "workers": 0},
    "train": {"epochs": 2, "batch_size": 2, "precision": "fp32", "evaluate_every": 1},
}
CPU = torch.device("cpu")


def settings(**changes: Any) -> Config:
    """``settings(train_steps=3)``: section and name, joined."""
    values = {section: dict(entries) for section, entries in VALUES.items()}
    for key, value in changes.items():
        section, _, name = key.partition("_")
        values[section][name] = value
    return parse_config(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=4, num_val=3, size=64)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of two steps, scored after each."""
    out = tmp_path_factory.mktemp("runs") / "run"
    outcome = run_training(settings(), data, out, device=CPU)
    assert outcome.folder == out
    assert outcome.metrics is not None
    assert outcome.metrics.images == 3
    return out


def test_scores_on_the_way_are_logged(run: Path) -> None:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4]
    # After the first epoch; the end is scored into metrics.json.
    assert [entry["step"] for entry in entries if "AP" in entry] == [2]


def test_the_model_file_knows_where_it_comes_from(run: Path, data: Path) -> None:
    record = load_model(run).record
    assert record.preset == "lw-v3"
    assert record.notes["data"] == "shapes"
    assert record.notes["settings"]["train"]["optimiser"] == "adamw"
    table = json.loads((data / "train.json").read_text())
    assert [(one.id, one.name) for one in record.categories] == [(one["id"], one["name"]) for one in table["categories"]]
    assert load_model(run).model.conventions.input.size == 64


def test_an_interrupted_run_ends_in_the_same_model(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lw_retinanet.training.step import accumulate_gradients

    calls: list[None] = []

    def killed(*arguments: Any, **options: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return accumulate_gradients(*arguments, **options)

    monkeypatch.setattr("lw_retinanet.training.trainer.accumulate_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        run_training(settings(), data, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    run_training(settings(), data, tmp_path / "run", resume=True, device=CPU)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    assert (tmp_path / "run" / "metrics.json").read_bytes() == (run / "metrics.json").read_bytes()


def test_a_run_of_version_0_1_0_resumes_with_its_schedule(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"

    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("lw_retinanet.training.trainer.accumulate_gradients", killed)
    with pytest.raises(KeyboardInterrupt):
        run_training(settings(train_schedule_version=1, train_warmup_steps=2), data, folder, device=CPU)
    monkeypatch.undo()
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("  schedule_version: 1\n", ""))  # 0.1.0 did not write it
    run_training(**vars(checked_request(None, resume=folder)), device="cpu")
    rates = [entry["rate"] for entry in read_log(folder / "log.jsonl") if "rate" in entry]
    # Both from step 0: warm-up 0.001, 0.5005, 1, 1 times cosine 1, 0.854, 0.5, 0.146.
    assert [rate / 2e-4 for rate in rates] == pytest.approx([0.001, 0.5005 * 0.85355, 0.5, 0.14645], rel=1e-3)


def test_what_auto_is_stands_in_the_run_and_stays(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["bf16", "fp32"])
    monkeypatch.setattr("lw_retinanet.jobs.train.choose_precision", lambda *_: next(answers))
    config = settings(train_precision="auto").resolved()
    chosen = with_chosen_precision(config, World(), None)
    assert chosen.train.precision == "bf16"
    with RunFolder.created(tmp_path / "run", chosen, {}):
        pass
    assert with_chosen_precision(config, World(), tmp_path / "run").train.precision == "bf16"
    assert next(answers) == "fp32"  # the second time nothing was measured
    # Version 0.1.0 wrote `auto` down, and took bf16 where the device has it.
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("precision: bf16", "precision: auto"))
    monkeypatch.setattr("lw_retinanet.jobs.train.multiplies_in_bf16", lambda _: True)
    assert with_chosen_precision(config, World(), tmp_path / "run").train.precision == "bf16"


def test_a_device_without_memory_names_the_batch_to_try(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lw_retinanet.training.step import accumulate_gradients

    def small(model: Any, batches: Any, **options: Any) -> Any:
        if len(batches[0].indices) > 1:
            raise torch.OutOfMemoryError
        return accumulate_gradients(model, batches, **options)

    monkeypatch.setattr("lw_retinanet.training.trainer.accumulate_gradients", small)
    with pytest.raises(TrainingError, match=r"train\.batch_size=2; train\.batch_size=1 and train\.accumulate=2 take half") as caught:
        run_training(settings(train_steps=1), data, tmp_path / "run", device=CPU)
    assert "in a new run in another folder" in str(caught.value)
    run_training(settings(train_steps=1, train_batch_size=1, train_accumulate=2), data, tmp_path / "again", device=CPU)


def test_workers_may_change_when_resuming_and_nothing_else(run: Path, data: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    run_training(settings(data_workers=1), data, copy, resume=True, device=CPU)
    expected = load_model(run).model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_model(copy).model.state_dict().items())
    with pytest.raises(RunFolderError, match=r"train\.seed: 0 then, 1 now\)"):
        run_training(settings(train_seed=1), data, run, resume=True, device=CPU)


def test_other_data_and_other_versions_are_told(run: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(re.sub(r"  torch: .*", "  torch: 1.0", text))
    run_training(settings(), data, copy, resume=True, device=CPU)
    assert f"other versions (torch 1.0 then, {torch.__version__} now)" in caplog.text
    fewer = shutil.copytree(data, tmp_path / "fewer")
    table = json.loads((fewer / "train.json").read_text())
    lost = table["annotations"].pop()
    (fewer / "train.json").write_text(json.dumps(table))
    count = len(table["annotations"])
    with pytest.raises(DataError, match=rf" {count + 1} boxes, .* then, .* {count} boxes, .* now\); start a new run"):
        run_training(settings(), fewer, copy, resume=True, device=CPU)
    lost["bbox"][0] += 1
    table["annotations"].append(lost)
    (fewer / "train.json").write_text(json.dumps(table))
    with pytest.raises(DataError, match=r"\(other names, sizes, boxes or classes\)"):
        run_training(settings(), fewer, copy, resume=True, device=CPU)


def test_room_is_checked_before_the_first_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(DiskFullError, match=r"with the newest 2 of its checkpoints, needs [\d,]{9,} bytes, and 1,000,000 are"):
        run_training(settings(), data, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    monkeypatch.undo()
    run_training(settings(), data, tmp_path / "run", resume=True, device=CPU)  # the remedy: room


def test_a_long_paper_schedule_is_its_macs_reduction() -> None:
    assert macs_reduction(create_model(settings().model, num_classes=2)) > 1.0
    assert macs_reduction(create_model(settings(model_preset="retinanet").model, num_classes=2)) == 1.0


def test_training_data_has_all_sizes_and_its_val(data: Path) -> None:
    records, held_out = open_training_data(data)
    assert (records.num_images, held_out and held_out.num_images) == (4, 3)
    alone, nothing = open_training_data(data / "train.json")
    assert alone.num_images == 4
    assert nothing is None


def test_a_picture_of_another_size_is_found_before_training(data: Path, tmp_path: Path) -> None:
    table = json.loads((data / "train.json").read_text())
    table["images"][2]["width"] = 128
    (tmp_path / "images").symlink_to(data / "images")
    (tmp_path / "train.json").write_text(json.dumps(table))
    with pytest.raises(Exception, match=r"train_0003\.jpg is 64x64 pixels, its annotation says 128x64"):
        run_training(settings(), tmp_path, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()


class Always(Detector):
    """Finds the upper left quarter of every picture, once for each class."""

    def __init__(self, categories: tuple[Category, ...]) -> None:
        self.categories = categories

    def predict_arrays(self, images: Any, **_: Any) -> Any:
        import numpy as np

        from lw_retinanet.detection.result import Result

        count = len(self.categories)
        return [
            Result(
                file=None,
                image=image,
                boxes=np.tile(np.array([0, 0, image.shape[1] / 2, image.shape[0] / 2], np.float32), (count, 1)),
                scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
                labels=np.arange(count),
                categories=self.categories,
            )
            for image in images
        ]


def test_detections_get_the_data_sets_labels_and_unknown_classes_are_dropped(
    draw_records: Callable[..., Records], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Wide and tall pictures go in batches of their own; rows must still be those of the data set.
    records = draw_records(tmp_path, [((20, 30), [(1, 1, 5, 5, 0)]), ((40, 20), []), ((24, 36), [(1, 1, 5, 5, 2)])])
    model_classes = (Category(id=1, name="blue"), Category(id=2, name="violet"), Category(id=3, name="red"))
    with caplog.at_level(logging.WARNING):
        table = detect_records(Always(model_classes), records, batch_size=2)
    assert "their detections are left out" in caplog.text
    assert "'green' (id 10)): their AP is 0" in caplog.text
    found = sorted(zip(table.image.tolist(), table.labels.tolist(), table.boxes_xywh.tolist(), strict=True))
    sizes = [[0.0, 0.0, 15.0, 10.0], [0.0, 0.0, 10.0, 20.0], [0.0, 0.0, 18.0, 12.0]]
    assert found == [(image, label, sizes[image]) for image in range(3) for label in (0, 2)]


def test_detecting_refuses_foreign_classes_and_other_sizes(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    records = draw_records(tmp_path, [((20, 30), [(1, 1, 5, 5, 0)])])
    with pytest.raises(DataError, match="none of the model's 1 classes"):
        detect_records(Always((Category(id=0, name="crimson"),)), records)
    with pytest.raises(DataError, match="is 30x20 pixels, its annotation says 20x30"):
        detect_records(Always(records.categories), replace(records, sizes_hw=records.sizes_hw[:, ::-1].copy()))
    unknown = replace(records, sizes_hw=records.sizes_hw * 0)
    assert len(detect_records(Always(records.categories), unknown)) == 3


def test_batch_norm_over_a_single_value_is_refused_and_the_remedy_trains(data: Path, tmp_path: Path) -> None:
    small = {"data_image_size": 32, "train_epochs": 1, "train_evaluate_every": 0}
    with pytest.raises(ConfigError, match=r"images of 24 pixels leaves batch norm a single value .*set train.batch_size=2"):
        run_training(settings(**small, train_batch_size=1), data, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run").exists()
    assert run_training(settings(**small), data, tmp_path / "run", device=CPU).metrics is not None
