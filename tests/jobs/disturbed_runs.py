"""Training runs that something happens to, each in a process of its own: a program, since only the main thread of one gets signals.

``disturbed_runs.py OUT DATA`` forks for every run, so that torch is imported once, and writes ``OUT/report.json``.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from lw_retinanet.cli import main as cli
from lw_retinanet.config import Config
from lw_retinanet.data.loader import Key, TrainingSet
from lw_retinanet.data.records import Category, build_records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.jobs import train as train_job
from lw_retinanet.jobs.detect_together import detect_together
from lw_retinanet.training.distributed import joined_world
from lw_retinanet.training.trainer import Trainer

PATIENCE = 120.0
SETTINGS = {
    "model.backbone": "mobilenet_v2",
    "model.head_width": 16,
    "data.image_size": 64,
    "train.batch_size": 2,
    "train.steps": 6,
    "train.save_every": 1000,
    "train.precision": "fp32",
}
Deed = Callable[[], None]


def wait_for(condition: Callable[[], bool]) -> bool:
    limit = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > limit:
            return False
        time.sleep(0.02)
    return True


def in_session(leader: int) -> list[int]:
    """Processes of a session that live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def digest(model_file: Path) -> str:
    """Of the weights alone: the header tells the settings, which differ in the number of workers."""
    content = model_file.read_bytes() if model_file.is_file() else b""
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


