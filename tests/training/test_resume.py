"""A run that is killed with -9, at any moment and as often as you like, ends in the same weights, byte for byte."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.data.sample import make_sample

TINY_TRAINING = Path(__file__).with_name("tiny_training.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
@pytest.mark.slow
def test_kill_9_at_any_moment(tmp_path: Path) -> None:
    data = make_sample(tmp_path / "data", num_train=20, num_val=1, size=64)
    out = tmp_path / "runs"
    out.mkdir()
    settings = {
        "data": {"augment": "full"},
        "train": {"batch_size": 2, "accumulate": 2, "epochs": 5, "save_every": 1, "ema": 0.9, "precision": "fp32", "warmup_steps": 5},
    }
    command = [sys.executable, str(TINY_TRAINING), "storm", str(out), str(data), json.dumps(settings), "--workers", "0", "2"]
    # A file, not a pipe: the loader's workers of a killed process live on for some seconds and would keep a pipe open.
    with (out / "stderr.txt").open("w") as errors:
        status = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=errors, check=False, timeout=280).returncode
    assert status == 0, (out / "stderr.txt").read_text()
    report = json.loads((out / "report.json").read_text())
    assert [run["workers"] for run in report["runs"]] == [0, 2]
    for run in report["runs"]:
        assert run["is_done"], (out / "stderr.txt").read_text()
        # Every point inside a save was reached.
        assert [point for point in run["killed"] if point != "any moment"] == run["points"]
        assert run["digest"] == report["unbroken"]
        # 20 images by 4, 5 times: each step is in the log once, in order.
        assert run["logged"] == list(range(1, 26))
        kept = [f"step-{step:08d}.{suffix}" for step in (24, 25) for suffix in ("safetensors", "sha256")]
        assert run["files"] == [".lock", "config.yaml", "log.jsonl", *kept]


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("kills", [5, pytest.param(25, marks=pytest.mark.slow)])
def test_kill_9_so_many_times(kills: int, tmp_path: Path) -> None:
    data = make_sample(tmp_path / "data", num_train=20, num_val=1, size=64)
    out = tmp_path / "runs"
    out.mkdir()
    epochs = 8 if kills == 5 else 16
    train = {"batch_size": 2, "accumulate": 2, "epochs": epochs, "save_every": 2, "ema": 0.9, "precision": "bf16", "warmup_steps": 5}
    command = [sys.executable, str(TINY_TRAINING), "kill", str(out), str(data), json.dumps({"data": {}, "train": train})]
    ran = subprocess.run([*command, "--kills", str(kills)], capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    [report] = json.loads((out / "report.json").read_text())
    assert {"process", "group", "worker"} == set(report["victims"])
    for victim, status in zip(report["victims"], report["statuses"], strict=False):
        assert status in ((1, -9) if victim == "worker" else (-9,)), (report, ran.stderr)
    assert "a loader worker was killed" in ran.stderr
    assert report["statuses"][-1] == 0, ran.stderr
    assert report["digests"][0] == report["digests"][1]
    assert report["logged"] == list(range(1, 5 * epochs + 1))


NAMES = ("workers", "accumulate", "ema", "precision", "teacher", "processes")
VALUES = ((0, 2), (1, 2), (0, 0.9), ("fp32", "bf16"), (False, True), (1, 2))
EVERY_PAIR = ("000110", "010001", "011100", "101000", "101111", "110010")  # for any two settings each pair of their values
ALL = tuple(map("".join, itertools.product("01", repeat=len(NAMES))))


@pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")
@pytest.mark.parametrize("codes", [EVERY_PAIR, pytest.param(ALL, marks=[pytest.mark.slow, pytest.mark.timeout(900)])], ids=["pairs", "all"])
def test_every_combination_resumes_exactly(codes: tuple[str, ...], tmp_path: Path) -> None:
    data = make_sample(tmp_path / "data", num_train=8, num_val=1, size=64)
    out = tmp_path / "runs"
    out.mkdir()
    combinations: list[dict[str, Any]] = [
        dict(zip(NAMES, (pair[int(digit)] for pair, digit in zip(VALUES, code, strict=True)), strict=True)) for code in codes
    ]
    command = [sys.executable, str(TINY_TRAINING), "combine", str(out), str(data), json.dumps(combinations)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=850)
    assert ran.returncode == 0, ran.stderr
    ends: dict[tuple[Any, ...], str] = {}
    for chosen, run in zip(combinations, json.loads((out / "report.json").read_text()), strict=True):
        number = chosen["processes"]
        # All of its processes died in the fourth step, so the third one, which no checkpoint has, was done twice.
        # (The second process may have noticed the end of the first one before its own.)
        whole, broken, resumed = (run["statuses"][part * number : (part + 1) * number] for part in range(3))
        assert (whole, broken[0], resumed) == ([0] * number, -9, [0] * number), (chosen, run, ran.stderr)
        assert run["digests"][0] == run["digests"][1], chosen
        assert run["steps"] == [1, 2, 3, 4, 5, 6], chosen
        # Each setting has its effect, except the number of workers, which has none.
        ends[tuple(value for name, value in chosen.items() if name != "workers")] = run["digests"][0]
    assert len(set(ends.values())) == len({tuple(list(chosen.values())[1:]) for chosen in combinations})
