"""A CSV table of boxes -> `Records`: one box a line, pixels, as RetinaNet projects and DeepForest write it."""

import csv
import math
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from lw_retinanet.data.builder import MAX_COORDINATE, build_records
from lw_retinanet.data.image_root import find_root, is_safe_name, root_candidates
from lw_retinanet.data.image_sizes import measure_sizes
from lw_retinanet.data.json_sections import read_text
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_ALIASES: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "filename", "file_name"),
    "label": ("label", "class", "name"),
    "split": ("split",),
    **{side: (side,) for side in _SIDES},
}


def columns(header: Sequence[str]) -> dict[str, int] | None:
    """Column numbers by our names, ``split`` only if present; None if the line is not the header of a table of boxes."""
    names = [name.strip().lower() for name in header]
    places = {ours: next((names.index(alias) for alias in aliases if alias in names), None) for ours, aliases in _ALIASES.items()}
    split = places.pop("split")
    found = {name: place for name, place in places.items() if place is not None}
    if len(found) != len(places):
        return None
    return found if split is None else {**found, "split": split}


def split_names(path: Path) -> tuple[str, ...]:
    """The values of the table's ``split`` column in order of appearance, () if it has none."""
    _, place, rows = _rows(path)
    if "split" not in place:
        return ()
    return tuple(dict.fromkeys(row[place["split"]].strip() for _, row in rows if len(row) > place["split"] and row[place["split"]].strip()))


def read_csv(path: Path, root: Path | None = None, *, split: str | None = None, problems: Problems | None = None) -> Records:
    """Read a table with the columns image (or image_path), xmin, ymin, xmax, ymax, label and optionally split.

    An image without objects is a line with empty coordinates, or with four zeros, as DeepForest writes it. Classes are sorted by name
    and get the ids 1..K, images 1..I in order of appearance; sizes come from the image headers.

    Args:
        path: the file.
        root: folder of the images; found by looking for the first few files if not given.
        split: keep only the lines of this split. The classes are those of the whole table, whatever the split.
        problems: collects what is wrong, and the entries concerned are left out. Without it the first kind of error is raised.

    Raises:
        DataError: if the file is no such table, or has errors and ``problems`` is not given.
    """
    found = Problems(path) if problems is None else problems
    width, place, rows = _rows(path)
    if split is not None and "split" not in place:
        raise DataError(f"{path}: no column 'split'; add one or leave the split out")
    images: dict[str, int] = {}
    image_of_box: list[int] = []
    boxes: list[list[float]] = []
    labels: list[str] = []
    class_names: set[str] = set()
    for line, row in rows:
        where = f"line {line}"
        if len(row) != width:
            found.add("malformed_annotation", f"{where}: {len(row)} fields instead of {width}")
            continue
        cells = {name: row[column].strip() for name, column in place.items()}
        box = _read_box(cells, where, found)
        if box is None:
            continue
        if box and not cells["label"]:
            found.add("malformed_annotation", f"{where}: a box without a label")
            continue
        if box:
            class_names.add(cells["label"])
        if split is not None and cells["split"] != split:
            continue
        name = cells["image"]
        if name not in images:
            if not is_safe_name(name):
                found.add("unsafe_path", f"{where}: {name!r}")
                continue
            images[name] = len(images)
        if box:
            image_of_box.append(images[name])
            boxes.append(box)
            labels.append(cells["label"])
    names = list(images)
    folder = find_root(names, root_candidates(path)) if root is None else root
    sizes_hw = measure_sizes(folder, names, found)
    if problems is None:
        found.raise_errors()
    classes = sorted(class_names)
    label_of = {name: label for label, name in enumerate(classes)}
    return build_records(
        root=folder,
        file_names=names,
        sizes_hw=sizes_hw,
        image_of_box=image_of_box,
        boxes_xywh=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=[label_of[label] for label in labels],
        categories=[Category(id=label + 1, name=name) for label, name in enumerate(classes)],
    )


def _rows(path: Path) -> tuple[int, dict[str, int], list[tuple[int, list[str]]]]:
    """Number of columns, their places, and (line number, fields) of every line that is not blank."""
    text = read_text(path)
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter(text))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}; repair or export it again") from error
    header = rows[0][1] if rows else []
    place = columns(header)
    if place is None:
        raise DataError(f"{path}: the first line must name the columns image,xmin,ymin,xmax,ymax,label, got {','.join(header)[:80]!r}")
    return len(header), place, rows[1:]


def delimiter(text: str) -> str:
    """The separator of a table: the semicolon of some spreadsheets if the first line has one, the comma otherwise."""
    first = text[:4096].lstrip().split("\n", 1)[0]
    return ";" if ";" in first and "," not in first else ","


def _read_box(cells: Mapping[str, str], where: str, problems: Problems) -> list[float] | None:
    """x, y, width, height; an empty list for an image without objects; None (and counted) if unusable."""
    texts = [cells[side] for side in _SIDES]
    if not any(texts):
        return []
    try:
        xmin, ymin, xmax, ymax = map(float, texts)
    except ValueError:
        problems.add("malformed_box", f"{where}: {', '.join(texts)}")
        return None
    if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        problems.add("non_finite_box", f"{where}: {', '.join(texts)}")
        return None
    if xmin == ymin == xmax == ymax == 0:
        return []
    return [xmin, ymin, xmax - xmin, ymax - ymin]
