"""Parts of pages that are generated from the program when the site is built, so that they cannot be out of date.

A page says with ``<!-- generated: NAME -->`` where the part goes; ``PARTS`` lists the names.
"""

import re
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any, cast

import typer.main
from sphinx.application import Sphinx
from typer.cli import get_docs_for_click

import lw_retinanet
from lw_retinanet.cli.main import app as program
from lw_retinanet.serving.app import build_app
from lw_retinanet.serving.settings import ServeSettings

_PLACE = re.compile(r"^<!-- generated: (\w+) -->$", flags=re.MULTILINE)


def commands() -> str:
    """A section for each command: what it does, its arguments and its options."""
    command = typer.main.get_command(program)
    name = "lw-retinanet"
    text = get_docs_for_click(obj=command, ctx=command.context_class(command, info_name=name), name=name)
    sections = text[text.index("\n## ") :].replace("* `--help`: Show this message and exit.\n", "")
    return sections.replace("[^", r"\[^")  # a regular expression in a help text is no footnote


def functions() -> str:
    """Every public function, from its docstring."""
    return _autodoc("autofunction", lambda entry: isinstance(entry, FunctionType))


def classes() -> str:
    """Every public class with its methods, from its docstrings."""
    return _autodoc("autoclass", lambda entry: isinstance(entry, type), "   :members:")


def _autodoc(directive: str, wanted: Callable[[Any], bool], *options: str) -> str:
    names = [name for name in lw_retinanet.__all__ if wanted(getattr(lw_retinanet, name))]
    entries = ["\n".join([f".. {directive}:: lw_retinanet.{name}", *options]) for name in names]
    return "\n".join(["```{eval-rst}", *entries, "```"]).replace("\n.. ", "\n\n.. ")


def http() -> str:
    """The routes of the service, from its OpenAPI description."""
    service = SimpleNamespace(settings=ServeSettings())
    routes = build_app(cast(Any, service)).app.openapi()["paths"]
    lines = []
    for path, methods in routes.items():
        for method, route in methods.items():
            lines += [f"### {method.upper()} {path}", route["description"], ""]
            parameters = [f"- query `{entry['name']}`: {entry['description']}" for entry in route.get("parameters", ())]
            bodies = [f"- body `{kind}`" for kind in route.get("requestBody", {}).get("content", ())]
            answers = [f"- {status}: {answer['description']}" for status, answer in route["responses"].items()]
            lines += [*parameters, *bodies, *answers, ""]
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "functions": functions, "classes": classes, "http": http}


def _fill(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = _PLACE.sub(lambda found: PARTS[found[1]](), source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
