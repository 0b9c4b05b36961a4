"""A run that is killed with -9, at any moment and as often as you like, ends in the same weights, byte for byte."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    train = {"batch_size": 2, "accumulate": 2, "epochs": 6, "save_every": 2, "ema": 0.9, "precision": "bf16", "warmup_steps": 5}
    command = [sys.executable, str(TINY_TRAINING), "kill", str(out), str(data), json.dumps({"data": {}, "train": train})]
    ran = subprocess.run([*command, "--kills", str(kills)], capture_output=True, text=True, check=False, timeout=280)
    assert ran.returncode == 0, ran.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["statuses"] == [-9] * kills + [0], ran.stderr
    assert report["digests"][0] == report["digests"][1]
    assert report["logged"] == list(range(1, 31))
