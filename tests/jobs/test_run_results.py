"""Which weights a run leaves where, with their scores, undisturbed and after a kill."""

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lw_retinanet as lw
from lw_retinanet.config import parse_config
from lw_retinanet.data.records import Records
from lw_retinanet.data.sample import make_sample
from lw_retinanet.errors import ConfigError, DataError, InputError
from lw_retinanet.evaluation.best_score import score_metrics
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.jobs import run_results
from lw_retinanet.jobs import train as train_job
from lw_retinanet.jobs.train import run_training
from lw_retinanet.training import trainer
from lw_retinanet.training.step import accumulate_gradients
from lw_retinanet.weights.model_file import load_model

FILES = ("model", "best", "last")
BEST = {"score": 0.25, "F1": 0.5, "per_class": [{"name": name, "score": 0.25, "F1": 0.5} for name in ("disc", "checker", "star", "ring")]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sample(tmp_path_factory.mktemp("sample") / "shapes", num_train=4, num_val=2, size=64)


@pytest.fixture
def grades(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """APs that the evaluations of a run get instead of their own, in order; the last one is for the end of the run."""
    grades: list[float] = []
    given: dict[int, float] = {}

    class Scoring:
        def __init__(self, _: Records) -> None:
            given.clear()

        def __enter__(self) -> "Scoring":
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, _: DetectionTable) -> Future[dict[str, Any]]:
            score: Future[dict[str, Any]] = Future()
            score.set_result({"AP": grades.pop(0), "best_score": BEST})
            return score

    def graded(records: Records, detections: DetectionTable) -> Metrics:
        return replace(score_metrics(records, detections), AP=grades[-1], best_score=BEST)

    monkeypatch.setattr(train_job, "ScoringProcess", Scoring)
    monkeypatch.setattr(run_results, "score_metrics", graded)
    return grades


def train(data: Path, out: Path, *, resume: bool = False, **settings: Any) -> Any:
    model = {"backbone": "mobilenet_v2", "head_width": 16, "preset": "lw-v3"}
    steps = {"epochs": 3, "batch_size": 2, "precision": "fp32", "evaluate_every": 1, **settings}
    config = parse_config({"model": model, "data": {"image_size": 64, "workers": 0}, "train": steps})
    return run_training(config, data, out, resume=resume, device=torch.device("cpu"))


def weights(file: Path) -> Tensor:
    return load_model(file).model.state_dict()["fpn.inner_blocks.0.0.weight"]


def noted(out: Path) -> dict[str, tuple[int, float]]:
    files = {name: out / f"{name}.safetensors" for name in FILES if (out / f"{name}.safetensors").exists()}
    notes = {name: load_model(file).record.notes for name, file in files.items()}
    assert all(one["best_score"] == BEST for one in notes.values())
    return {name: (one["step"], one["AP"]) for name, one in notes.items()}


def test_keep_says_which_weights_are_the_model(data: Path, tmp_path: Path, grades: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    grades += [0.3, 0.1, 0.2]
    train(data, tmp_path / "last")
    assert noted(tmp_path / "last") == {"model": (6, 0.2), "best": (2, 0.3)}
    assert "best.safetensors holds the weights of step 2, whose AP of 0.3000 is the best; model.safetensors holds those" in caplog.text
    grades[:] = [0.3, 0.1, 0.2]
    run = train(data, tmp_path / "best", keep="best")
    assert noted(tmp_path / "best") == {"model": (2, 0.3), "best": (2, 0.3), "last": (6, 0.2)}
    assert "model.safetensors and best.safetensors hold the weights of step 2, whose AP of 0.3000 is the best; last" in caplog.text
    assert torch.equal(weights(tmp_path / "best"), weights(tmp_path / "last" / "best.safetensors"))
    assert torch.equal(weights(tmp_path / "best" / "last.safetensors"), weights(tmp_path / "last"))
    assert not torch.equal(weights(tmp_path / "best"), weights(tmp_path / "last"))
    # What was measured at the end belongs to the run's model.
    lw.evaluate(run.folder, data, device="cpu", out=tmp_path / "again")
    for name in ("metrics.json", "detections.json"):
        assert (run.folder / name).read_text() == (tmp_path / "again" / name).read_text()


def test_the_last_weights_may_be_the_best(data: Path, tmp_path: Path, grades: list[float]) -> None:
    grades += [0.1, 0.4]
    train(data, tmp_path / "run", keep="best", epochs=2)
    assert noted(tmp_path / "run") == dict.fromkeys(FILES, (4, 0.4))
    grades[:] = [0.4]
    before = {name: (tmp_path / "run" / f"{name}.safetensors").read_bytes() for name in FILES}
    train(data, tmp_path / "run", keep="best", epochs=2, resume=True)
    assert {name: (tmp_path / "run" / f"{name}.safetensors").read_bytes() for name in FILES} == before


class Killed(BaseException):
    """As if by kill -9: nothing of ours handles it."""


def test_files_are_the_same_after_kills(data: Path, tmp_path: Path, grades: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"keep": "best", "patience": 1, "epochs": 9}
    grades += [0.3, 0.1, 0.1]
    train(data, tmp_path / "whole", **settings)
    assert noted(tmp_path / "whole") == {"model": (2, 0.3), "best": (2, 0.3), "last": (4, 0.1)}
    honest, calls = accumulate_gradients, [0]

    def killed(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4:
            raise Killed
        return honest(*arguments, **options)

    def die(*_: Any, **__: Any) -> None:
        raise Killed

    grades[:] = [0.3, 0.1, 0.1]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "accumulate_gradients", killed)
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(run_results, "score_into", die)
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", resume=True, **settings)
    train(data, tmp_path / "killed", resume=True, **settings)
    for name in (*(f"{name}.safetensors" for name in FILES), "metrics.json", "detections.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_damaged_file_of_the_best_weights_is_replaced_by_the_last_ones(
    data: Path, tmp_path: Path, grades: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    grades += [0.3, 0.1]
    train(data, tmp_path / "run", epochs=2, keep="best")
    (tmp_path / "run" / "best.safetensors").write_bytes(b"")
    grades[:] = [0.1]
    train(data, tmp_path / "run", epochs=2, keep="best", resume=True)
    assert "best.safetensors cannot be used (" in caplog.text
    assert noted(tmp_path / "run") == dict.fromkeys(FILES, (4, 0.1))


def test_what_goes_by_scores_needs_them(data: Path, tmp_path: Path) -> None:
    for settings in ({"keep": "best"}, {"patience": 3}):
        with pytest.raises(ConfigError, match=r"keep=best and patience go by the scores on the way; set train\.evaluate_every=1, too"):
            train(data, tmp_path / "run", **settings, evaluate_every=0)
    with pytest.raises(DataError, match=r"has no val split to score on, .*; make one with `lw-retinanet data split`"):
        train(data / "train.json", tmp_path / "run", patience=1)
    assert not (tmp_path / "run").exists()
    lw.split_data(data / "train.json", tmp_path / "split")
    assert train(tmp_path / "split", tmp_path / "run", patience=1, epochs=1).metrics is not None


def test_the_best_score_is_a_choice_of_prediction(data: Path, tmp_path: Path, grades: list[float]) -> None:
    grades += [0.1]
    train(data, tmp_path / "run", epochs=1, evaluate_every=0)
    detector = lw.load(tmp_path / "run", device="cpu")
    assert detector.best_score == 0.25
    image = next((data / "images").iterdir())
    for low in (0.0, 0.999):  # so that something, or nothing, is found
        assert detector.record is not None
        record = detector.record.model_copy(update={"notes": {"best_score": {"score": low}}})
        chosen = lw.Detector.of_model(detector.model, detector.categories, record=record)
        assert len(lw.predict(chosen, image, score="best")[0]) == len(chosen.predict(image, score=low)[0])
        assert bool(len(chosen.predict(image, score="best")[0])) is (low == 0.0)
    with pytest.raises(InputError, match="score must be a number or best, got beast"):
        detector.predict(image, score="beast")  # type: ignore[arg-type]
    # Light towers score otherwise than what they were made from.
    light = lw.lighten(detector, "lw-narrow")
    with pytest.raises(
        InputError, match=r"has no best score, .*; give a number, such as the best score that `lw-retinanet evaluate` prints"
    ):
        light.predict(image, score="best")
    best = lw.evaluate(light, data).best_score
    assert best is None or light.predict(image, score=best["score"])
