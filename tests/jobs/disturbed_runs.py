"""Training runs that something happens to, each in a process of its own: a program, since only the main thread of one gets signals.

``disturbed_runs.py OUT DATA`` forks for every run, so that torch is imported once, and writes ``OUT/report.json``.
"""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lw_retinanet.cli import main as cli
from lw_retinanet.data.loader import Key, TrainingSet
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

    def start(self, deed: Deed | None = None, settings: Mapping[str, object] = MappingProxyType({}), *, resume: bool = False) -> int:
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
        "folder_deleted": folder_deleted(place("folder deleted")),
    }
    (out / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
