"""Which class each row of a foreign class predictor is: by the file itself, by the number of its rows, or by the caller's list."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Category
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.weights.foreign.coco_classes import COCO_CLASSES, COCO_IDS, TORCHVISION_COCO_ROWS
from lw_retinanet.weights.foreign.stated import stated_categories
from lw_retinanet.weights.foreign.weights_format import WeightsFormat

_NAME_FILES = (".txt", ".names")


@dataclass(frozen=True, kw_only=True)
class GivenClasses:
    """Classes that the caller gave.

    Args:
        categories: The classes in order; their ids are 0..K-1 where only names were given.
        has_ids: Whether the ids are those of a data set.
        where: What the classes were read from, for messages.
    """

    categories: tuple[Category, ...]
    has_ids: bool
    where: str


@dataclass(frozen=True, kw_only=True)
class ClassRows:
    """What the rows of a class predictor mean.

    Args:
        rows: The rows that become classes, in the order of the labels.
        categories: The class of each of ``rows``.
        source: How the classes are known: from the caller, from the file, from the number of rows, or not at all.
        note: Which rows were left out and what was assumed, for people.
    """

    rows: tuple[int, ...]
    categories: tuple[Category, ...]
    source: Literal["caller", "file", "number of COCO's rows", "unknown"]
    note: str


def read_classes(classes: str | Path | Sequence[str] | Sequence[Category]) -> GivenClasses:
    """Read the classes that a caller gives.

    Args:
        classes: Names or categories; or text: names between commas, a ``.txt`` or ``.names`` file with a name on each line, or a data set.

    Raises:
        InputError: For a file that cannot be read, for no names, or for a name that is given twice.
        DataError: For a data set that cannot be read.
    """
    if isinstance(classes, str | Path):
        return _read_text(str(classes))
    if all(isinstance(item, Category) for item in classes):
        return _checked([item for item in classes if isinstance(item, Category)], True, "the list of classes")
    return _named([str(item) for item in classes], "the list of classes")


def _read_text(text: str) -> GivenClasses:
    path = Path(text)
    try:
        is_there = path.exists()
    except (OSError, ValueError):  # a long list of names is too long for a file name
        is_there = False
    if is_there and path.is_file() and path.suffix.lower() in _NAME_FILES:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise InputError(f"the classes in {path} cannot be read; give a UTF-8 text file with one name on each line") from None
        return _named([line.strip() for line in lines if line.strip()], str(path))
    if is_there and (path.is_dir() or path.suffix):
        dataset = Dataset.open(path)
        records = dataset.read(next(iter(dataset.splits), None))  # any split will do: they share their classes
        return _checked(list(records.categories), True, str(path))
    if "," not in text and ("/" in text or "\\" in text or path.suffix.lower() in (*_NAME_FILES, ".json", ".yaml", ".yml", ".csv")):
        raise InputError(
            f"classes {text}: there is no such file; give names between commas, a file with one name on each line, or a data set"
        )
    return _named([name.strip() for name in text.split(",")], "the list of classes")


def _named(names: Sequence[str], where: str) -> GivenClasses:
    return _checked([Category(id=number, name=name) for number, name in enumerate(names)], False, where)


def _checked(categories: list[Category], has_ids: bool, where: str) -> GivenClasses:
    names = [category.name for category in categories]
    if not names or not all(names):
        raise InputError(f"{where} holds {'an empty name' if names else 'no classes'}; give at least one name")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{where} names {twice!r} twice; every class needs a name of its own")
    return GivenClasses(categories=tuple(categories), has_ids=has_ids, where=where)


def assign_classes(num_rows: int, layout: WeightsFormat, given: GivenClasses | None, where: str) -> tuple[ClassRows, GivenClasses | None]:
    """Decide which class each row is.

    Args:
        num_rows: Number of class rows of an anchor.
        layout: Format of the file.
        given: Classes from the caller, if there are any.
        where: Name of the file, for messages.

    Returns:
        The meaning of the rows; and ``given`` again if it asks for other classes than the rows have, else None.

    Raises:
        WeightsError: If only ``given`` could name the rows, and its length fits none of the usual layouts; or if what the file itself says
            about its classes cannot be true, and nothing is given.
    """
    own = _classes_of_file(num_rows, layout, where, is_decisive=given is None)
    if given is None:
        return own, None
    if own.source == "file":
        return own, given
    is_coco = own.source == "number of COCO's rows"
    if is_coco and len(given.categories) == len(own.categories) and not _rows_are_ids(given, num_rows):
        ids = [category.id for category in (given if given.has_ids else own).categories]
        categories = tuple(Category(id=i, name=c.name, supercategory=c.supercategory) for i, c in zip(ids, given.categories, strict=True))
        return ClassRows(rows=own.rows, categories=categories, source="caller", note=own.note), None
    named = _name_rows(num_rows, layout, given)
    if named is not None:
        return named, None
    if is_coco:
        return own, given
    fitting = f"{num_rows - 1} (row 0 being the background) or {num_rows}" if layout.has_background_row else str(num_rows)
    raise WeightsError(f"{given.where} gives {len(given.categories)} classes, but the file has {num_rows} class rows; give {fitting} names")


def _classes_of_file(num_rows: int, layout: WeightsFormat, where: str, *, is_decisive: bool) -> ClassRows:
    """What the rows mean without a list from the caller; contradictions are an error only if there is none."""
    every, named = tuple(range(num_rows)), layout.categories
    try:
        stated = stated_categories(layout.statements, num_rows, where, has_background_row=layout.has_background_row)
    except WeightsError:
        if is_decisive:
            raise
        stated = None
    if stated is not None:
        rows = every[num_rows - len(stated) :]
        left_out = "; row 0, the background, is left out" if len(rows) < num_rows else ""
        note = f"the file names {len(stated)} classes ({layout.statements.names_where}){left_out}"
        return ClassRows(rows=rows, categories=stated, source="file", note=note)
    if named is not None and len(named) == num_rows:
        return ClassRows(rows=every, categories=named, source="file", note=f"the file names {num_rows} classes")
    if layout.has_background_row and num_rows == TORCHVISION_COCO_ROWS:
        note = "91 rows are COCO's ids 0 to 90; the rows of the background and of 10 unused ids are left out"
        return ClassRows(rows=COCO_IDS, categories=COCO_CLASSES, source="number of COCO's rows", note=note)
    if not layout.has_background_row and num_rows == len(COCO_CLASSES):
        return ClassRows(rows=every, categories=COCO_CLASSES, source="number of COCO's rows", note="80 rows are taken for COCO's")
    note = "the file does not name its classes; give their names as classes"
    if named is not None:
        note = f"the file names {len(named)} classes for {num_rows} rows, which cannot be true; give their names as classes"
    if layout.has_background_row:
        note += "; row 0 may be the background"
    categories = tuple(Category(id=number, name=f"class_{number}") for number in every)
    return ClassRows(rows=every, categories=categories, source="unknown", note=note)


def _rows_are_ids(given: GivenClasses, num_rows: int) -> bool:
    """Whether the largest id is that of the last row, so that ids count rows."""
    ids = [category.id for category in given.categories]
    return given.has_ids and all(isinstance(i, int) and i >= 0 for i in ids) and max(i for i in ids if isinstance(i, int)) + 1 == num_rows


def _name_rows(num_rows: int, layout: WeightsFormat, given: GivenClasses) -> ClassRows | None:
    categories = given.categories
    if given.has_ids and all(isinstance(category.id, int) for category in categories):
        # Programs that read COCO annotations number the classes in the order of their ids.
        categories = tuple(sorted(categories, key=lambda category: int(category.id)))
    rows, note = tuple(range(num_rows)), f"as {given.where} names them"
    if layout.has_background_row and _rows_are_ids(given, num_rows):
        rows = tuple(int(category.id) for category in categories)
        left_out = num_rows - len(rows)
        note = f"rows are the ids of {given.where}" + (f"; {left_out} rows of other ids are left out" if left_out else "")
    elif layout.has_background_row and len(categories) + 1 == num_rows:
        rows, note = rows[1:], f"{note}; row 0, the background, is left out"
        if not given.has_ids:
            categories = tuple(Category(id=row, name=category.name) for row, category in zip(rows, categories, strict=True))
    elif len(categories) != num_rows:
        return None
    return ClassRows(rows=rows, categories=categories, source="caller", note=note)


def with_known_ids(given: GivenClasses, known: Sequence[Category]) -> tuple[Category, ...]:
    """Return the given classes; where only names were given and ``known`` has all of them, with the ids that they have there."""
    by_name = {category.name: category for category in known}
    if given.has_ids or not all(category.name in by_name for category in given.categories):
        return given.categories
    return tuple(by_name[category.name] for category in given.categories)
