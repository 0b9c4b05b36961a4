import json
import logging
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from torch import Tensor

from lw_retinanet.config import Config
from lw_retinanet.data.records import Records
from lw_retinanet.errors import ImageError, RunFolderError, TrainingError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.stopping import Stopped
from lw_retinanet.training import loop, trainer
from lw_retinanet.training.checkpoint import checkpoint_files, load_latest
from lw_retinanet.training.distributed import World
from lw_retinanet.training.loop import train
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.step import StepResult, Teacher, accumulate_gradients

MakeModel = Callable[..., RetinaNet]
MakeConfig = Callable[..., Config]


def weights(model: RetinaNet) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def run(model: RetinaNet, data: Records, config: Config, path: Path, **options: Any) -> RetinaNet:
    with RunFolder.created(path, config, {}) as folder:
        return train(model, data, config=config, folder=folder, world=World(), **options)


def test_training_learns_logs_and_keeps_checkpoints(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(batch_size=4, steps=14, save_every=3, augment="none", ema=0)
    model = make_model("group")
    trained = run(model, data, config, run_path)
    assert trained is model
    log = entries(run_path)
    assert [entry["step"] for entry in log] == list(range(1, 15))
    assert [entry["epoch"] for entry in log] == [step // 2 for step in range(14)]
    assert sum(entry["loss"] for entry in log[-3:]) < 0.8 * sum(entry["loss"] for entry in log[:3])
    for entry in log:
        assert entry["loss"] == pytest.approx(entry["classification"] + entry["bbox_regression"])
        assert entry["positives"] > 0
        assert entry["gradient_norm"] > 0
    # Warm-up from a thousandth, half way at step 1, and then the cosine.
    assert [entry["rate"] for entry in log[:3]] == pytest.approx([1e-6, 5.005e-4, 1e-3], rel=1e-3)
    assert log[-1]["rate"] < log[2]["rate"] / 50
    # Every third step, and the last: 12 and 14 are left.
    assert [path.stem for path in checkpoint_files(run_path / "checkpoints")] == ["step-00000012", "step-00000014"]
    assert list((run_path / "tensorboard").glob("events.*"))
    assert "step 14/14" in caplog.text


def test_the_average_is_what_comes_back(run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    model = make_model()
    averaged = run(model, data, make_config(steps=4, ema=0.9, schedule_version=1), run_path)  # 2 gives the last weights to a run so short
    checkpoint = load_latest(run_path / "checkpoints")
    assert averaged is not model
    assert checkpoint is not None
    name = "head.cls.own_units.P3.0.0.weight"
    assert torch.equal(averaged.state_dict()[name], checkpoint.part("ema")[f"module.{name}"])
    assert torch.equal(model.state_dict()[name], checkpoint.part("model")[name])
    assert not torch.equal(averaged.state_dict()[name], model.state_dict()[name])
    assert averaged.conventions == model.conventions


@pytest.mark.parametrize("freeze", [0, 2])
def test_frozen_stages_stay_and_all_else_moves(
    freeze: int, run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    model = make_model()
    before = weights(model)
    run(model, data, make_config(batch_size=8, steps=2, rate=0.01, augment="none", freeze=freeze, ema=0), run_path)
    after = weights(model)
    frozen = ("backbone.conv1", "backbone.layer1") if freeze else ()
    for name, _ in model.named_parameters():
        assert torch.equal(before[name], after[name]) == name.startswith(frozen), name


def test_evaluations_come_in_time_and_before_the_checkpoint(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    seen: list[tuple[int, list[str]]] = []

    def evaluate(model: RetinaNet, step: int) -> dict[str, Any]:
        model.eval()
        seen.append((step, [path.stem for path in checkpoint_files(run_path / "checkpoints")]))
        return {"AP": 0.25}

    model = make_model("batch")
    before = weights(model)["backbone.bn1.running_mean"]
    run(model, data, make_config(batch_size=4, epochs=3, evaluate_every=1, ema=0), run_path, evaluate=evaluate)
    # Two steps an epoch; the end of the run is evaluated by the caller. A run killed in an evaluation has no checkpoint behind it.
    assert seen == [(2, []), (4, ["step-00000002"])]
    assert [entry for entry in entries(run_path) if "AP" in entry] == [{"step": 2, "AP": 0.25}, {"step": 4, "AP": 0.25}]
    # Statistics of the norms are learned again after an evaluation.
    assert model.training
    assert not torch.equal(before, weights(model)["backbone.bn1.running_mean"])


@pytest.mark.parametrize(("row", "part"), [(0, "classification"), (1, "bbox_regression")])
def test_a_loss_that_is_not_finite_is_named_and_changes_nothing(
    row: int,
    part: str,
    run_path: Path,
    data: Records,
    make_model: MakeModel,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model()
    honest = accumulate_gradients
    seen: list[tuple[dict[str, Tensor], list[str]]] = []

    def poisoned(wrapped: Any, batches: Any, **options: Any) -> StepResult:
        result = honest(wrapped, batches, **options)
        seen.append((weights(model), [data.file_names[index] for batch in batches for index in batch.indices]))
        if len(seen) == 3:
            result.losses[row] = float("nan")
        return result

    monkeypatch.setattr(trainer, "accumulate_gradients", poisoned)
    with pytest.raises(TrainingError) as caught:
        run(model, data, make_config(steps=5, save_every=1), run_path)
    before, names = seen[-1]
    message = str(caught.value)
    assert message.startswith(f"step 3: {part} not finite, on images {', '.join(names)};")
    after = weights(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [entry["step"] for entry in entries(run_path)] == [1, 2]
    checkpoint = load_latest(run_path / "checkpoints")
    assert checkpoint is not None
    assert checkpoint.step == 2


def test_a_loss_that_is_not_finite_is_noticed_a_step_later_and_still_changes_nothing(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model()
    honest = accumulate_gradients
    seen: list[dict[str, Tensor]] = []

    def poisoned(wrapped: Any, batches: Any, **options: Any) -> StepResult:
        result = honest(wrapped, batches, **options)
        seen.append(weights(model))
        if len(seen) == 3:
            result.losses[0] = float("inf")
        return result

    monkeypatch.setattr(trainer, "accumulate_gradients", poisoned)
    with pytest.raises(TrainingError, match=r"^step 3: classification not finite, on images "):
        run(model, data, make_config(steps=9, save_every=5), run_path)
    assert len(seen) == 4
    after = weights(model)
    # Neither by the step that was not finite, nor by the next, which was begun before that was known.
    assert all(torch.equal(seen[2][name], after[name]) for name in after)
    assert not torch.equal(seen[1]["head.cls.own_units.P3.0.0.weight"], after["head.cls.own_units.P3.0.0.weight"])
    assert [entry["step"] for entry in entries(run_path)] == [1, 2]


class Promised:
    """Scores that arrive when somebody waits for them, or never if ``ends`` is false; of each step, the weights that it is of."""

    def __init__(self, *, ends: bool = True) -> None:
        self.ends = ends
        self.seen: list[tuple[int, Tensor]] = []

    def __call__(self, model: RetinaNet, step: int) -> Future[dict[str, Any]]:
        self.seen.append((step, model.state_dict()["fpn.inner_blocks.0.0.weight"].clone()))
        score: Future[dict[str, Any]] = Future()
        if self.ends:
            Timer(0.2, lambda: score.set_result({"AP": step / 100})).start()
        return score


def test_scores_of_another_process_are_logged_with_their_step_before_the_last_line(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    run(make_model(), data, make_config(batch_size=4, epochs=3, evaluate_every=1, save_every=100), run_path, evaluate=Promised())
    log = entries(run_path)
    assert sorted((entry["step"], entry["AP"]) for entry in log if "AP" in entry) == [(2, 0.02), (4, 0.04)]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    # What reads how long a run was reads it there.
    assert log[-1]["step"] == 6


def test_a_run_killed_before_a_score_arrived_makes_up_for_it(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(batch_size=4, epochs=3, evaluate_every=1, ema=0.5)
    honest = accumulate_gradients
    calls: list[None] = []

    def killed(wrapped: Any, batches: Any, **options: Any) -> StepResult:
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return honest(wrapped, batches, **options)

    before, after, again = Promised(ends=False), Promised(), Promised()
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "accumulate_gradients", killed)
        with pytest.raises(KeyboardInterrupt):
            run(make_model(), data, config, run_path, evaluate=before)
    assert [step for step, _ in before.seen] == [2]
    with RunFolder.reopened(run_path) as (folder, found, _):
        train(make_model(seed=9), data, config=found, folder=folder, world=World(), resume=True, evaluate=after)
    # Of the very weights that were to be scored.
    assert [step for step, _ in after.seen] == [2, 4]
    assert torch.equal(after.seen[0][1], before.seen[0][1])
    assert [entry["step"] for entry in entries(run_path) if "AP" in entry] == [2, 4]
    # What is there is not asked for again.
    with RunFolder.reopened(run_path) as (folder, found, _):
        folder.trim_log(4)
        for path in checkpoint_files(folder.checkpoints)[-1:]:
            path.unlink()
        train(make_model(), data, config=found, folder=folder, world=World(), resume=True, evaluate=again)
    assert again.seen == []
    assert [entry["step"] for entry in entries(run_path)] == [1, 2, 2, 3, 4, 4, 5, 6]


class Graded:
    """Gives the evaluations of a run the grades of a list, by their number, later than it is asked."""

    def __init__(self, grades: list[float], every: int = 2) -> None:
        self.grades, self.every = grades, every
        self.seen: dict[int, Tensor] = {}
        self.kept: list[tuple[int, Tensor]] = []

    def __call__(self, model: RetinaNet, step: int) -> Future[dict[str, Any]]:
        self.seen[step] = model.state_dict()[SOME].clone()
        score: Future[dict[str, Any]] = Future()
        best = {"score": 0.5, "F1": 0.9, "per_class": []}
        Timer(0.02, lambda: score.set_result({"AP": self.grades[step // self.every - 1], "best_score": best})).start()
        return score

    def keep(self, weights: Any, entry: Any) -> None:
        assert entry["best_score"]["F1"] == 0.9
        self.kept.append((entry["step"], weights[SOME].clone()))

    @property
    def options(self) -> dict[str, Any]:
        return {"evaluate": self, "keep_best": self.keep}


SOME = "fpn.inner_blocks.0.0.weight"


def test_the_weights_that_were_scored_are_kept_and_the_run_stops_when_the_ap_no_longer_rises(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    config = make_config(batch_size=4, epochs=20, evaluate_every=1, patience=2, save_every=100, ema=0.5)
    graded = Graded([0.1, 0.3, 0.3, 0.2, 0.9])
    run(make_model(), data, config, run_path, **graded.options)
    # The third evaluation equals the second and is no rise.
    assert [step for step, _ in graded.kept] == [2, 4]
    assert all(torch.equal(weights, graded.seen[step]) for step, weights in graded.kept)
    assert [entry["step"] for entry in entries(run_path) if "loss" in entry] == list(range(1, 9))
    assert [entry["best_score"] for entry in entries(run_path) if "AP" in entry] == [0.5] * 4
    assert "stopped early, after step 8 of 40: the AP has not risen for 2 evaluations, and was 0.3000 after step 4" in caplog.text
    # What is resumed has nothing left to do.
    again = Graded([0.9] * 20)
    with RunFolder.reopened(run_path) as (folder, found, _):
        train(make_model(seed=9), data, config=found, folder=folder, world=World(), resume=True, **again.options)
    assert again.seen == {}
    assert [path.stem for path in checkpoint_files(run_path / "checkpoints")] == ["step-00000008"]


class Killed(BaseException):
    """As if by kill -9: nothing of ours handles it."""


GRADES = [0.1, 0.4, 0.2, 0.9]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Records, make_model: MakeModel, make_config: MakeConfig) -> tuple[Path, Graded]:
    """A run whose best evaluation is after step 4, and which therefore ends after step 6."""
    graded, path = Graded(GRADES), tmp_path_factory.mktemp("whole") / "run"
    run(make_model(), data, make_config(batch_size=4, epochs=9, evaluate_every=1, patience=1, ema=0.5), path, **graded.options)
    return path, graded


@pytest.mark.parametrize("point", ["while it is evaluated", "before the weights", "after the weights", "in the step after"])
def test_best_weights_and_the_end_are_the_same_after_a_kill(
    point: str,
    whole: tuple[Path, Graded],
    run_path: Path,
    data: Records,
    make_model: MakeModel,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make_config(batch_size=4, epochs=9, evaluate_every=1, patience=1, ema=0.5)

    class Deadly(Graded):
        """Dies at the second evaluation, which is the best one."""

        def __call__(self, model: RetinaNet, step: int) -> Future[dict[str, Any]]:
            if (step, point) == (4, "while it is evaluated"):
                raise Killed
            return super().__call__(model, step)

        def keep(self, weights: Any, entry: Any) -> None:
            if (entry["step"], point) == (4, "before the weights"):
                raise Killed
            super().keep(weights, entry)
            if (entry["step"], point) == (4, "after the weights"):
                raise Killed

    honest = accumulate_gradients
    calls: list[None] = []

    def killed(wrapped: Any, batches: Any, **options: Any) -> StepResult:
        calls.append(None)
        if len(calls) == 5 and point == "in the step after":
            raise Killed
        return honest(wrapped, batches, **options)

    before, after = Deadly(GRADES), Graded(GRADES)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "accumulate_gradients", killed)
        with pytest.raises(Killed):
            run(make_model(), data, config, run_path, **before.options)
    with RunFolder.reopened(run_path) as (folder, found, _):
        train(make_model(seed=9), data, config=found, folder=folder, world=World(), resume=True, **after.options)
    undisturbed, graded = whole
    step, weights = (before.kept + after.kept)[-1]
    assert step == 4
    assert torch.equal(weights, graded.kept[-1][1])
    scores = [[(one["step"], one["AP"]) for one in entries(path) if "AP" in one] for path in (undisturbed, run_path)]
    assert scores[0] == scores[1] == [(2, 0.1), (4, 0.4), (6, 0.2)]
    one, other = (load_latest(path / "checkpoints") for path in (undisturbed, run_path))
    assert one is not None
    assert other is not None
    assert (one.step, other.step) == (6, 6)
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def test_weights_whose_score_a_signal_cut_off_are_scored_by_the_resumed_run(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(batch_size=4, epochs=4, evaluate_every=1, save_every=100, ema=0.5)
    whole, after = Graded([0.3, 0.2, 0.1]), Graded([0.3, 0.2, 0.1])
    run(make_model(), data, config, run_path / "whole", **whole.options)
    honest = accumulate_gradients
    calls: list[None] = []

    def signalled(wrapped: Any, batches: Any, **options: Any) -> StepResult:
        calls.append(None)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(wrapped, batches, **options)

    never = Promised(ends=False)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "accumulate_gradients", signalled)
        patch.setattr(loop, "SCORE_SECONDS", 0.01)
        with pytest.raises(Stopped):
            run(make_model(), data, config, run_path / "cut", evaluate=never, keep_best=after.keep)
    assert after.kept == []
    with RunFolder.reopened(run_path / "cut") as (folder, found, _):
        train(make_model(seed=9), data, config=found, folder=folder, world=World(), resume=True, **after.options)
    # Step 3 is where the run was cut; the weights of step 2 came with it.
    assert list(after.seen) == [2, 4, 6]
    assert all(torch.equal(after.seen[step], whole.seen[step]) for step in whole.seen)
    assert [step for step, _ in after.kept] == [2]
    assert {entry["step"]: entry["AP"] for entry in entries(run_path / "cut") if "AP" in entry} == {2: 0.3, 4: 0.2, 6: 0.1}


def test_a_run_killed_before_its_first_checkpoint_says_that_it_starts_anew(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(batch_size=8, steps=1)
    with RunFolder.created(run_path, config, {}) as folder:
        folder.log({"step": 1, "loss": 1.0})
    with RunFolder.reopened(run_path) as (folder, found, _):
        train(make_model(), data, config=found, folder=folder, world=World(), resume=True)
    assert f"{run_path} has no checkpoint yet, so the run starts anew from its first step" in caplog.text
    assert [entry["step"] for entry in entries(run_path)] == [1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_stops_the_run_by_name(
    workers: int, run_path: Path, tmp_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    root = tmp_path / "pictures"
    root.mkdir()
    for name in data.file_names:
        (root / name).write_bytes(data.root.joinpath(name).read_bytes())
    (root / "picture 5.png").write_bytes(b"")
    broken = replace(data, root=root)
    with pytest.raises(ImageError, match=r"picture 5\.png"):
        run(make_model(), broken, make_config(epochs=2, workers=workers), run_path)


def test_resuming_a_longer_run_than_asked_for_is_refused(
    run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig
) -> None:
    run(make_model(), data, make_config(steps=3), run_path)
    with RunFolder.reopened(run_path) as (folder, _, _), pytest.raises(RunFolderError, match="has done 3 steps, more than the 2 asked for"):
        train(make_model(), data, config=make_config(steps=2), folder=folder, world=World(), resume=True)


def test_resuming_a_finished_run_changes_nothing(run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    config = make_config(steps=2)
    first = weights(run(make_model(), data, config, run_path))
    with RunFolder.reopened(run_path) as (folder, found, _):
        second = weights(train(make_model(seed=9), data, config=found, folder=folder, world=World(), resume=True))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [entry["step"] for entry in entries(run_path)] == [1, 2]


def test_training_with_a_teacher(run_path: Path, data: Records, make_model: MakeModel, make_config: MakeConfig) -> None:
    teacher = make_model("batch", seed=1).train()
    before = weights(teacher)
    model = make_model()
    run(model, data, make_config(steps=2, distill_weight=2.0, ema=0), run_path / "taught", teacher=Teacher(model=teacher))
    run(make_model(), data, make_config(steps=2, ema=0), run_path / "alone")
    taught, alone = entries(run_path / "taught"), entries(run_path / "alone")
    for entry in taught:
        assert entry["distillation"] > 0
        assert entry["loss"] == pytest.approx(entry["classification"] + entry["bbox_regression"] + entry["distillation"])
    # The labels' parts of the first step, before anything has been learned, do not know of the teacher.
    assert all(taught[0][part] == alone[0][part] for part in ("classification", "bbox_regression"))
    assert taught[1]["classification"] != alone[1]["classification"]
    assert "distillation" not in alone[0]
    after = weights(teacher)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not teacher.training
    checkpoint = load_latest(run_path / "taught" / "checkpoints")
    assert checkpoint is not None
    assert {name.partition(".")[0] for name in checkpoint.tensors} == {"model", "optimiser"}
    assert checkpoint.part("model").keys() == model.state_dict().keys()
