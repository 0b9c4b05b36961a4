"""The regime ``finetune``: from a trained detector, every row equally long; interrupted, repeated, over folds, reported without weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lw_retinanet.data.sample import make_sample
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ConfigError, DataError, InputError, RunFolderError
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.tradeoff.experiment import parse_experiment
from lw_retinanet.tradeoff.runner import Runner, SeedRun
from lw_retinanet.tradeoff.summary import facts, summarise
from lw_retinanet.training.trainer import Trainer
from lw_retinanet.weights.model_file import LoadedModel, load_model, save_model

ROWS = ["retinanet-finetune@64", "lw-v3-finetune@64"]


def runner_of(values: dict[str, Any], out: Path, **options: Any) -> Runner:
    return Runner(parse_experiment(values, where="file"), out, device=torch.device("cpu"), **options)


def results(runner: Runner) -> dict[str, Any]:
    return {cell.name: runner.result(SeedRun(cell=cell, seed=0)) for cell in runner.experiment.cells()}


@pytest.fixture(scope="module")
def tuned(shapes: Path, trunk_file: Path) -> dict[str, Any]:
    """An experiment of the regime ``finetune``: the full head and a light one, three steps each. Not to be changed."""
    return {
        "data": str(shapes),
        "trunk": str(trunk_file),
        "seeds": [0],
        "settings": {"data": {"workers": 0}, "train": {"steps": 3, "save_every": 1, "batch_size": 2, "rate": 1e-3, "precision": "fp32"}},
        "fit_steps": 2,
        "draws": 100,
        "lines": [
            {"name": "scaling", "regime": "finetune", "variants": ["retinanet"], "scales": [64]},
            {"name": "light", "regime": "finetune", "variants": ["lw-v3"], "scales": [64]},
        ],
    }


@pytest.fixture(scope="module")
def finished(tuned: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """The experiment, which was interrupted in the second step of the light row and went on. Not to be changed."""
    out = tmp_path_factory.mktemp("finished") / "out"
    step = Trainer.step
    done: list[int] = []

    def interrupted(self: Trainer, *arguments: Any, **named: Any) -> Any:
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(1)
        return step(self, *arguments, **named)

    runner = runner_of(tuned, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            runner.run(runner.experiment.cells())
    work = out / "work" / "lw-v3-finetune@64-seed-0"
    assert list((work / "checkpoints").iterdir())
    start = work.with_name("lw-v3-finetune@64-seed-0-start.safetensors")
    made = start.stat().st_mtime_ns
    runner = runner_of(tuned, out)
    runner.run(runner.experiment.cells())
    assert start.stat().st_mtime_ns == made
    assert not (work / "checkpoints").exists()
    return runner


@pytest.fixture
def altered_trunk(trunk_file: Path, tmp_path: Path) -> Callable[..., str]:
    """Write the trunk with ``edit`` applied to the loaded model; returns the path."""

    def write(name: str, edit: Callable[[LoadedModel], LoadedModel]) -> str:
        edited = edit(load_model(trunk_file))
        save_model(tmp_path / name, edited.model, edited.record)
        return str(tmp_path / name)

    return write


def test_an_interrupted_row_that_went_on_gives_the_ap_of_its_command_to_the_last_digit(
    tuned: dict[str, Any], finished: Runner, tmp_path: Path
) -> None:
    row = ROWS[1]
    again = runner_of(tuned, tmp_path)
    again.run(again.experiment.chosen([row]))
    once, other = results(finished)[row], results(again)[row]
    for name in ("AP", "AP50", "AR100", "steps", "cost"):
        assert once[name] == other[name]
    assert once["AP"] > 0
    kept = [(out / "runs" / row / "seed-0" / "detections.npz").read_bytes() for out in (finished.out, tmp_path)]
    assert kept[0] == kept[1]


def test_rows_start_from_the_trunk_and_light_heads_are_taught(tuned: dict[str, Any], finished: Runner) -> None:
    trunk = load_model(Path(tuned["trunk"])).model
    for row in ROWS:
        work = finished.out / "work" / f"{row}-seed-0"
        (log, *_) = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
        assert ("distillation" in log) is (row == ROWS[1])
        began, ended = (load_model(work / f"{name}.safetensors").model for name in ("start", "model"))
        for name, value in trunk.backbone.state_dict().items():
            torch.testing.assert_close(began.backbone.state_dict()[name], value, rtol=0, atol=0)
        changed = {name for name, value in began.state_dict().items() if not torch.equal(value, ended.state_dict()[name])}
        assert {name.partition(".")[0] for name in changed} == {"backbone", "fpn", "head"}
        assert bool(ended.head.plan.cls) is (row == ROWS[1])
    full = load_model(finished.out / "work" / f"{ROWS[0]}-seed-0" / "start.safetensors").model.head.state_dict()
    assert all(torch.equal(value, full[name]) for name, value in trunk.head.state_dict().items())


def test_who_is_taught_can_be_said(tuned: dict[str, Any]) -> None:
    light = ["lw-v3", {"preset": "lw-v3", "teacher": False}, {"preset": "retinanet", "teacher": True}]
    lines = [tuned["lines"][0], {**tuned["lines"][1], "variants": light}]
    cells = parse_experiment({**tuned, "lines": lines}, where="file").cells()
    assert [(cell.name, cell.is_taught) for cell in cells] == [
        ("retinanet-finetune@64", False),
        ("lw-v3-finetune@64", True),
        ("lw-v3-without-teacher-finetune@64", False),
        ("retinanet-with-teacher-finetune@64", True),
    ]


def test_several_trunks_count_as_seeds(tuned: dict[str, Any], altered_trunk: Any, tmp_path: Path) -> None:
    def louder(loaded: LoadedModel) -> LoadedModel:
        with torch.no_grad():
            loaded.model.head.cls.get_parameter("shared_predict.bias").add_(0.25)
        return loaded

    trunks = [tuned["trunk"], altered_trunk("other.safetensors", louder)]
    as_it_is = {**tuned["lines"][0], "regime": "lighten"}
    runner = runner_of({**tuned, "seeds": [0, 1], "trunk": trunks, "lines": [as_it_is]}, tmp_path / "out")
    runner.run(runner.experiment.cells())
    for seed, path in enumerate(trunks):
        found = runner.detections(SeedRun(cell=runner.experiment.baseline, seed=seed))
        loaded = load_model(Path(path))
        expected = detect_records(Detector.of_model(loaded.model, loaded.record.categories), runner.held_out)
        np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-5)


def test_folds_score_every_image_once_with_a_trunk_that_has_not_seen_it(tuned: dict[str, Any], tmp_path: Path) -> None:
    recipe = {
        "model": {"backbone": "mobilenet_v2", "head_width": 16},
        "data": {"image_size": 64, "workers": 0},
        "train": {"steps": 1, "batch_size": 2, "precision": "fp32"},
    }
    as_it_is = {**tuned["lines"][0], "regime": "lighten"}
    folded = {**tuned, "trunk": None, "trunk_recipe": recipe, "folds": 2, "lines": [as_it_is]}
    runner = runner_of(folded, tmp_path / "out")
    assert (runner.held_out.num_images, len(runner.data.folds)) == (26, 2)
    assert sorted(np.concatenate([fold.images for fold in runner.data.folds])) == list(range(26))
    runner.run(runner.experiment.cells())
    run = SeedRun(cell=runner.experiment.baseline, seed=0)
    table, result = runner.detections(run), runner.result(run)
    assert result is not None
    assert (result["AP"], result["images"]) == (evaluate(runner.held_out, table).AP, 26)
    for fold in runner.data.folds:
        assert not set(fold.records.file_names) & set(fold.held_out.file_names)
        work = tmp_path / "out" / "work" / f"trunk-fold-{fold.number}"
        noted = json.loads((work / "data.json").read_text())
        assert (noted["train"]["images"], noted["train"]["boxes"]) == (fold.records.num_images, fold.records.num_boxes)
        loaded = load_model(work / "model.safetensors")
        expected = detect_records(Detector.of_model(loaded.model, loaded.record.categories), fold.held_out)
        found = table.scores[np.isin(table.image, fold.images)]
        np.testing.assert_allclose(np.sort(found), np.sort(expected.scores), atol=1e-5)
    trained = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "work").glob("trunk-*/model.safetensors")}
    light = {**tuned["lines"][1], "regime": "lighten"}
    more = runner_of({**folded, "lines": [as_it_is, light], "fit_steps": 2}, tmp_path / "out")
    more.run(more.experiment.cells())
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert [row.name for row in summarise(more, command="again {}".format).rows] == ["retinanet @ 64", "lw-v3 @ 64"]
    assert "2 folds of 13, 13 images" in facts(more).more["Folds"]
    with pytest.raises(RunFolderError, match="another folds"):
        runner_of({**folded, "fold_seed": 1}, tmp_path / "out")


def test_a_report_needs_neither_weights_nor_trunks(tuned: dict[str, Any], finished: Runner, tmp_path: Path) -> None:
    for name in ("experiment.yaml", "runs"):
        source = finished.out / name
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / name)
    gone = {**tuned, "trunk": str(tmp_path / "gone.safetensors")}
    after = summarise(runner_of(gone, tmp_path, report_only=True), command="again {}".format)
    assert after.rows == summarise(finished, command="again {}".format).rows
    assert after.rows[1].against_baseline is not None


def test_trunks_that_do_not_fit_are_refused_in_one_line(tuned: dict[str, Any], finished: Runner, altered_trunk: Any) -> None:
    before = results(finished)

    def noted(loaded: LoadedModel) -> LoadedModel:
        return LoadedModel(model=loaded.model, record=loaded.record.model_copy(update={"notes": {"other": 1}}))

    def renamed(loaded: LoadedModel) -> LoadedModel:
        classes = tuple(c.model_copy(update={"name": f"other {c.name}"}) for c in loaded.record.classes)
        return LoadedModel(model=loaded.model, record=loaded.record.model_copy(update={"classes": classes}))

    def resized(loaded: LoadedModel) -> LoadedModel:
        rule = loaded.model.conventions.input.model_copy(update={"size": 96})
        conventions = loaded.model.conventions.model_copy(update={"input": rule})
        return LoadedModel(model=loaded.model, record=loaded.record.model_copy(update={"conventions": conventions}))

    two = [tuned["trunk"], altered_trunk("resized.safetensors", resized)]
    refused: dict[str, dict[str, Any]] = {
        "has other classes than": {"trunk": altered_trunk("renamed.safetensors", renamed)},
        "64 px.* and .*96 px.*are of different sizes; train all of them with one recipe": {"trunk": two, "seeds": [0, 1]},
        "holds an experiment with another trunk": {"trunk": altered_trunk("noted.safetensors", noted)},
    }
    for said, changes in refused.items():
        with pytest.raises(InputError, match=said) as error:
            runner_of({**tuned, **changes}, finished.out)
        assert "\n" not in str(error.value)
    assert results(finished) == before


def test_too_few_images_for_an_interval_are_refused_with_folds_too(tuned: dict[str, Any], tmp_path: Path) -> None:
    few = make_sample(tmp_path / "few", num_train=8, num_val=4, size=64)
    with pytest.raises(DataError, match="12 images in all folds are too few for an interval; use 20 or more"):
        runner_of({**tuned, "data": str(few), "trunk": None, "trunk_recipe": {}, "folds": 3}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trunk_recipe": {}}, "two ways to get trunks"),
        ({"trunk": ["a", "b"]}, "names 2 models for 1 seeds; name one, or one for each seed"),
        ({"folds": 3}, "3 folds need as many trunks"),
        ({"trunk": None, "trunk_recipe": {"train": {"stepz": 1}}}, r"trunk_recipe.*train\.stepz.*did you mean train\.steps"),
        ({"trunk": None, "trunk_recipe": {"model": {"preset": "lw-v3"}}}, r"trunk_recipe\.model\.preset is decided by the experiment"),
        ({"fold_group": "a"}, "fold_group needs folds"),
        ({"folds": 1}, "folds=1"),
        (
            {"lines": [{"name": "x", "regime": "finetune", "variants": [{"preset": "lw-v3", "init": "paper"}], "scales": [64]}]},
            "leave init",
        ),
    ],
)
def test_experiments_that_contradict_themselves_are_refused(tuned: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_experiment({**tuned, **changes}, where="file")
