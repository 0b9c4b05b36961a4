"""Commands of this program in processes that start at once: they are forked from one that has imported everything.

That one runs this module as a program. It reads a line of JSON for each request from its input, and answers with one. It computes nothing
itself, since a process with computing threads must not be forked.
"""

import importlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lw_retinanet.errors import LwRetinaNetError

_PROGRAM = "lw_retinanet.cli.main"
_IMPORTED = ("lw_retinanet.jobs.train", "torch.utils.tensorboard", "matplotlib.backends.backend_agg", _PROGRAM)
_LOOK_EVERY_SECONDS = 0.02
_PATIENCE_SECONDS = 60.0


class CommandServer:
    """Starts commands. Used as a context manager, which ends all that still run."""

    def __init__(self) -> None:
        self._folder = Path()
        self._server: subprocess.Popen[bytes] | None = None
        self._started: list[RunningCommand] = []

    def __enter__(self) -> Self:
        return self

    def begin(self) -> None:
        """Start the server, which then imports while the caller does something else. The first command starts it, too."""
        if self._server is not None:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="lw-retinanet-commands-"))
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        command = [sys.executable, "-m", __spec__.name]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def __exit__(self, *_: object) -> None:
        """End everything."""
        for command in self._started:
            if command.poll() is None:
                command.kill()
        if self._server:
            self._server.kill()
            self._server.communicate()
            shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, arguments: Sequence[str]) -> "RunningCommand":
        """Start a command with these arguments."""
        self.begin()
        errors = self._folder / f"{len(self._started)}.txt"
        process = self.ask({"run": list(arguments), "errors": str(errors)})
        self._started.append(RunningCommand(server=self, process=process, errors=errors))
        return self._started[-1]

    def ask(self, request: dict[str, Any]) -> Any:
        """The answer to a request.

        Raises:
            LwRetinaNetError: If the server is gone.
        """
        server = self._server
        assert server
        assert server.stdin
        assert server.stdout
        try:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())
        except (OSError, ValueError):
            raise LwRetinaNetError(f"the process that starts commands ended with {server.poll()}; try again") from None


@dataclass(frozen=True, kw_only=True)
class RunningCommand:
    """A command that was started.

    Args:
        server: What started it.
        process: Its number.
        errors: The file of its error output.
    """

    server: CommandServer
    process: int
    errors: Path

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        code: int | None = self.server.ask({"poll": self.process})
        return code

    def kill(self) -> None:
        """Kill it as ``kill -9`` does, and wait until it is gone."""
        self.server.ask({"kill": self.process})
        self.end(_PATIENCE_SECONDS)

    def end(self, seconds: float) -> tuple[int, str]:
        """Wait for its end; the exit code and the error output.

        Raises:
            LwRetinaNetError: If it takes longer.
        """
        limit = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > limit:
                raise LwRetinaNetError(f"a command did not end within {seconds:.0f} s")
            time.sleep(_LOOK_EVERY_SECONDS)
        return code, self.errors.read_text(errors="replace").strip()


def main() -> None:
    """Be the server, until the input ends."""
    for name in _IMPORTED:
        importlib.import_module(name)
    commands: dict[int, subprocess.Popen[bytes] | _Forked] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer: int | None = None
        if "run" in request:
            begin = _Forked if hasattr(os, "fork") else _launched
            command = begin(request["run"], Path(request["errors"]))
            commands[command.pid], answer = command, command.pid
        elif "poll" in request:
            answer = commands[request["poll"]].poll()
        elif commands[request["kill"]].poll() is None:
            commands[request["kill"]].kill()
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def _launched(arguments: Sequence[str], errors: Path) -> "subprocess.Popen[bytes]":
    """Where nothing can be forked, as on Windows."""
    with errors.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", _PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stream
        )


class _Forked:
    """A forked process, used as a ``Popen``."""

    def __init__(self, arguments: Sequence[str], errors: Path) -> None:
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _be(arguments, errors)

    def poll(self) -> int | None:
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if found else None
        return self._code

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def _be(arguments: Sequence[str], errors: Path) -> None:
    """In a forked process: be the command."""
    code = 1
    try:
        with errors.open("wb") as stream, Path(os.devnull).open("r+b") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(nothing.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        sys.argv = ["lw-retinanet", *arguments]
        runpy.run_module(_PROGRAM, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
