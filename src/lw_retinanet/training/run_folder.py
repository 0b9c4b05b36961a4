"""The folder of a run: its lock, settings, log, and the paths of all else."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import yaml

from lw_retinanet.config import Config, load_run_config, parse_config
from lw_retinanet.errors import OutputError, RunFolderError
from lw_retinanet.files import leftovers, not_written, write_text
from lw_retinanet.locks import lock_file

log = logging.getLogger(__name__)


class RunFolder:
    """Paths and small files of a run. :meth:`created` starts a run, :meth:`reopened` continues one.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.yaml"
        self.log_file = path / "log.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model_file = path / "model.safetensors"
        self.best_file = path / "best.safetensors"
        self.last_file = path / "last.safetensors"
        self.metrics_file = path / "metrics.json"
        self.tensorboard = path / "tensorboard"
        self.pictures = path / "pictures"

    @staticmethod
    def require_new(path: Path) -> None:
        """Check that a new run can have this folder.

        Raises:
            RunFolderError: if the folder is not empty.
        """
        if path.exists() and (not path.is_dir() or any(child.name != LOCK and child not in leftovers(path) for child in path.iterdir())):
            raise RunFolderError(f"{path} is not empty; choose another output folder, or resume the run that is in it")

    @classmethod
    @contextmanager
    def created(cls, path: Path, config: Config, notes: Mapping[str, Any]) -> Iterator[Self]:
        """A new run, whose folder is locked until the end of the context.

        Args:
            path: Folder that is empty or does not exist.
            config: Resolved settings, written to ``config.yaml``.
            notes: What else a resumed run must find unchanged: data path and fingerprint, number of processes.

        Raises:
            RunFolderError: if the folder is not empty.
        """
        cls.require_new(path)
        with locked(path):
            folder = cls(path)
            values = config.model_dump(mode="json")
            write_text(folder.config_file, yaml.safe_dump({**values, "run": dict(notes)}, sort_keys=False))
            yield folder

    @classmethod
    @contextmanager
    def reopened(cls, path: Path) -> Iterator[tuple[Self, Config, dict[str, Any]]]:
        """An earlier run, locked until the end of the context, with its settings and notes.

        Raises:
            RunFolderError: if there is no run, or another process works on it.
        """
        folder = cls(path)
        if not folder.config_file.is_file():
            raise RunFolderError(f"{path} holds no run (no config.yaml); start a new run")
        with locked(path):
            values, notes = load_run_config(folder.config_file)
            yield folder, parse_config(values, where=str(folder.config_file)), notes

    def log(self, entry: Mapping[str, Any]) -> None:
        """Append one line to ``log.jsonl``.

        Raises:
            DiskFullError: if there is no room.
            OutputError: if it cannot be written, for instance because the folder was deleted.
        """
        try:
            with self.log_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(entry)) + "\n")
        except OSError as error:
            raise not_written(self.log_file, error) from None

    def has_score(self, step: int) -> bool:
        """Whether an evaluation of the weights after ``step`` steps is logged completely."""
        return any(entry["step"] == step and "loss" not in entry for entry in read_log(self.log_file))

    def trim_log(self, step: int) -> None:
        """Drop what was logged after ``step``, so that a resumed run logs each step once.

        Raises:
            OutputError: if the log is a folder.
        """
        entries = read_log(self.log_file)
        missing = set(range(1, step + 1)) - {entry["step"] for entry in entries if "loss" in entry}
        if missing:
            log.warning("%s: %d of the steps 1 to %d are not in it any more; the curves lack them", self.log_file, len(missing), step)
        if self.log_file.exists():
            write_text(self.log_file, "".join(json.dumps(entry) + "\n" for entry in entries if entry["step"] <= step))


def read_log(log_file: Path) -> list[dict[str, Any]]:
    """The entries of a run's ``log.jsonl``, without a line that a killed run did not finish or that is no entry; none if there is no file.

    Raises:
        OutputError: if there is something else than a file.
    """
    try:
        lines = log_file.read_bytes().split(b"\n") if log_file.exists() else []
    except OSError as error:
        raise OutputError(f"{log_file}: the log cannot be read ({error.strerror}); move it away, and resume the run") from None
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            entry = json.loads(line)
            if isinstance(entry, dict) and type(entry.get("step")) is int:
                entries.append(entry)
    return entries


LOCK = ".lock"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from working in a folder, and remove temporary files that a killed one has left.

    Raises:
        InUseError: if another process works in it.
        OutputError: if it cannot be written to.
    """
    with lock_file(path / LOCK, where=f"the folder {path}"):
        for leftover in leftovers(path):
            leftover.unlink()
        yield
