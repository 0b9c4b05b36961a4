"""A training of a second or two as a program of its own: for tests that kill it, and for torchrun.

``tiny_training.py run OUT DATA SETTINGS`` starts a run, or goes on with the one in OUT. ``tiny_training.py storm OUT DATA SETTINGS`` starts
runs and kills them, again and again, until they are done; ``kill`` does so a given number of times, and ``combine`` once for each
combination of settings. By hand, 200 kills in 10 runs, with a line for each run::

    python tests/training/tiny_training.py kill OUT DATA '{"train": {"batch_size": 2, "epochs": 12, "save_every": 2}}' --kills 20 --runs 10
"""

import argparse
import hashlib
import json
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lw_retinanet.config import Config, load_run_config, parse_config
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.errors import TrainingError
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.backbone import Backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.training import checkpoint
from lw_retinanet.training.distributed import World, joined_world
from lw_retinanet.training.loop import train
from lw_retinanet.training.run_folder import RunFolder
from lw_retinanet.training.step import Teacher
from lw_retinanet.training.trainer import Trainer

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
    out: Path,
    source: Path,
    settings: dict[str, Any],
    world: World,
    *,
    resume: bool,
    has_norm: bool,
    sabotage: Callable[[], None] = lambda: None,
    is_taught: bool = False,
) -> None:
    """Start a run, or go on with the one that is there."""
    torch.set_num_threads(1)
    teacher = Teacher(model=make_model(seed=7, has_norm=has_norm).eval()) if is_taught else None
    records = Dataset.open(source).read("train")
    data = records
    if resume:
        # Other weights than at the start, so that what is not restored shows; but a run killed before its first save starts as it did.
        has_saved = bool(checkpoint.checkpoint_files(out / "checkpoints"))
        model = make_model(seed=os.getpid() if has_saved else 0, has_norm=has_norm)
        with RunFolder.reopened(out) if world.is_main else nullcontext((RunFolder(out), None, None)) as (folder, found, _):
            config = found or parse_config(load_run_config(folder.config_file)[0])
            sabotage()
            train(model, data, config=config, folder=folder, world=world, resume=True, teacher=teacher)
        return
    config = Config.model_validate(settings).resolved()
    model = make_model(seed=0, has_norm=has_norm)
    if not world.is_main:
        sabotage()
        train(model, data, config=config, folder=RunFolder(out), world=world, teacher=teacher)
        return
    with RunFolder.created(out, config, {}) as folder:
        sabotage()
        train(model, data, config=config, folder=folder, world=world, teacher=teacher)


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


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When and what is killed: ``delay`` seconds after the run has logged ``lines``, the ``victim``: its process, the whole group, or one
    loader worker, without which the run ends by itself. Where there is no worker, the process is killed."""

    delay: float
    lines: int = 0
    victim: str = "process"


def attempt(out: Path, source: Path, settings: dict[str, Any], sabotage: Callable[[], None], kill: Kill | None) -> int:
    """One attempt in processes of its own; its exit status, -9 if it was killed, 1 if it ended with an error."""
    child = os.fork()
    if child == 0:
        os.setsid()
        status = 1
        try:
            run(out, source, settings, World(), resume=is_begun(out), has_norm=True, sabotage=sabotage)
            status = 0
        except TrainingError as error:
            sys.stderr.write(f"{error}\n")
        except BaseException:
            status = 2
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if kill is not None:
        while os.getsid(child) != child:  # before that there is no group to kill
            time.sleep(0.001)
        wanted = num_lines(out) + kill.lines
        while num_lines(out) < wanted and child in session(child):
            time.sleep(0.01)
        time.sleep(kill.delay)
        workers = [process for process in session(child) if process != child] if kill.victim == "worker" else []
        with suppress(ProcessLookupError):  # one that is done already does not mind
            if kill.victim == "group":
                os.killpg(child, signal.SIGKILL)
            else:
                os.kill((workers or [child])[-1], signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def is_begun(out: Path) -> bool:
    """Whether there is a run; one that was killed before it wrote its settings has not begun."""
    return (out / "config.yaml").exists()


def num_lines(out: Path) -> int:
    log = out / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.exists() else 0


def session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return sorted(found)


def digest(out: Path) -> str:
    """Of everything in the newest checkpoint: weights, average, optimiser."""
    found = checkpoint.load_latest(out / "checkpoints")
    assert found is not None
    sha = hashlib.sha256()
    for name, tensor in sorted(found.tensors.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.ndim else str(tensor.item()).encode())
    return sha.hexdigest()


def kill_often(out: Path, source: Path, settings: dict[str, Any], kills: int, seed: int = 1) -> dict[str, Any]:
    """One unbroken run, and one that is killed so many times at random moments, many of them while it goes on from the kill before."""
    settings["data"]["workers"] = 0
    assert attempt(out / "unbroken", source, settings, lambda: None, None) == 0
    settings["data"]["workers"] = 2
    dice, killed, victims, statuses = random.Random(seed), out / "killed", [], []
    for number in range(kills):
        is_far = num_lines(out / "unbroken") - num_lines(killed) > 15  # a run that ended could not be killed any more
        victims.append(("worker", "process", "group")[number % 3] if is_far else "process")
        # A worker is there for certain once a step has been logged.
        lines = max(dice.choice((0, 1, 2)), victims[-1] == "worker") if is_far else 0
        kill = Kill(delay=dice.uniform(0, 0.05 if is_far else 0.02), lines=lines, victim=victims[-1])
        statuses.append(attempt(killed, source, settings, lambda: None, kill))
    statuses.append(attempt(killed, source, settings, lambda: None, None))
    log = [json.loads(line)["step"] for line in (killed / "log.jsonl").read_text().splitlines()]
    digests = [digest(out / "unbroken"), digest(killed)]
    return {"victims": victims, "statuses": statuses, "logged": log, "digests": digests}


def combine(out: Path, source: Path, combinations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each combination of settings the digests of an unbroken run, and of one whose processes all died in its fourth step."""
    found = []
    for number, chosen in enumerate(combinations):
        whole, broken = out / f"{number} whole", out / f"{number} broken"
        train = {name: chosen[name] for name in ("accumulate", "ema", "precision")}
        train |= {"batch_size": 2, "steps": 6, "save_every": 2, "warmup_steps": 2}
        settings = {"data": {"workers": chosen["workers"]}, "train": train}
        how = {"processes": chosen["processes"], "is_taught": chosen["teacher"]}
        statuses = [
            *together(whole, source, settings, lambda: None, **how),
            *together(broken, source, settings, die_in_fourth_step, **how),
            *together(broken, source, settings, lambda: None, **how),
        ]
        logged = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
        found.append({"statuses": statuses, "digests": [digest(whole), digest(broken)], "steps": [line["step"] for line in logged]})
    return found


