"""A training of a second or two as a program of its own: for tests that kill it, and for torchrun.

``tiny_training.py run OUT DATA SETTINGS`` starts a run, or goes on with the one in OUT. ``tiny_training.py storm OUT DATA SETTINGS`` starts
runs and kills them, again and again, until they are done; ``kill`` does so a given number of times.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lw_retinanet.config import Config
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.backbone import Backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training import checkpoint
from lw_retinanet.training.distributed import World, joined_world
from lw_retinanet.training.loop import train
from lw_retinanet.training.run_folder import RunFolder

WIDTH = 16


class TinyBackbone(Backbone):
    """Five convolutions of stride 2, with batch norm (whose statistics a resumed run needs) or without."""

    channels = (WIDTH, WIDTH, WIDTH)

    def __init__(self, *, has_norm: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(WIDTH if number else 3, WIDTH, 3, 2, 1),
                nn.BatchNorm2d(WIDTH) if has_norm else nn.Identity(),
                nn.ReLU(inplace=True),
            )
            for number in range(5)
        )

    def stages(self) -> list[tuple[str, list[nn.Module]]]:
        return [(f"C{number}", [block]) for number, block in enumerate(self.blocks, start=1)]


def make_model(*, seed: int, has_norm: bool) -> RetinaNet:
    torch.manual_seed(seed)
    return RetinaNet(
        backbone=TinyBackbone(has_norm=has_norm),
        fpn=FPN(in_channels=TinyBackbone.channels, channels=WIDTH, p6_source="C5", p7_relu=True),
        head=Head(in_channels=WIDTH, num_classes=5, num_anchors=9, plan=PRESETS["lw-v3"], init="fan_in"),
        conventions=Conventions(input=InputRule(size=64)),
    )


def run(
    out: Path, source: Path, settings: dict[str, Any], world: World, *, has_norm: bool, sabotage: Callable[[], None] = lambda: None
) -> None:
    """Start a run, or go on with what is there."""
    torch.set_num_threads(1)
    records = Dataset.open(source).read("train")
    data = records
    if (out / "config.yaml").exists():
        # Other weights than at the start, so that what is not restored shows; but a run killed before its first save starts as it did.
        has_saved = bool(checkpoint.checkpoint_files(out / "checkpoints"))
        model = make_model(seed=os.getpid() if has_saved else 0, has_norm=has_norm)
        with RunFolder.reopened(out) as (folder, config, _):
            sabotage()
            train(model, data, config=config, folder=folder, world=world, resume=True)
        return
    config = Config.model_validate(settings).resolved()
    model = make_model(seed=0, has_norm=has_norm)
    if not world.is_main:
        train(model, data, config=config, folder=RunFolder(out), world=world)
        return
    with RunFolder.created(out, config, {}) as folder:
        sabotage()
        train(model, data, config=config, folder=folder, world=world)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sabotages() -> dict[str, Callable[[], None]]:
    """Ways to die inside the second save of an attempt; the first one is let through, so that every attempt gets ahead."""

    def nth(
        owner: Any, name: str, deed: Callable[..., Any], *, number: int = 2, matches: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        original, calls = getattr(owner, name), 0

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += matches(*args, **kwargs)
            if calls == number and matches(*args, **kwargs):
                return deed(original, *args, **kwargs)
            return original(*args, **kwargs)

        setattr(owner, name, wrapper)

    def half_written(original: Callable[..., Any], tensors: Any, path: Path, **options: Any) -> None:
        original(tensors, path, **options)
        os.truncate(path, path.stat().st_size // 2)
        die()

    def afterwards(original: Callable[..., Any], *args: Any) -> None:
        original(*args)
        die()

    def becomes(suffix: str) -> Callable[..., bool]:
        return lambda _, target: Path(target).name.startswith("step-") and Path(target).suffix == suffix

    def is_pruned(path: Path, **_: Any) -> bool:
        return path.name.startswith("step-") and path.suffix == ".safetensors"

    return {
        "before the file": lambda: nth(checkpoint, "save_tensors", die),
        "in the file": lambda: nth(checkpoint, "save_tensors", half_written),
        "before the disk has it": lambda: nth(os, "fsync", die, number=7),
        "before the checksum": lambda: nth(Path, "replace", die, matches=becomes(".sha256")),
        "before the name": lambda: nth(Path, "replace", die, matches=becomes(".safetensors")),
        "after the name": lambda: nth(Path, "replace", afterwards, matches=becomes(".safetensors")),
        "before pruning": lambda: nth(Path, "unlink", die, number=1, matches=is_pruned),
        "amid pruning": lambda: nth(Path, "unlink", afterwards, number=1, matches=is_pruned),
    }


def attempt(out: Path, source: Path, settings: dict[str, Any], sabotage: Callable[[], None], delay: float | None, *, lines: int = 0) -> int:
    """One attempt in a process of its own, killed ``delay`` seconds after it has logged ``lines``; its exit status, -9 if it was killed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run(out, source, settings, World(), has_norm=True, sabotage=sabotage)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if delay is not None:
        log = out / "log.jsonl"
        wanted = lines + (len(log.read_text().splitlines()) if log.exists() else 0)
        while lines and (not log.exists() or len(log.read_text().splitlines()) < wanted) and Path(f"/proc/{child}/fd").exists():
            time.sleep(0.01)
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)  # one that is done already does not mind
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def digest(out: Path) -> str:
    """Of everything in the newest checkpoint: weights, average, optimiser."""
    found = checkpoint.load_latest(out / "checkpoints")
    assert found is not None
    sha = hashlib.sha256()
    for name, tensor in sorted(found.tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode())
    return sha.hexdigest()


