"""What CONTRIBUTING.md shows is what the tests run."""

import re
from pathlib import Path

import pytest

import lw_retinanet

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"<!-- from (\S+) -->\n```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.mark.parametrize(("file", "code"), EXAMPLES, ids=[file for file, _ in EXAMPLES])
def test_examples_come_from_tests(file: str, code: str) -> None:
    # One of them is the text of a module inside the test, where the backslash of a line break is doubled.
    assert code in (ROOT / file).read_text(encoding="utf-8").replace(r"\\n", r"\n")


def test_all_three_are_there() -> None:
    assert [file for file, _ in EXAMPLES] == [
        "tests/test_add_block.py",
        "tests/data/formats/test_add_format.py",
        "tests/exporting/test_add_target.py",
    ]


def test_the_map_names_every_package_and_no_other() -> None:
    package = Path(lw_retinanet.__file__).parent
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    rows = [line.split("|")[1] for line in TEXT.splitlines() if line.startswith("| ") and "`" in line.split("|")[1]]
    named = {name for row in rows for name in re.findall(r"`(\w+)/`", row)}
    assert named == packages
    assert all((package / name).is_file() for row in rows for name in re.findall(r"`(\w+\.py)`", row))
