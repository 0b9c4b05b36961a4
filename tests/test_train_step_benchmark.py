"""benchmarks/train_step.py on a network and images so small that it takes seconds: it compares, measures, and refuses."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from lw_retinanet.data.sample import make_sample

ROOT = Path(__file__).parents[1]
SMALL = ["--backbone", "resnet18", "--size", "64", "--batch", "2", "--rounds", "2", "--warm-up", "0", "--threads", "1"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.train_step")


def call(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["train_step.py", *SMALL, *arguments])
    code: int = script.main()
    return code


def test_all_step_and_the_two_agree(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = make_sample(tmp_path / "data", num_train=5, num_val=1, size=128)
    learned: list[int] = []

    class Counting(torch.optim.SGD):
        def __init__(self, params: Any, **options: Any) -> None:
            given = list(params)
            tensors = [one for group in given for one in group["params"]] if isinstance(given[0], dict) else given
            learned.append(sum(tensor.numel() for tensor in tensors))
            super().__init__(given, **options)

    monkeypatch.setattr(torch.optim, "SGD", Counting)
    monkeypatch.setattr("lw_retinanet.training.optimiser.SGD", Counting)
    light = "lw-v3, bf16"
    assert call(script, monkeypatch, "--data", str(data), "--json", "--only", light) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert result["parity"]["agrees"]
    assert result["classes"] == 4
    assert result["boxes_per_picture"] >= 1
    rows = {row["name"]: row for row in result["rows"]}
    assert set(rows) == {script.SHIPPED, script.BASE, light}
    assert rows[script.SHIPPED]["times_as_fast"]["ratio"] == 1
    assert all(row["step_ms"]["median"] > 0 for row in rows.values())
    # The same stages are frozen in both.
    assert learned[0] == learned[1] > 0


def test_nothing_is_timed_where_the_two_differ(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Another normaliser is another loss wherever images have unlike numbers of positives.
    honest = script.settings
    monkeypatch.setattr(script, "settings", lambda: honest().model_copy(update={"normaliser": "batch"}))
    assert call(script, monkeypatch, "--only", script.BASE) == 1
    printed = capsys.readouterr()
    assert "do not agree" in printed.err
    assert "step_ms" not in printed.out
