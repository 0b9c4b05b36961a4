"""Reading YAML that anybody may have written: settings, experiments, and the data.yaml of a YOLO data set.

A few bytes of YAML can stand for more than any memory holds, and its types refuse numbers and dates with errors of their own.
Here every text that cannot be used ends in one line with the place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lw_retinanet.errors import ConfigError, InputError, printable, shown
from lw_retinanet.files import read_limited

MOST_BYTES = 4 << 20
MOST_DEPTH = 40
MOST_REPEATED = 10_000  # nodes that aliases repeat
_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster; wheels have it
_MERGE, _NULL = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:null"


class _Loader(_Base):
    """Gives the place of a value that its YAML type does not accept."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, AttributeError, TypeError, KeyError, OverflowError):  # 2024-99-99, !!int abc, 5,000 digits
            value = shown(node.value) if isinstance(node, yaml.ScalarNode) else "this"
            problem = f"{value} is no {node.tag.rsplit(':', 1)[-1]} that can be read; correct it or put it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


class _TextLoader(_Loader):
    """Leaves scalars as the text that was written; an empty one and ~ stay None."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own way)
        letter: [rule for rule in rules if rule[0] in (_MERGE, _NULL)] for letter, rules in _Base.yaml_implicit_resolvers.items()
    }


def read_yaml(path: Path, *, what: str, as_text: bool = False, error: type[InputError] = ConfigError) -> Any:
    """Read a YAML file.

    Args:
        path: The file, at most 4 MiB.
        what: What the file is, for the message.
        as_text: Leave ``no``, ``08`` and ``2024-01-01`` the text that was written.
        error: What is raised.

    Raises:
        InputError: One line with the place, of the type ``error``.
    """
    try:
        content = read_limited(path, MOST_BYTES)
    except OSError as problem:
        raise error(f"cannot read {what} {printable(path)}: {problem.strerror}") from None
    except InputError as problem:
        raise error(f"cannot read {what} {problem}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise error(f"{what} {printable(path)} is not UTF-8 text; save it as UTF-8") from None
    return parse_yaml(text, where=printable(path), as_text=as_text, error=error)


def parse_yaml(text: str, *, where: str, as_text: bool = False, error: type[InputError] = ConfigError) -> Any:
    """Parse the text of a YAML file, which ``where`` names in a message; see :func:`read_yaml`."""
    try:
        _require_modest(text)
        return (_TextLoader if as_text else _Loader)(text).get_single_data()
    except yaml.YAMLError as problem:
        mark = getattr(problem, "problem_mark", None) or getattr(problem, "context_mark", None)
        place = f"{where}, line {mark.line + 1}" if mark else where
        reason = getattr(problem, "problem", None) or getattr(problem, "reason", None) or "unreadable"
        raise error(f"{place}: not valid YAML ({shown(reason, most=200)})") from None


@dataclass(kw_only=True)
class _Open:
    """A list or mapping whose end is not reached."""

    anchor: str | None
    before: int  # nodes before it
    keys: set[str] | None  # of a mapping
    children: int = 0


def _require_modest(text: str) -> None:
    """Refuse text that is nested too deeply, repeats too much by aliases, or has a key twice. Nothing is built yet."""
    sizes: dict[str | None, int] = {}  # number of nodes that an anchor stands for
    repeated = count = 0
    stack: list[_Open] = []
    for event in yaml.parse(text, Loader=_Base):
        if isinstance(event, yaml.CollectionEndEvent):
            closed = stack.pop()
            sizes[closed.anchor] = count - closed.before
        if not isinstance(event, yaml.NodeEvent):
            continue
        if stack:
            _require_new_key(stack[-1], event)
        count += 1
        if isinstance(event, yaml.AliasEvent):
            endless = any(event.anchor == around.anchor for around in stack)
            size = MOST_REPEATED + 1 if endless else sizes.get(event.anchor, 0)
            repeated, count = repeated + size, count + size
            if repeated > MOST_REPEATED:
                raise _refused(f"its aliases (*{shown(event.anchor)}) repeat more than {MOST_REPEATED:,} values; write them out", event)
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(anchor=event.anchor, before=count, keys=set() if isinstance(event, yaml.MappingStartEvent) else None))
            if len(stack) > MOST_DEPTH:
                raise _refused(f"nested more than {MOST_DEPTH} deep", event)
        else:
            sizes[event.anchor] = 1


def _require_new_key(around: _Open, event: Any) -> None:
    around.children += 1
    if around.keys is not None and around.children % 2 and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        if event.value in around.keys:
            raise _refused(f"the key {shown(event.value)} stands there twice; leave one out", event)
        around.keys.add(event.value)


def _refused(problem: str, event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, event.start_mark)