def kill_often(out: Path, source: Path, settings: dict[str, Any], kills: int) -> dict[str, Any]:
    """One unbroken run, and one that is killed so many times at random moments, half of them while it goes on from the kill before."""
    settings["data"]["workers"] = 0
    assert attempt(out / "unbroken", source, settings, lambda: None, None) == 0
    settings["data"]["workers"] = 2
    dice = random.Random(1)
    statuses = [
        attempt(out / "killed", source, settings, lambda: None, dice.uniform(0, 0.1), lines=dice.choice((0, 1, 2)) if number < 10 else 0)
        for number in range(kills)
    ]
    statuses.append(attempt(out / "killed", source, settings, lambda: None, None))
    log = [json.loads(line)["step"] for line in (out / "killed" / "log.jsonl").read_text().splitlines()]
    return {"statuses": statuses, "logged": log, "digests": [digest(out / "unbroken"), digest(out / "killed")]}


def storm(out: Path, source: Path, settings: dict[str, Any], worker_counts: list[int]) -> dict[str, Any]:
    """One unbroken run, then for each number of workers one that is killed at every point of a save and at random moments."""
    settings["data"]["workers"] = 0
    started = time.monotonic()
    assert attempt(out / "unbroken", source, settings, lambda: None, None) == 0
    duration = time.monotonic() - started
    report: dict[str, Any] = {"unbroken": digest(out / "unbroken"), "runs": []}
    dice = random.Random(0)
    for workers in worker_counts:
        settings["data"]["workers"] = workers
        path, killed, is_done = out / f"workers {workers}", [], False
        # Early moments first, so that steps are left for the points of a save; of the last ones some may come after the end.
        plan: list[tuple[str, Callable[[], None], float | None]]
        plan = [("any moment", lambda: None, dice.uniform(0, duration * 0.15)) for _ in range(2)]
        plan += [(*point, None) for point in sabotages().items()]
        plan += [("any moment", lambda: None, dice.uniform(0, duration * 0.5)) for _ in range(3)]
        plan.append(("none", lambda: None, None))
        for name, sabotage, delay in plan:
            status = attempt(path, source, settings, sabotage, delay)
            if status == 0:
                is_done = True
                break
            if status != -signal.SIGKILL:
                break
            killed.append(name)
        log = [json.loads(line)["step"] for line in (path / "log.jsonl").read_text().splitlines()]
        files = sorted(child.name for folder in (path, path / "checkpoints") for child in folder.iterdir() if child.is_file())
        report["runs"].append(
            {
                "workers": workers,
                "killed": killed,
                "points": list(sabotages()),
                "is_done": is_done,
                "digest": digest(path),
                "logged": log,
                "files": files,
            }
        )
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["run", "storm", "kill"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--kills", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.command == "run":
        with joined_world(torch.device("cpu")) as world:
            run(arguments.out, arguments.data, arguments.settings, world, has_norm=False)
        return
    if arguments.command == "kill":
        report = kill_often(arguments.out, arguments.data, arguments.settings, arguments.kills)
    else:
        report = storm(arguments.out, arguments.data, arguments.settings, arguments.workers)
    (arguments.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
