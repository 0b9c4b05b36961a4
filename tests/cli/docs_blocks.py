"""The code of the documentation's pages: fenced blocks, and commands wherever they stand."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_FENCE = re.compile(
    r"(?:^[ ]*<!-- (?P<mark>[^\n]*) -->\n)?^(?P<indent>[ ]*)```(?P<language>\w*)\n(?P<code>.*?)^[ ]*```$", flags=re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_INDENTED = re.compile(r"^    (lw-retinanet .*)$", flags=re.MULTILINE)
_SEPARATORS = ("&&", "||", "|", ";", "&", ">", ">>")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block. ``mark`` is the HTML comment in the line above it, or empty: ``slow``, or ``not run: REASON``."""

    language: str
    code: str
    mark: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            language=found["language"],
            code="".join(line.removeprefix(found["indent"]) for line in found["code"].splitlines(keepends=True)),
            mark=found["mark"] or "",
            line=text.count("\n", 0, found.start("code")) + 1,
        )
        for found in _FENCE.finditer(text)
    ]


def command_lines(code: str) -> Iterator[list[str]]:
    """The words of each simple command of a shell block, without comments, prompts and what follows a pipe on its own."""
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*_words(line.removeprefix("$ ")), ";"]:
            if word in _SEPARATORS:
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an apostrophe: no shell
        return line.split()


def our_arguments(words: list[str]) -> list[str] | None:
    """What a command passes to this program, also through ``torchrun``; None if it is another one."""
    for place, word in enumerate(words):
        if word.split("/")[-1] == "lw-retinanet" or (word in ("lw_retinanet", "lw_retinanet.cli.main") and words[place - 1] == "-m"):
            return words[place + 1 :]
    return None


def inline_code(page: Path) -> Iterator[str]:
    """Code inside sentences, and commands in indented lines."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    yield from _INDENTED.findall(text)
    yield from (" ".join(found.split()) for found in _INLINE.findall(_INDENTED.sub("", text)))
