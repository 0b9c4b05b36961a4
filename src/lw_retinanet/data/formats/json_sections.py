"""The lists of a large JSON object in batches, so that the whole tree is never in memory."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from lw_retinanet.data.formats.annotation_format import read_text
from lw_retinanet.errors import DataError

_BATCH = 16384
_after_element = re.compile(r"[ \t\n\r]*([,\]])[ \t\n\r]*").match
_skip_space = re.compile(r"[ \t\n\r]*").match


def iterate_sections(path: Path) -> Iterator[tuple[str, list[object] | None]]:
    """Walk through the top-level object of a JSON file.

    Yields:
        (key, batch of elements) for each list of the object, at least once a list, with an empty batch for an empty list; (key, None)
        for any other value.

    Raises:
        DataError: if the file is not one JSON object, or if a key appears twice; the message has line and column.
    """
    text = read_text(path)
    try:
        yield from _walk(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}; repair or export it again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: JSON nested too deeply; this is not an annotation file") from error
    except ValueError as error:  # a number of more than some thousand digits
        raise DataError(f"{path}: malformed JSON: {error}") from error


def _walk(text: str) -> Iterator[tuple[str, list[object] | None]]:
    decode = json.JSONDecoder().raw_decode

    def after_space(position: int) -> int:
        match = _skip_space(text, position)
        return position if match is None else match.end()

    def expect(position: int, characters: str) -> int:
        if text[position : position + 1] not in characters or position >= len(text):
            raise json.JSONDecodeError(f"expected {' or '.join(map(repr, characters))}", text, position)
        return position

    seen: set[str] = set()
    position = expect(after_space(0), "{")
    closing = after_space(position + 1)
    if text[closing : closing + 1] == "}":
        position = closing
    while text[position] != "}":
        position = expect(after_space(position + 1), '"')
        key, end = decode(text, position)
        if key in seen:
            raise json.JSONDecodeError(f"the key {key!r} appears twice", text, position)
        seen.add(key)
        position = after_space(expect(after_space(end), ":") + 1)
        if text[position : position + 1] != "[":
            _, end = decode(text, position)
            yield key, None
        else:
            batch: list[object] = []
            position = after_space(position + 1)
            is_open = text[position : position + 1] != "]"
            while is_open:
                element, end = decode(text, position)
                batch.append(element)
                mark = _after_element(text, end)  # one match an element, since there are a million of them
                if mark is None:
                    expect(after_space(end), ",]")
                    raise AssertionError("neither a comma nor a bracket")
                is_open, position = mark[1] == ",", mark.end() if mark[1] == "," else mark.start(1)
                if len(batch) == _BATCH and is_open:
                    yield key, batch
                    batch = []
            yield key, batch
            end = position + 1
        position = expect(after_space(end), ",}")
    if after_space(position + 1) != len(text):
        raise json.JSONDecodeError("more text after the end", text, after_space(position + 1))