def die_in_fourth_step() -> None:
    step = Trainer.step

    def deadly(trainer: Trainer, *args: Any, **options: Any) -> Any:
        if trainer.done == 3:
            die()
        return step(trainer, *args, **options)

    Trainer.step = deadly  # type: ignore[assignment, method-assign]


def together(
    out: Path, source: Path, settings: dict[str, Any], sabotage: Callable[[], None], *, processes: int, is_taught: bool
) -> list[int]:
    """The exit statuses of all processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    resume, children = is_begun(out), []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            status = 1
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            try:
                with joined_world(torch.device("cpu")) as world:
                    run(out, source, settings, world, resume=resume, has_norm=True, sabotage=sabotage, is_taught=is_taught)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


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
        plan: list[tuple[str, Callable[[], None], Kill | None]]
        plan = [("any moment", lambda: None, Kill(delay=dice.uniform(0, duration * 0.15))) for _ in range(2)]
        plan += [(*point, None) for point in sabotages().items()]
        plan += [("any moment", lambda: None, Kill(delay=dice.uniform(0, duration * 0.5))) for _ in range(3)]
        plan.append(("none", lambda: None, None))
        for name, sabotage, kill in plan:
            status = attempt(path, source, settings, sabotage, kill)
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
    parser.add_argument("command", choices=["run", "storm", "kill", "combine"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("settings", type=json.loads)
    parser.add_argument("--workers", type=int, nargs="+", default=[0])
    parser.add_argument("--kills", type=int, default=5, help="of each run")
    parser.add_argument("--runs", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.command == "run":
        resume = is_begun(arguments.out)  # before the first process can have begun it
        with joined_world(torch.device("cpu")) as world:
            run(arguments.out, arguments.data, arguments.settings, world, resume=resume, has_norm=False)
        return
    report: Any
    if arguments.command == "kill":
        report = list[dict[str, Any]]()
        for number in range(arguments.runs):
            settings = {"data": {}, **arguments.settings}
            report.append(kill_often(arguments.out / str(number), arguments.data, settings, arguments.kills, seed=number))
            is_same = len(set(report[-1]["digests"])) == 1
            sys.stderr.write(f"run {number}: {dict(Counter(report[-1]['victims']))}, {'equal' if is_same else 'DIFFERENT'}\n")
    elif arguments.command == "combine":
        report = combine(arguments.out, arguments.data, arguments.settings)
    else:
        report = storm(arguments.out, arguments.data, arguments.settings, arguments.workers)
    (arguments.out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
