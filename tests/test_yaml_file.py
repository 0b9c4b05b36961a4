import os
import time
from pathlib import Path
from typing import Any

import pytest

from lw_retinanet.errors import ConfigError, DataError, quoted, shown
from lw_retinanet.yaml_file import MOST_BYTES, parse_yaml, read_yaml

BOMB = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "line 5: .*repeat more than 10,000 values"),
        ("a: &a [1, *a]\n", "line 1: .*repeat more than"),
        ("a: " + "[" * 300 + "]" * 300, "nested more than 40 deep"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "nest"),
        ("a: 1\nb: 2024-99-99\n", "line 2: .*2024-99-99 is no timestamp that can be read; correct it or put it in quotes"),
        ("a: !!int abc", "abc is no int"),
        ("a: !!timestamp abc", "abc is no timestamp"),
        ("a: " + "9" * 5000, r"9\.\.\.9+ is no int"),
        ("a: !!python/object/apply:os.system [x]", "python/object"),
        ("a: {<<: 5}", "line 1"),
        ("a: [1\nb: 2", "line 2"),
        ("a: {b: 1, b: 2}", "the key b stands there twice; leave one out"),
        ("a: 1\0", "not valid YAML"),
        ("a: *nowhere", "undefined alias"),
    ],
)
def test_text_that_would_cost_memory_or_sense_ends_in_one_line_at_once(text: str, part: str) -> None:
    start = time.monotonic()
    with pytest.raises(ConfigError, match=part) as caught:
        parse_yaml(text, where="x.yaml")
    assert str(caught.value).startswith("x.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert time.monotonic() - start < 2


def test_what_people_write_is_read() -> None:
    text = "base: &base {rate: 1, steps: 5}\nmine: {<<: *base, steps: 6}\nlist: [&x 1, *x, *x]\nday: 2024-01-01\n"
    assert parse_yaml(text, where="")["mine"] == {"rate": 1, "steps": 6}
    assert parse_yaml(text, where="")["list"] == [1, 1, 1]


def test_the_remedy_for_a_date_and_for_a_repeated_key() -> None:
    assert parse_yaml("a: '2024-99-99'", where="") == {"a": "2024-99-99"}
    assert parse_yaml("a: {b: 2}", where="") == {"a": {"b": 2}}


def test_scalars_can_stay_the_text_that_was_written() -> None:
    text = "names: [no, yes, 08, 1e3, 2024-99-99, 1_0, 'a']\nnc: 7\nval:\ntest: ~\n"
    expected: dict[str, Any] = {"names": ["no", "yes", "08", "1e3", "2024-99-99", "1_0", "a"], "nc": "7", "val": None, "test": None}
    assert parse_yaml(text, where="", as_text=True) == expected


def test_files_that_are_none_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    with (tmp_path / "big").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    (tmp_path / "latin").write_bytes(b"\xe9")
    for name, part in (
        ("pipe", "no ordinary file"),
        ("zero", "no ordinary file"),
        ("loop", "Too many levels"),
        ("big", "larger than 4 MiB"),
        ("latin", "not UTF-8"),
        ("nothing", "No such file"),
    ):
        with pytest.raises(DataError, match=f"settings file .*{name}.*{part}"):
            read_yaml(tmp_path / name, what="settings file", error=DataError)


def test_shown_values_are_short_and_harmless() -> None:
    assert shown("red\x1b[31m\u202e") == "red\ufffd[31m\ufffd"
    assert len(shown("x" * 1_000_000)) == 80
    endless: list[object] = []
    endless.append(endless)
    assert quoted(endless) == "[[[[[[[...]]]]]]]"
    assert quoted("a") == "'a'"
    assert len(quoted({"k" * 10**5: list(range(10**6))})) <= 100
