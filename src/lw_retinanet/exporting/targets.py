"""The table of export targets. To add one, write its class in a file of this package and add a row here.

This module imports no target until one is used, so that the command line can name them in its help without delay.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from lw_retinanet.errors import ConfigError, nearest

if TYPE_CHECKING:
    from pathlib import Path

    from lw_retinanet.exporting.target import ExportedRuntime


class TargetRow(NamedTuple):
    """One row of :data:`TARGETS`.

    Args:
        module: Full name of the module.
        name: Name of the class in it, a :class:`~lw_retinanet.exporting.target.ExportedRuntime`.
        what: What is written, for the help.
    """

    module: str
    name: str
    what: str


TARGETS: Mapping[str, TargetRow] = {
    "onnx": TargetRow("lw_retinanet.exporting.onnx", "OnnxRuntime", "a .onnx file"),
    "openvino": TargetRow("lw_retinanet.exporting.openvino", "OpenVinoRuntime", "a .xml file with its weights beside it, .bin"),
    "triton": TargetRow("lw_retinanet.exporting.triton", "TritonRepository", "a new folder around an ONNX file that gives boxes"),
}


def target_class(format_name: str) -> "type[ExportedRuntime]":
    """The class that writes a format.

    Raises:
        ConfigError: If there is no such format.
    """
    if format_name not in TARGETS:
        raise ConfigError(f"format {format_name}: expected {', '.join(TARGETS)}{nearest(format_name, TARGETS)}")
    row = TARGETS[format_name]
    found: type[ExportedRuntime] = getattr(import_module(row.module), row.name)
    return found


def target_classes() -> "dict[str, type[ExportedRuntime]]":
    """All classes by the format that they write."""
    return {format_name: target_class(format_name) for format_name in TARGETS}


def format_of(out: "Path") -> str:
    """The first format whose files have the suffix of a path.

    Raises:
        ConfigError: If there is none.
    """
    for format_name, target in target_classes().items():
        if out.suffix == target.suffix:
            return format_name
    raise ConfigError(f"{out}: no format writes such a file; name the format: {', '.join(TARGETS)}")
