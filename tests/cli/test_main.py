import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet import __version__
from lw_retinanet.cli.main import _joined_size
from lw_retinanet.errors import TrainingError


def entry_point(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "lw_retinanet", *map(str, arguments)], capture_output=True, text=True)


def test_version_and_help(cli: Any) -> None:
    assert cli("--version").out == f"lw-retinanet {__version__}\n"
    listed = cli("--help")
    assert listed.code == 0
    for command in ("quickstart", "profile", "data", "train", "convert", "lighten", "evaluate", "compare", "predict"):
        assert command in listed.out
        assert cli(command, "--help").code == 0


def test_no_command_shows_what_there_is(cli: Any) -> None:
    outcome = cli()
    assert "Usage: lw-retinanet" in outcome.out + outcome.err


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["trian"], ["trian", "--help"]),
        (["predict"], ["model", "--help"]),
        (["predict", "a.safetensors"], ["sources"]),
        (["train", "--wrong", "3"], ["--wrong"]),
        (["profile", "lw-v3", "--classes", "many"], ["--classes", "integer"]),
        (["profile", "lw-v3", "--classes", "0"], ["--classes", "1"]),
        (["predict", "a.safetensors", "b.jpg", "--score", "1.5"], ["--score", "below 1, or best"]),
        (["data", "convert", "x", "--to", "pascal", "--out", "y"], ["pascal", "voc"]),
    ],
)
def test_bad_usage_is_one_line(cli: Any, arguments: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = cli.refuses(*arguments, unchanged=tmp_path).lower()
    assert all(part in line for part in parts)


def test_the_entry_point_returns_the_code_and_shows_no_traceback(tmp_path: Path) -> None:
    refused = entry_point("train", tmp_path / "gone", "--set", "train.epochs=1")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert refused.stderr == f"error: data set {tmp_path / 'gone'} does not exist; check the path\n"
    debugged = entry_point("--debug", "train", tmp_path / "gone")
    assert debugged.returncode == 1
    assert "Traceback" in debugged.stderr


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (TrainingError("the loss is\nnot finite"), 1, "error: the loss is not finite\n"),
        (ZeroDivisionError("a bug\nof ours"), 1, "error: unexpected ZeroDivisionError: a bug; --debug shows where\n"),
        (ZeroDivisionError(), 1, "error: unexpected ZeroDivisionError: no message; --debug shows where\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_failures_are_told_from_mistakes(cli: Any, error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("lw_retinanet.jobs.profile.profile", fail)
    outcome = cli("profile", "lw-v3")
    assert (outcome.code, outcome.err) == (code, line)


def test_two_sides_are_one_value() -> None:
    assert _joined_size(["profile", "--size", "600", "800", "lw-v3"]) == ["profile", "--size", "600 800", "lw-v3"]
    assert _joined_size(["profile", "--size", "600", "lw-v3"]) == ["profile", "--size", "600", "lw-v3"]
    assert _joined_size(["--size", "-1", "800"]) == ["--size", "-1 800"]
    assert _joined_size(["a", "--size"]) == ["a", "--size"]
