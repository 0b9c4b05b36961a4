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
from lw_retinanet.tradeoff import runner
from lw_retinanet.tradeoff.experiment import parse_experiment
from lw_retinanet.tradeoff.head_training import train_head
from lw_retinanet.tradeoff.runner import Bench, SeedRun
from lw_retinanet.tradeoff.summary import has_latency, measure_rows, summarise


def bench_of(values: dict[str, Any], out: Path) -> Bench:
    return Bench(parse_experiment(values, where="file"), out, device=torch.device("cpu"))


def finished(out: Path) -> dict[str, str]:
    return {str(file.relative_to(out)): sha256(file) for file in sorted((out / "runs").rglob("*.json"))}


def test_an_interrupted_experiment_goes_on_and_leaves_finished_runs_alone(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        calls.append(named["what"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train_head(*arguments, **named)

    bench = bench_of(values, tmp_path)
    monkeypatch.setattr(runner, "train_head", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.experiment.cells())
    # The first seed of every row comes before the second of any.
    assert calls == [f"{name}, seed 0" for name in ("retinanet@96", "retinanet@64", "lw-v3@96")]
    before = finished(tmp_path)
    assert len(before) == 4
    monkeypatch.undo()
    again = bench_of(values, tmp_path)
    again.run(again.experiment.cells())
    after = finished(tmp_path)
    assert len(after) == 16
    assert {name: after[name] for name in before} == before
    assert not (tmp_path / "features").exists()
    again.run(again.experiment.cells())
    assert finished(tmp_path) == after


def test_more_rows_and_seeds_are_the_same_experiment_but_other_settings_are_not(values: dict[str, Any], tmp_path: Path) -> None:
    bench = bench_of(values, tmp_path)
    bench.run(bench.experiment.chosen(["lw-v3@96"]))
    before = finished(tmp_path)
    values["seeds"] = [0, 1, 2]
    values["lines"][1]["variants"].append("lw-v1")
    more = bench_of(values, tmp_path)
    more.run(more.experiment.chosen(["lw-v3@96"]))
    after = finished(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    values["settings"]["train"]["steps"] = 4
    with pytest.raises(RunFolderError, match="holds an experiment with another settings; choose another --out"):
        bench_of(values, tmp_path)
    assert finished(tmp_path) == after


def test_other_data_and_foreign_folders_are_refused(values: dict[str, Any], tmp_path: Path) -> None:
    from lw_retinanet.data.sample import make_sample

    bench = bench_of(values, tmp_path / "out")
    bench.run(bench.experiment.chosen(["lw-v3@96"]))
    other = make_sample(tmp_path / "other", num_train=6, num_val=20, size=64, seed=9)
    with pytest.raises(RunFolderError, match="another data and another validation"):
        bench_of({**values, "data": str(other)}, tmp_path / "out")
    with pytest.raises(RunFolderError, match="is not empty and holds no experiment"):
        bench_of(values, other)


def test_a_run_that_another_process_is_at_is_left_to_it(values: dict[str, Any], tmp_path: Path) -> None:
    from filelock import FileLock

    bench = bench_of(values, tmp_path)
    taken = SeedRun(cell=bench.experiment.baseline, seed=0)
    taken.folder(tmp_path).mkdir(parents=True)
    with FileLock(taken.folder(tmp_path) / ".lock"):
        bench.run([bench.experiment.baseline])
    assert bench.result(taken) is None
    assert bench.result(SeedRun(cell=bench.experiment.baseline, seed=1)) is not None


def test_trunks_that_cannot_serve_are_refused(values: dict[str, Any], tmp_path: Path, draw_records: Any) -> None:
    from lw_retinanet.heads import plan_of
    from lw_retinanet.lightening.surgery import lighten_copy
    from lw_retinanet.weights.model_file import load_model, save_model

    loaded = load_model(Path(values["trunk"]))
    light, _ = lighten_copy(loaded.model, plan_of("lw-v1"))
    save_model(tmp_path / "light.safetensors", light, loaded.record.model_copy(update={"plan": light.head.plan}))
    with pytest.raises(InputError, match="has a light head already"):
        bench_of({**values, "trunk": str(tmp_path / "light.safetensors")}, tmp_path / "out")
    classes = tuple(c.model_copy(update={"name": f"other {c.name}"}) for c in loaded.record.classes)
    save_model(tmp_path / "other.safetensors", loaded.model, loaded.record.model_copy(update={"classes": classes}))
    with pytest.raises(InputError, match="knows other classes"):
        bench_of({**values, "trunk": str(tmp_path / "other.safetensors")}, tmp_path / "out")
    with pytest.raises(DataError, match="no val split"):
        bench_of({**values, "data": str(Path(values["data"]) / "train.json")}, tmp_path / "out")


def test_lightening_a_trunk_and_training_all_of_a_network_are_regimes_too(values: dict[str, Any], tmp_path: Path) -> None:
    values["seeds"], values["fit_steps"] = [0], 3
    values["settings"] |= {"model": {"backbone": "mobilenet_v2", "head_width": 16}, "data": {"workers": 0}}
    values["lines"] = [
        {"name": "scaling", "regime": "lighten", "variants": ["retinanet"], "scales": [64]},
        {"name": "lightened", "regime": "lighten", "variants": ["lw-v3"], "scales": [64]},
        {"name": "trained", "regime": "full", "variants": ["lw-v3"], "scales": [64]},
    ]
    bench = bench_of(values, tmp_path)
    bench.run(bench.experiment.cells())
    assert bench.trunk is not None
    found = bench.detections(SeedRun(cell=bench.experiment.baseline, seed=0))
    expected = detect_records(Detector.of_model(bench.trunk.model, bench.trunk.record.categories), bench.held_out)
    np.testing.assert_allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-5)
    steps = {cell.name: (bench.result(SeedRun(cell=cell, seed=0)) or {})["steps"] for cell in bench.experiment.cells()}
    assert steps == {"retinanet-lighten@64": 0, "lw-v3-lighten@64": 3, "lw-v3-full@64": 3}


def test_rows_say_what_their_runs_found_and_cost(values: dict[str, Any], tmp_path: Path) -> None:
    from lw_retinanet.counting.macs import count_blocks

    values["pairs"] = [["retinanet@64", "lw-v3@96"]]
    bench = bench_of(values, tmp_path)
    with pytest.raises(InputError, match="holds no finished run"):
        summarise(bench, command=["lw-retinanet", "tradeoff", "my e.yaml"])
    bench.run(bench.experiment.cells())
    assert not has_latency(bench, bench.experiment.cells())
    measure_rows(bench, bench.experiment.chosen(["retinanet@64"]))
    summary = summarise(bench, command=["lw-retinanet", "tradeoff", "my e.yaml"])
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["retinanet @ 96", "retinanet @ 64", "lw-v3 @ 96", "bbox-v1, init paper @ 96"]
    row, cell = rows["lw-v3 @ 96"], bench.experiment.chosen(["lw-v3@96"])[0]
    assert row.macs == sum(cost.macs for cost in count_blocks(bench.model(cell), (96, 96)).values())
    assert row.size_hw == (96, 96)
    results = [json.loads((tmp_path / "runs" / "lw-v3@96" / f"seed-{seed}" / "result.json").read_text()) for seed in (0, 1)]
    assert row.aps == tuple(result["AP"] for result in results)
    pairs = [[bench.detections(SeedRun(cell=c, seed=seed)) for seed in (0, 1)] for c in (bench.experiment.baseline, cell)]
    assert row.against_baseline == compare(bench.held_out, *pairs, draws=100).ap
    assert rows["retinanet @ 96"].against_baseline is None
    (pair,) = summary.pairs
    small = bench.experiment.chosen(["retinanet@64"])[0]
    other = [bench.detections(SeedRun(cell=small, seed=seed)) for seed in (0, 1)]
    assert pair.interval == compare(bench.held_out, other, pairs[1], draws=100).ap
    assert rows["bbox-v1, init paper @ 96"].role == "other"
    assert rows["retinanet @ 64"].latency_ms is not None
    assert row.latency_ms is None
    assert row.command == "lw-retinanet tradeoff 'my e.yaml' --out again --only lw-v3@96"


def test_a_head_may_have_one_anchor_of_its_own(values: dict[str, Any], tmp_path: Path) -> None:
    values["seeds"] = [0]
    values["lines"][1]["variants"] = [{"preset": "lw-v3", "anchors": "one"}]
    bench = bench_of(values, tmp_path)
    (cell,) = bench.experiment.chosen(["lw-v3-one-anchor@96"])
    assert bench.experiment.config(cell, 0).train.assignment == "atss"
    model = bench.model(cell)
    assert (model.head.num_anchors, model.conventions.anchors.num_anchors) == (1, 1)
    bench.run([cell])
    assert (bench.result(SeedRun(cell=cell, seed=0)) or {})["steps"] == 3
