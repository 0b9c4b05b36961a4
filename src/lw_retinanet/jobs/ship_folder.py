"""The folder of a shipment: what it was made from, and which steps are finished, so that an interrupted shipment goes on."""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from lw_retinanet.errors import RunFolderError, shown
from lw_retinanet.files import output_folder, write_text
from lw_retinanet.training.run_folder import LOCK

RECORD_FILE = "ship.json"
Facts = Mapping[str, Any]
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class ShipFolder:
    """A folder with a record of its steps.

    Args:
        path: The folder.
        made_from: What all of it is made from. A value that is a pair of a text and a checksum is compared by its checksum.
        steps: By name, a finished step: ``made_from``, ``command``, ``seconds``, ``result``.
    """

    path: Path
    made_from: Facts
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, made_from: Facts) -> Self:
        """A new folder, or that of an earlier call with the steps that it has recorded. Nothing is written.

        Raises:
            RunFolderError: If it holds something else, or was made from something else.
            OutputError: If it cannot be written to.
        """
        file = output_folder(path) / RECORD_FILE
        if not file.is_file():
            if path.exists() and any(one.name != LOCK for one in path.iterdir()):
                raise RunFolderError(f"{path} is not empty and holds no {RECORD_FILE}; choose another output folder")
            return cls(path=path, made_from=made_from)
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            before, steps = dict(record["made_from"]), dict(record["steps"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RunFolderError(f"{file} cannot be read ({type(error).__name__}); choose another output folder") from None
        changed = [
            f"{name}: {_text(before.get(name))} then, {_text(value)} now"
            for name, value in made_from.items()
            if _identity(before.get(name)) != _identity(value)
        ]
        if changed:
            raise RunFolderError(
                f"{path} was made from something else ({'; '.join(changed)}); choose another output folder, or the same again"
            )
        return cls(path=path, made_from=made_from, steps=steps)

    def begin(self) -> None:
        """Write the record, so that the folder is this shipment's from now on."""
        content = {"made_from": self.made_from, "steps": self.steps}
        write_text(self.path / RECORD_FILE, json.dumps(content, indent=1) + "\n")

    def step(self, name: str, command: str, made_from: Facts, work: Callable[[], Facts], *, files: tuple[Path, ...] = ()) -> Facts:
        """The result of a step: of an earlier call if that was made from the same and its files are there, else of ``work``.

        Args:
            name: Of the step.
            command: The command that does the same.
            made_from: What the result depends on beside what the folder is made from; plain values.
            work: Does it. Its result is plain values.
            files: What it leaves.
        """
        done = self.steps.get(name)
        if done and done["made_from"] == made_from and all(file.exists() for file in files):
            log.info("%s: done before", name)
            return dict(done["result"])
        log.info("%s: %s", name, command)
        started = time.monotonic()
        result = work()
        self.steps.pop(name, None)  # the record is in the order in which steps were done
        self.steps[name] = {"made_from": made_from, "command": command, "seconds": round(time.monotonic() - started, 1), "result": result}
        self.begin()
        return result


def _identity(value: Any) -> Any:
    return value[1] if isinstance(value, list | tuple) else value


def _text(value: Any) -> str:
    return shown(value[0] if isinstance(value, list | tuple) and value else value)
