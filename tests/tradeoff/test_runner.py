"""Every run once, whatever happens in between, and never over a finished one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import DataError, InputError, RunFolderError
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.paired import compare
from lw_retinanet.files import sha256
from lw_retinanet.tradeoff.experiment import parse_experiment
from lw_retinanet.tradeoff.head_training import train_head
from lw_retinanet.tradeoff.runner import Runner, SeedRun
from lw_retinanet.tradeoff.summary import has_latency, measure_rows, summarise


def runner_of(values: dict[str, Any], out: Path) -> Runner:
    return Runner(parse_experiment(values, where="file"), out, device=torch.device("cpu"))


def finished(out: Path) -> dict[str, str]:
    return {str(file.relative_to(out)): sha256(file) for file in sorted((out / "runs").rglob("*.*")) if file.name != ".lock"}


def test_an_interrupted_experiment_goes_on_and_leaves_finished_runs_alone(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(named["what"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_head(*arguments, **named)

    runner = runner_of(values, tmp_path)
    monkeypatch.setattr("lw_retinanet.tradeoff.regimes.train_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runner.run(runner.experiment.cells())
    # The first seed of every row comes before the second of any.
    assert calls == [f"{name}, seed 0" for name in ("retinanet@96", "retinanet@64", "lw-v3@96")]
    before = finished(tmp_path)
    assert len(before) == 6  # log, detections and result of each
    monkeypatch.undo()
    again = runner_of(values, tmp_path)
    again.run(again.experiment.cells())
    after = finished(tmp_path)
    assert len(after) == 24
    assert {name: after[name] for name in before} == before
    assert not (tmp_path / "features").exists()
    again.run(again.experiment.cells())
    assert finished(tmp_path) == after


def test_an_experiment_of_version_0_1_0_goes_on_as_it_began(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values["settings"]["train"].pop("precision", None)
    runner = runner_of(values, tmp_path)
    assert runner.config(runner.experiment.baseline, 0).train.schedule_version == 2
    runner.run([])  # writes experiment.yaml
    file = tmp_path / "experiment.yaml"
    file.write_text(file.read_text().partition("decided:")[0])  # 0.1.0 did not write this
    monkeypatch.setattr("lw_retinanet.tradeoff.runner.multiplies_in_bf16", lambda _: True)
    runner = runner_of(values, tmp_path)
    assert runner.config(runner.experiment.baseline, 0).train.schedule_version == 1
    assert runner.use_bf16


def test_one_experiment_has_one_precision(values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values["settings"]["train"].pop("precision", None)
    monkeypatch.setattr("lw_retinanet.tradeoff.runner.choose_precision", lambda *_: "bf16")
    runner_of(values, tmp_path).run([])
    monkeypatch.setattr("lw_retinanet.tradeoff.runner.choose_precision", lambda *_: "fp32")
    runner = runner_of(values, tmp_path)  # perhaps on another machine
    assert runner.config(runner.experiment.baseline, 0).train.precision == "bf16"


def test_more_rows_and_seeds_are_the_same_experiment_but_other_settings_are_not(values: dict[str, Any], tmp_path: Path) -> None:
    runner = runner_of(values, tmp_path)
    runner.run(runner.experiment.chosen(["lw-v3@96"]))
    before = finished(tmp_path)
    values["seeds"] = [0, 1, 2]
    values["lines"][1]["variants"].append("lw-v1")
    more = runner_of(values, tmp_path)
    more.run(more.experiment.chosen(["lw-v3@96"]))
    after = finished(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 3
    values["settings"]["train"]["steps"] = 4
    with pytest.raises(RunFolderError, match="holds an experiment with another settings; choose another output folder"):
        runner_of(values, tmp_path)
    assert finished(tmp_path) == after


def test_other_data_and_foreign_folders_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    from lw_retinanet.data.sample import make_sample

    runner = runner_of(values, tmp_path / "out")
    runner.run(runner.experiment.chosen(["lw-v3@96"]))
    other = make_sample(tmp_path / "other", num_train=6, num_val=20, size=64, seed=9)
    with pytest.raises(RunFolderError, match="another data and another validation"):
        runner_of({**values, "data": str(other)}, tmp_path / "out")
    with pytest.raises(RunFolderError, match="is not empty and holds no experiment"):
        runner_of(values, other)


def test_a_run_that_another_process_is_at_is_left_to_it(values: dict[str, Any], tmp_path: Path) -> None:
    from filelock import FileLock

    runner = runner_of(values, tmp_path)
    taken = SeedRun(cell=runner.experiment.baseline, seed=0)
    taken.folder(tmp_path).mkdir(parents=True)
    with FileLock(taken.folder(tmp_path) / ".lock"):
        runner.run([runner.experiment.baseline])
    assert runner.result(taken) is None
    assert runner.result(SeedRun(cell=runner.experiment.baseline, seed=1)) is not None


def test_trunks_that_cannot_serve_are_refused(values: dict[str, Any], tmp_path: Path, draw_records: Any) -> None:
    from lw_retinanet.heads import plan_of
    from lw_retinanet.lightening.surgery import lighten_copy
    from lw_retinanet.weights.model_file import load_model, save_model

    loaded = load_model(Path(values["trunk"]))
    light, _ = lighten_copy(loaded.model, plan_of("lw-v1"))
    save_model(tmp_path / "light.safetensors", light, loaded.record.model_copy(update={"plan": light.head.plan}))
    with pytest.raises(InputError, match="has a light head already"):
        runner_of({**values, "trunk": str(tmp_path / "light.safetensors")}, tmp_path / "out")
    classes = tuple(c.model_copy(update={"name": f"other {c.name}"}) for c in loaded.record.classes)
    save_model(tmp_path / "other.safetensors", loaded.model, loaded.record.model_copy(update={"classes": classes}))
    with pytest.raises(InputError, match="has other classes"):
        runner_of({**values, "trunk": str(tmp_path / "other.safetensors")}, tmp_path / "out")
    with pytest.raises(DataError, match="no val split"):
        runner_of({**values, "data": str(Path(values["data"]) / "train.json")}, tmp_path / "out")


def test_lightening_a_trunk_and_training_all_of_a_network_are_regimes_too(values: dict[str, Any], tmp_path: Path) -> None:
    values["seeds"], values["fit_steps"] = [0], 3
    values["settings"] |= {"model": {"backbone": "mobilenet_v2", "head_width": 16}, "data": {"workers": 0}}
    values["lines"] = [
        {"name": "scaling", "regime": "lighten", "variants": ["retinanet"], "scales": [64]},
        {"name": "lightened", "regime": "lighten", "variants": ["lw-v3"], "scales": [64]},
        {"name": "trained", "regime": "full", "variants": ["lw-v3"], "scales": [64]},
    ]
    runner = runner_of(values, tmp_path)
    runner.run(runner.experiment.cells())
    trunk = runner.trunk(0, runner.data.folds[0])
    assert trunk is not None
    found = runner.detections(SeedRun(cell=runner.experiment.baseline, seed=0))
    expected = detect_records(Detector.of_model(trunk.model, trunk.loaded.record.categories), runner.held_out)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-5)
    steps = {cell.name: (runner.result(SeedRun(cell=cell, seed=0)) or {})["steps"] for cell in runner.experiment.cells()}
    assert steps == {"retinanet-lighten@64": 0, "lw-v3-lighten@64": 3, "lw-v3-full@64": 3}


def test_rows_say_what_their_runs_found_and_cost(values: dict[str, Any], tmp_path: Path) -> None:
    from lw_retinanet.counting.macs import count_blocks

    values["pairs"] = [["retinanet@64", "lw-v3@96"]]
    runner = runner_of(values, tmp_path)
    with pytest.raises(InputError, match="holds no finished run"):
        summarise(runner, command="again {}".format)
    runner.run(runner.experiment.cells())
    assert not has_latency(runner, runner.experiment.cells())
    measure_rows(runner, runner.experiment.chosen(["retinanet@64"]))
    summary = summarise(runner, command="again {}".format)
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["retinanet @ 96", "retinanet @ 64", "lw-v3 @ 96", "bbox-v1, init paper @ 96"]
    row, cell = rows["lw-v3 @ 96"], runner.experiment.chosen(["lw-v3@96"])[0]
    assert row.macs == sum(cost.macs for cost in count_blocks(runner.model(cell), (96, 96)).values())
    assert row.size_hw == (96, 96)
    results = [json.loads((tmp_path / "runs" / "lw-v3@96" / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert row.aps == tuple(result["AP"] for result in results)
    pairs = [[runner.detections(SeedRun(cell=c, seed=seed)) for seed in (0, 1)] for c in (runner.experiment.baseline, cell)]
    assert row.against_baseline == compare(runner.held_out, *pairs, draws=100).ap
    assert rows["retinanet @ 96"].against_baseline is None
    (pair,) = summary.pairs
    small = runner.experiment.chosen(["retinanet@64"])[0]
    other = [runner.detections(SeedRun(cell=small, seed=seed)) for seed in (0, 1)]
    assert pair.interval == compare(runner.held_out, other, pairs[1], draws=100).ap
    assert rows["bbox-v1, init paper @ 96"].role == "other"
    assert rows["retinanet @ 64"].latency_ms is not None
    assert row.latency_ms is None
    assert row.command == "again lw-v3@96"


def test_a_head_may_have_one_anchor_of_its_own(values: dict[str, Any], tmp_path: Path) -> None:
    values["seeds"] = [0]
    values["lines"][1]["variants"] = [{"preset": "lw-v3", "anchors": "one"}]
    runner = runner_of(values, tmp_path)
    (cell,) = runner.experiment.chosen(["lw-v3-one-anchor@96"])
    assert runner.experiment.config(cell, 0).train.assignment == "atss"
    model = runner.model(cell)
    assert (model.head.num_anchors, model.conventions.anchors.num_anchors) == (1, 1)
    runner.run([cell])
    assert (runner.result(SeedRun(cell=cell, seed=0)) or {})["steps"] == 3
