"""Which class a row of a foreign class predictor is: what the file says, what its count suggests, what people say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Category
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.weights.foreign.blueprint import Blueprint
from lw_retinanet.weights.foreign.coco_classes import COCO_CLASSES, COCO_IDS, TORCHVISION_COCO_ROWS

Ground = Literal["given", "named by the file", "COCO's by their number", "unknown"]
_NAME_FILES = (".txt", ".names")


@dataclass(frozen=True, kw_only=True)
class ClassList:
    """Classes that a person gave.

    Args:
        categories: in order; ids 0..K-1 where only names were given.
        has_ids: the ids are those of a data set.
        where: what they were read from, for messages.
    """

    categories: tuple[Category, ...]
    has_ids: bool
    where: str


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """What the rows of a predictor mean.

    Args:
        rows: rows that become classes, in the order of the labels.
        categories: one for each of ``rows``.
        ground: how this is known.
        note: what was left out, or assumed, for people.
    """

    rows: tuple[int, ...]
    categories: tuple[Category, ...]
    ground: Ground
    note: str


def read_class_list(classes: str | Path | Sequence[str] | Sequence[Category]) -> ClassList:
    """Read names or categories.

    Args:
        classes: names or categories; or text: names between commas, a ``.txt`` or ``.names`` file with a name a line, or a data set.

    Raises:
        InputError: for a file that cannot be read, no names, or one name twice.
        DataError: for a data set that cannot be read.
    """
    if isinstance(classes, str | Path):
        return _read_text(str(classes))
    if all(isinstance(item, Category) for item in classes):
        return _checked([item for item in classes if isinstance(item, Category)], True, "the list of classes")
    return _named([str(item) for item in classes], "the list of classes")


def _read_text(text: str) -> ClassList:
    path = Path(text)
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a long list is no file's name
        is_there = False
    if is_there and path.is_file() and path.suffix.lower() in _NAME_FILES:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"the classes in {path} cannot be read; give a UTF-8 text file with one name a line") from None
        return _named([line.strip() for line in lines if line.strip()], str(path))
    if is_there and (path.is_dir() or path.suffix):
        dataset = Dataset.open(path)
        records = dataset.read(next(iter(dataset.splits), None))  # any split will do: they share their classes
        return _checked(list(records.categories), True, str(path))
    if "," not in text and ("/" in text or "\\" in text or path.suffix.lower() in (*_NAME_FILES, ".json", ".yaml", ".yml", ".csv")):
        raise InputError(f"--classes {text}: there is no such file; give names between commas, a file with a name a line, or a data set")
    return _named([name.strip() for name in text.split(",")], "--classes")


def _named(names: Sequence[str], where: str) -> ClassList:
    return _checked([Category(id=number, name=name) for number, name in enumerate(names)], False, where)


def _checked(categories: list[Category], has_ids: bool, where: str) -> ClassList:
    names = [category.name for category in categories]
    if not names or not all(names):
        raise InputError(f"{where} holds {'an empty name' if names else 'no classes'}; give at least one name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where} names {twice!r} twice; every class needs a name of its own")
    return ClassList(categories=tuple(categories), has_ids=has_ids, where=where)


def usual_rows(num_rows: int, blueprint: Blueprint) -> ClassRows:
    """What the rows mean as far as the file itself goes."""
    named = blueprint.categories
    if named is not None and len(named) == num_rows:
        return ClassRows(
            rows=tuple(range(num_rows)), categories=named, ground="named by the file", note=f"the file names {num_rows} classes"
        )
    if blueprint.counts_background and num_rows == TORCHVISION_COCO_ROWS:
        note = "91 rows are COCO's ids 0 to 90; the rows of the background and of 10 unused ids are left out"
        return ClassRows(rows=COCO_IDS, categories=COCO_CLASSES, ground="COCO's by their number", note=note)
    if not blueprint.counts_background and num_rows == len(COCO_CLASSES):
        return ClassRows(
            rows=tuple(range(80)), categories=COCO_CLASSES, ground="COCO's by their number", note="80 rows are taken for COCO's"
        )
    note = "the file does not name its classes; give them with --classes"
    if named is not None:
        note = f"the file names {len(named)} classes for {num_rows} rows, which cannot be true; give them with --classes"
    if blueprint.counts_background:
        note += " (row 0 may be the background)"
    categories = tuple(Category(id=number, name=f"class_{number}") for number in range(num_rows))
    return ClassRows(rows=tuple(range(num_rows)), categories=categories, ground="unknown", note=note)


def assign_rows(num_rows: int, blueprint: Blueprint, given: ClassList | None) -> tuple[ClassRows, ClassList | None]:
    """What the rows mean, with what a person says.

    Returns:
        The meaning of the rows, and the list again if it asks for other classes than the rows have.

    Raises:
        WeightsError: if nothing but the list could name the rows, and its length fits none of the usual layouts.
    """
    usual = usual_rows(num_rows, blueprint)
    if given is None:
        return usual, None
    if usual.ground == "named by the file":
        return usual, given
    if usual.ground == "COCO's by their number" and len(given.categories) == len(usual.categories) and not _rows_are_ids(given, num_rows):
        ids = [category.id for category in (given if given.has_ids else usual).categories]
        categories = tuple(Category(id=i, name=c.name, supercategory=c.supercategory) for i, c in zip(ids, given.categories, strict=True))
        return ClassRows(rows=usual.rows, categories=categories, ground="given", note=usual.note), None
    named = _name_rows(num_rows, blueprint, given)
    if named is not None:
        return named, None
    if usual.ground == "COCO's by their number":
        return usual, given
    fitting = f"{num_rows - 1} (row 0 being the background) or {num_rows}" if blueprint.counts_background else str(num_rows)
    raise WeightsError(f"{given.where} gives {len(given.categories)} classes, but the file has {num_rows} class rows; give {fitting} names")


def _rows_are_ids(given: ClassList, num_rows: int) -> bool:
    ids = [category.id for category in given.categories]
    return given.has_ids and all(isinstance(i, int) and i >= 0 for i in ids) and max(i for i in ids if isinstance(i, int)) + 1 == num_rows


def _name_rows(num_rows: int, blueprint: Blueprint, given: ClassList) -> ClassRows | None:
    categories = given.categories
    ids = [category.id for category in categories]
    if given.has_ids and all(isinstance(i, int) for i in ids):
        # Every loader of COCO's form numbers classes in the order of their ids.
        categories = tuple(sorted(categories, key=lambda category: int(category.id)))
    if blueprint.counts_background and _rows_are_ids(given, num_rows):
        rows = tuple(int(category.id) for category in categories)
        left_out = num_rows - len(rows)
        note = f"rows are the ids of {given.where}" + (f"; {left_out} rows of other ids are left out" if left_out else "")
        return ClassRows(rows=rows, categories=categories, ground="given", note=note)
    if len(categories) == num_rows:
        return ClassRows(rows=tuple(range(num_rows)), categories=categories, ground="given", note=f"as {given.where} names them")
    if blueprint.counts_background and len(categories) + 1 == num_rows:
        rows = tuple(range(1, num_rows))
        if not given.has_ids:
            categories = tuple(Category(id=row, name=category.name) for row, category in zip(rows, categories, strict=True))
        note = f"as {given.where} names them; row 0, the background, is left out"
        return ClassRows(rows=rows, categories=categories, ground="given", note=note)
    return None


def with_known_ids(given: ClassList, known: Sequence[Category]) -> tuple[Category, ...]:
    """The given classes; where only names were given and all of them are known, with the ids that they have there."""
    ids: Mapping[str, Category] = {category.name: category for category in known}
    if given.has_ids or not all(category.name in ids for category in given.categories):
        return given.categories
    return tuple(ids[category.name] for category in given.categories)
