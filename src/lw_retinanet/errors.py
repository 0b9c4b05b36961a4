"""What the library raises. Every message is one line that says what is wrong, where, and what to do."""

import difflib
import reprlib
from collections.abc import Iterable
from pathlib import PurePath

_VALUES = reprlib.Repr()
_VALUES.maxstring = _VALUES.maxother = _VALUES.maxlong = 80


class LwRetinaNetError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(LwRetinaNetError):
    """A setting, a file or a data set cannot be used. The command line ends with exit code 2."""


class ConfigError(InputError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another one."""


class DataError(InputError):
    """An annotation file or a data set cannot be used as it is."""


class ImageError(InputError):
    """An image is missing, too large, or cannot be decoded."""


class WeightsError(InputError):
    """A weights file cannot be read or does not fit the model."""


class OutputError(InputError):
    """A file cannot be written to the place that was asked for."""


class DiskFullError(LwRetinaNetError):
    """There is no room on the disk for a file."""


class RunFolderError(InputError):
    """A run folder is in use, already holds a run, or does not hold one."""


class InUseError(RunFolderError):
    """Another process works in the place."""


class MissingExtraError(InputError):
    """A feature needs an optional dependency that is not installed; the message names the extra."""


class TrainingError(LwRetinaNetError):
    """Training had to stop, for example because the loss is not finite."""


class ExportError(LwRetinaNetError):
    """An exported network does not give the model's detections, or loses more AP than is allowed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``; did you mean X?`` for the known name that is most like ``name``, or nothing if none is similar."""
    close = difflib.get_close_matches(name[:80], list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def shown(value: object, *, most: int = 80) -> str:
    """Text, or another value as Python writes it, fit for one line of a message: at most ``most`` printable characters."""
    text = value if isinstance(value, str) else _VALUES.repr(value)
    return printable(text if len(text) <= most else f"{text[: most - 20]}...{text[-17:]}")


def quoted(value: object) -> str:
    """The same with quotes around text, as Python writes it."""
    return shown(_VALUES.repr(value), most=100)


def printable(text: str | PurePath) -> str:
    """Text on one line, with a mark in place of each character that a terminal cannot show or obeys."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
