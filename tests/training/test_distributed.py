import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lw_retinanet.data.sample import make_sample
from lw_retinanet.training.checkpoint import load_latest
from lw_retinanet.training.distributed import World, joined_world

TINY_TRAINING = Path(__file__).with_name("tiny_training.py")


def test_one_process_needs_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    with joined_world(torch.device("cpu")) as world:
        assert world == World(rank=0, size=1, device=torch.device("cpu"))
        assert world.is_main
        assert world.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_global_batch(tmp_path: Path) -> None:
    data = make_sample(tmp_path / "data", num_train=16, num_val=1, size=64)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    checkpoints = []
    # SGD, as Adam divides rounding errors by gradients that are next to nothing.
    common = {"epochs": 2, "optimiser": "sgd", "rate": 0.01, "warmup_steps": 2, "precision": "fp32", "clip": 1.0}
    # Each of the two sees two images a step, one after the other: gradients are exchanged after the second only.
    for name, launcher, batch in (("alone", [], {"batch_size": 4}), ("together", torchrun, {"batch_size": 1, "accumulate": 2})):
        settings = {"data": {"workers": 0, "augment": "jitter"}, "train": {**common, **batch}}
        out = tmp_path / name
        command = [sys.executable, *launcher, str(TINY_TRAINING), "run", str(out), str(data), json.dumps(settings)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, "OMP_NUM_THREADS": "1"}, timeout=280)
        assert ran.returncode == 0, ran.stderr
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in log] == list(range(1, 9))
        found = load_latest(out / "checkpoints")
        assert found is not None
        checkpoints.append((found, log))
    (alone, log_alone), (together, log_together) = checkpoints
    assert alone.tensors.keys() == together.tensors.keys()
    for name, tensor in alone.part("model").items():
        assert float((together.part("model")[name] - tensor).abs().max()) < 1e-6, name
    for one, two in zip(log_alone, log_together, strict=True):
        # What is logged is the whole step's, not the first process's share.
        assert two["positives"] == one["positives"]
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert two["gradient_norm"] == pytest.approx(one["gradient_norm"], rel=1e-4)
