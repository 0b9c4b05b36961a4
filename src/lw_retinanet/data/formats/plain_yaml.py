"""YAML whose words stay the text that was written."""

from pathlib import Path
from typing import TypeAlias

import yaml

from lw_retinanet.data.problems import shortened
from lw_retinanet.errors import DataError

_MOST_NODES = 1_000_000
YamlValue: TypeAlias = "str | list[YamlValue] | dict[str, YamlValue] | None"
_resolver = yaml.resolver.Resolver()


def read_mapping(path: Path, text: str) -> dict[str, YamlValue]:
    """A YAML mapping whose values are text as it was written, lists and mappings of such, and None for null and nothing.

    YAML's own types would turn the class names ``no``, ``010`` and ``2024-02-31`` into False, 8 and an error.

    Raises:
        DataError: if it is not YAML, or has tags, merge keys, or more nodes than a data file can have.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = _plain_value(node, [_MOST_NODES]) if node is not None else None
    except yaml.MarkedYAMLError as error:
        line = f" line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise DataError(f"{path}{line}: malformed YAML: {shortened(str(error.problem))}; repair the file") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: malformed YAML: {shortened(str(error).splitlines()[0])}; repair the file") from error
    except RecursionError:
        raise DataError(f"{path}: YAML nested too deeply, or an alias of itself; this is not a data file") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: no 'names'; a YOLO data file lists its classes under 'names' and its images under 'train' and 'val'")
    return value


def _plain_value(node: yaml.Node | yaml.ScalarNode, budget: list[int]) -> YamlValue:
    """The value of a node. ``budget`` holds how many more nodes may come: aliases of aliases can stand for billions."""
    budget[0] -= 1
    if budget[0] < 0:
        raise yaml.MarkedYAMLError(problem=f"more than {_MOST_NODES:,} values, or aliases of aliases", problem_mark=node.start_mark)
    if isinstance(node, yaml.CollectionNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag[:60]}", problem_mark=node.start_mark)
    if isinstance(node, yaml.MappingNode):
        pairs = [(key, _plain_value(value, budget)) for key, value in node.value]
        odd = next((key for key, _ in pairs if not isinstance(key, yaml.ScalarNode) or key.value == "<<"), None)
        if odd is not None:
            raise yaml.MarkedYAMLError(problem="a key that is no plain word", problem_mark=odd.start_mark)
        return {key.value: value for key, value in pairs}
    if isinstance(node, yaml.SequenceNode):
        return [_plain_value(value, budget) for value in node.value]
    implied = _resolver.resolve(yaml.ScalarNode, node.value, (getattr(node, "style", None) is None, True))
    if node.tag not in (implied, "tag:yaml.org,2002:str"):
        raise yaml.MarkedYAMLError(problem=f"the tag {node.tag[:60]}", problem_mark=node.start_mark)
    return None if node.tag.endswith(":null") else str(node.value)