class Place:
    """The folder of one run and what lies beside it."""

    def __init__(self, out: Path, data: Path, name: str) -> None:
        self.run, self.data = out / name, data
        self.ready, self.done = out / f"{name}.ready", out / f"{name}.done"
        self._errors = -1

    def start(
        self,
        deed: Deed | None = None,
        settings: Mapping[str, object] = MappingProxyType({}),
        *,
        resume: bool = False,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> int:
        """Fork a process that trains; ``deed`` is called in it before. Its process id."""
        values = {**SETTINGS, **settings}
        new = ["train", str(self.data), "--out", str(self.run), *(p for key, value in values.items() for p in ("--set", f"{key}={value}"))]
        self._errors, descriptor = os.pipe()  # a file would be among those that may not grow
        child = os.fork()
        if child:
            os.close(descriptor)
            return child
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            os.dup2(descriptor, 2)
            os.dup2(descriptor, 1)
            os.environ.update(environment)
            if deed:
                deed()
            sys.argv = ["lw-retinanet", *(["train", "--resume", str(self.run)] if resume else new)]
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException as error:  # as the interpreter would
            sys.stderr.write(f"Traceback: {error!r}\n")
        finally:
            sys.stderr.flush()
            os._exit(code)

    def end(self, child: int) -> dict[str, Any]:
        """Wait for the run's end; what is left of it. The exit code is negative if a signal ended it; None if it had to be killed."""
        status: list[int] = []

        def is_over() -> bool:
            pid, found = os.waitpid(child, os.WNOHANG)
            status.extend([found] if pid else [])
            return bool(pid)

        if not wait_for(is_over):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        is_alone = wait_for(lambda: not in_session(child))
        with os.fdopen(self._errors, errors="replace") as stream:
            errors = stream.read() if is_alone else ""
        checkpoints = self.run / "checkpoints"
        return {
            "code": os.waitstatus_to_exitcode(status[0]) if status else None,
            "is_alone": is_alone,
            "errors": errors,
            "checkpoints": sorted(path.stem for path in checkpoints.glob("step-*.safetensors")) if checkpoints.is_dir() else [],
            "scraps": [str(path) for path in self.run.rglob("*") if ".part" in path.name or path.name.startswith(".tmp")],
        }

    def resumed(self) -> dict[str, Any]:
        """Resume the run, and see what it comes to."""
        found = self.end(self.start(resume=True))
        log = [json.loads(line) for line in (self.run / "log.jsonl").read_text().splitlines()]
        return {
            **found,
            "weights": digest(self.run / "model.safetensors"),
            "steps": [entry["step"] for entry in log if "loss" in entry],
        }

    def wait_in_step(self, number: int, meanwhile: Deed = lambda: None) -> Deed:
        """A deed: in step ``number``, say so and wait until the parent has done something."""

        def deed() -> None:
            step = Trainer.step

            def waiting(trainer: Trainer, *args: Any, **options: Any) -> Any:
                if trainer.done == number - 1:
                    meanwhile()
                    self.ready.touch()
                    wait_for(self.done.exists)
                return step(trainer, *args, **options)

            Trainer.step = waiting  # type: ignore[assignment, method-assign]

        return deed

    def hang_on(self, index: int) -> Deed:
        """A deed: the loader worker that reads an image waits there."""

        def deed() -> None:
            load = TrainingSet.load

            def hanging(dataset: TrainingSet, key: Key) -> Any:
                if key.index == index:
                    self.ready.write_text(str(os.getpid()))
                    wait_for(lambda: False)
                return load(dataset, key)

            TrainingSet.load = hanging  # type: ignore[assignment, method-assign]

        return deed


def signalled(place: Place, number: int, *, group: bool, settings: Mapping[str, object]) -> dict[str, Any]:
    """A run that gets a signal in its third step."""
    child = place.start(place.wait_in_step(3), settings)
    wait_for(place.ready.exists)
    (os.killpg if group else os.kill)(child, number)
    place.done.touch()
    before = time.monotonic()
    found = place.end(child)
    return {**found, "seconds": time.monotonic() - before}


def signalled_twice(place: Place) -> dict[str, Any]:
    """A run whose third step does not end, and that gets one signal after the other."""
    child = place.start(place.wait_in_step(3), {"data.workers": 2})
    wait_for(place.ready.exists)

    def is_over() -> bool:
        os.kill(child, signal.SIGTERM)
        time.sleep(0.3)
        return not Path(f"/proc/{child}/stat").exists() or Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"

    wait_for(is_over)
    return place.end(child)


def worker_killed(place: Place) -> dict[str, Any]:
    """A run whose loader worker is killed while it reads image 5."""
    child = place.start(place.hang_on(5), {"data.workers": 2})
    wait_for(lambda: place.ready.exists() and place.ready.read_text() != "")
    os.kill(int(place.ready.read_text()), signal.SIGKILL)
    return place.end(child)


def limited(size: int) -> Deed:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk(place: Place) -> dict[str, Any]:
    """A run that can write no large file from its fifth step on."""
    place.done.touch()
    return place.end(place.start(place.wait_in_step(5, limited(2**20)), {"data.workers": 0, "train.save_every": 2}))


def full_log(place: Place) -> dict[str, Any]:
    """A run whose log can grow no more from the third step on."""
    place.done.touch()
    return place.end(place.start(place.wait_in_step(3, lambda: limited((place.run / "log.jsonl").stat().st_size + 10)())))


def folder_deleted(place: Place) -> dict[str, Any]:
    """A run whose folder is deleted in its third step."""
    place.done.touch()
    return place.end(place.start(place.wait_in_step(3, lambda: shutil.rmtree(place.run))))


def damaged(place: Place) -> dict[str, Any]:
    """A finished run that is resumed after somebody has damaged its newest checkpoint, the log, and more."""
    newest = place.run / "checkpoints" / "step-00000006.safetensors"
    newest.unlink()
    newest.mkdir()
    (place.run / "log.jsonl").write_bytes(b'\xff\xfe\n5\n{}\n{"step": "x"}\n' + b"[" * 100_000 + b"\n")
    (place.run / "model.safetensors").unlink()
    return place.resumed()


ONE_AS_MANY = {
    # SGD, since Adam divides rounding errors by gradients that are next to nothing, and a low rate, since they grow from step to step.
    # Jitter gives each image another size.
    **{"model.norm": "group", "data.augment": "jitter", "data.workers": 0, "train.optimiser": "sgd", "train.rate": 0.0002},
    **{"train.ema": 0, "train.steps": 8, "train.save_every": 2},
}


def ranks_of(place: Place, number: int) -> list[tuple[Place, dict[str, str]]]:
    """For each process of a run, a place of its own with the same folder, and what torchrun would put into its environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(number):
        mine = Place(place.run.parent, place.data, f"{place.run.name} rank {rank}")
        mine.run = place.run
        common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append((mine, {"RANK": str(rank), "LOCAL_RANK": str(rank), **common}))
    return ranks


def together(place: Place, number: int, settings: Mapping[str, object], *, resume: bool = False) -> dict[str, Any]:
    """An undisturbed run of several processes."""
    ranks = ranks_of(place, number)
    children = [mine.start(settings=settings, resume=resume, environment=environment) for mine, environment in ranks]
    return {
        "ranks": [mine.end(child) for (mine, _), child in zip(ranks, children, strict=True)],
        "weights": digest(place.run / "model.safetensors"),
    }


def rank_lost(place: Place, number: int) -> dict[str, Any]:
    """A run of two processes, the second of which is killed (SIGKILL) or asked to end (SIGTERM) in its third step."""
    ranks = ranks_of(place, 2)
    settings = {**ONE_AS_MANY, "train.batch_size": 3}
    (first, environment), (second, other) = ranks
    children = [
        first.start(settings=settings, environment=environment),
        second.start(second.wait_in_step(3), settings, environment=other),
    ]
    wait_for(second.ready.exists)
    os.kill(children[1], number)
    before = time.monotonic()
    second.done.touch()
    ends = [mine.end(child) for (mine, _), child in zip(ranks, children, strict=True)]
    return {"ranks": ends, "seconds": time.monotonic() - before}


def shares(place: Place, number: int) -> list[Any]:
    """What several processes gather of their shares, and what they take for the precision that is chosen."""

    class Numbered(Detector):
        """In an image with one red value, as many detections as that says."""

        def __init__(self, categories: tuple[Category, ...]) -> None:
            self.categories = categories

        def predict_arrays(self, images: Any, **_: Any) -> Any:
            counts = [int(image[0, 0, 0]) for image in images]
            return [
                Result(
                    file=None,
                    image=image,
                    boxes=np.array([[0, 0, row + 1, 5] for row in range(count)], np.float32).reshape(-1, 4),
                    scores=np.linspace(0.9, 0.5, count, dtype=np.float32),
                    labels=np.zeros(count, np.int64),
                    categories=self.categories,
                )
                for image, count in zip(images, counts, strict=True)
            ]

    place.run.mkdir()
    for name, count in zip("abcd", (2, 0, 3, 1), strict=True):
        Image.new("RGB", (16, 8), (count, 0, 0)).save(place.run / f"{name}.png")
    records = build_records(
        root=place.run,
        file_names=["a.png", "b.png", "c.png", "d.png"],
        sizes_hw=[(8, 16)] * 4,
        image_of_box=[0],
        boxes_xywh=[(0, 0, 4, 4)],
        labels=[0],
        categories=[Category(id=1, name="one")],
    )
    answers = []
    children = []
    for rank, (_, environment) in enumerate(ranks_of(place, number)):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.environ.update(environment)
                mock.patch.object(train_job, "choose_precision", return_value="bf16" if rank else "fp32").start()
                with joined_world(torch.device("cpu")) as world:
                    found = detect_together(Numbered(records.categories), records, world)
                    chosen = train_job.with_chosen_precision(Config().resolved(), world, None).train.precision
                rows = [found.image.tolist(), found.boxes_xywh[:, 2].tolist(), found.scores.round(4).tolist()]
                os.write(writing, json.dumps([rows, chosen]).encode())
            finally:
                os._exit(0)
        os.close(writing)
        children.append((child, reading))
    for child, reading in children:
        with os.fdopen(reading) as stream:
            answers.append(json.loads(stream.read() or "null"))
        os.waitpid(child, 0)
    return answers


def main() -> None:
    """Run everything."""
    out, data = Path(sys.argv[1]), Path(sys.argv[2])

    def place(name: str) -> Place:
        return Place(out, data, name)

    whole, ended = place("whole"), place("sigterm")
    whole.end(whole.start(settings={"data.workers": 0, "train.save_every": 5}))
    report = {
        "whole": digest(whole.run / "model.safetensors"),
        # To the whole group, as systemd and SLURM do; with the process that scores, too.
        "sigterm": signalled(ended, signal.SIGTERM, group=True, settings={"data.workers": 2, "train.evaluate_every": 1}),
        "sigterm_resumed": ended.resumed(),
        "sigint": signalled(place("sigint"), signal.SIGINT, group=True, settings={"data.workers": 2}),
        "sighup": signalled(place("sighup"), signal.SIGHUP, group=False, settings={"data.workers": 0}),
        "twice": signalled_twice(place("twice")),
        "worker_killed": worker_killed(place("worker killed")),
        "worker_hangs": (hung := place("worker hangs")).end(hung.start(hung.hang_on(5), {"data.workers": 2, "data.read_timeout": 3})),
        "full_disk": full_disk(place("full disk")),
        "damaged": damaged(whole),
        "full_log": full_log(place("full log")),
        **{
            f"together_{number}": together(place(f"together {number}"), number, {**ONE_AS_MANY, "train.batch_size": 6 // number})
            for number in (1, 2, 3)
        },
        "rank_killed": rank_lost(place("rank killed"), signal.SIGKILL),
        "rank_ended": rank_lost(place("rank ended"), signal.SIGTERM),
        "rank_ended_resumed": together(place("rank ended"), 2, {}, resume=True),
        "shares": {str(number): shares(place(f"shares {number}"), number) for number in (1, 3)},
        "folder_deleted": folder_deleted(place("folder deleted")),
    }
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
