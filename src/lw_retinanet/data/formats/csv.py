"""CSV tables of boxes, as RetinaNet projects and DeepForest write them."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import (
    CORNERS,
    WHOLE,
    AnnotationFormat,
    Files,
    Part,
    Parts,
    Sign,
    box_from_corners,
    existing_splits,
    read_text,
)
from lw_retinanet.data.formats.target_files import plain_objects, require_plain_class_names, target_names, without_details
from lw_retinanet.data.image_files import find_root, is_safe_name, root_candidates
from lw_retinanet.data.image_sizes import measure_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError

_ALIASES: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "filename", "file_name"),
    "label": ("label", "class", "name"),
    "split": ("split",),
    **{side: (side,) for side in CORNERS},
}


class Csv(AnnotationFormat):
    """A CSV table of boxes in pixels, a line each, with the columns image (or image_path), xmin, ymin, xmax, ymax, label, maybe split.

    An image without objects is a line with empty coordinates, or with four zeros, as DeepForest writes it. Classes are sorted by name
    and get the ids 1..K, those of the whole table whatever the split; images get 1..I in order of appearance. What is written has no
    crowd regions and no boxes without an area.
    """

    name = "csv"
    layouts = "a CSV table"
    takes_sizes_from_images = True

    def recognise_file(self, path: Path, head: str) -> Parts:
        """A table whose first line names the columns."""
        header = next(csv.reader([head.split("\n", 1)[0].strip()], delimiter=_delimiter(head)))
        if _columns(header) is None:
            return {}
        _, place, rows = _rows(path)
        splits = dict.fromkeys(row[place["split"]].strip() for _, row in rows if len(row) > place["split"]) if "split" in place else {}
        return {split: Part(format=self, path=path, split=split) for split in splits if split} or {WHOLE: Part(format=self, path=path)}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts | Path:
        """A table a split, or the only table there is."""
        if sign is not Sign.OWN_FILES:
            return {}
        by_split = existing_splits(folder, "{}.csv")
        if by_split:
            return {split: Part(format=self, path=path) for split, path in by_split.items()}
        files = sorted(folder.glob("*.csv"))
        return files[0] if len(files) == 1 else {}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a split is a value of the column ``split``."""
        lines = _Lines(problems)
        width, place, rows = _rows(path)
        if split is not None and "split" not in place:
            raise DataError(f"{path}: no column 'split'; add one or leave the split out")
        for line, row in rows:
            if len(row) != width:
                problems.add("malformed_annotation", f"line {line}: {len(row)} fields instead of {width}")
            else:
                lines.add({name: row[column].strip() for name, column in place.items()}, f"line {line}", split)
        names = list(lines.images)
        folder = find_root(names, root_candidates(path)) if root is None else root
        classes = sorted(lines.class_names)
        label_of = {name: label for label, name in enumerate(classes)}
        return build_records(
            root=folder,
            file_names=names,
            sizes_hw=measure_sizes(folder, names, problems),
            image_of_box=lines.image_of_box,
            boxes_xywh=np.array(lines.boxes, dtype=np.float64).reshape(-1, 4),
            labels=[label_of[label] for label in lines.labels],
            categories=[Category(id=label + 1, name=name) for label, name in enumerate(classes)],
        )

    def holds(self, records: Records) -> NDArray[np.bool_]:
        """Objects with an area."""
        return plain_objects(records)

    def kept(self, splits: Mapping[str, Records]) -> dict[str, Records]:
        """Boxes and names of the classes that have any."""
        return without_details(splits, self.holds)

    def files(self, splits: Mapping[str, Records]) -> Files:
        """``annotations.csv`` with a column ``split``, and ``images/``."""
        require_plain_class_names(splits, "CSV")
        names = target_names(splits)
        odd = next((name for own in names.values() for name in own if name != name.strip()), None)
        if odd is not None:
            raise DataError(f"the file name {odd!r} has outer spaces, which a table does not keep; rename the file")
        images = {f"images/{name}": records.path(row) for split, records in splits.items() for row, name in enumerate(names[split])}
        return {"annotations.csv": partial(self._text, splits, names), **images}

    def _text(self, splits: Mapping[str, Records], names: Mapping[str, list[str]]) -> Iterator[bytes]:
        yield _csv_line("image", *CORNERS, "label", "split")
        for split, records in splits.items():
            keep = self.holds(records)
            for row, name in enumerate(names[split]):
                rows = records.rows(row)
                boxes, labels = records.boxes(row)[keep[rows]].tolist(), records.labels[rows][keep[rows]].tolist()
                for box, label in zip(boxes, labels, strict=True):
                    yield _csv_line(name, *map(repr, box), records.class_names[label], split)
                if not boxes:
                    yield _csv_line(name, "", "", "", "", "", split)


class _Lines:
    """Images, boxes and classes of the lines read so far."""

    def __init__(self, problems: Problems) -> None:
        self.problems = problems
        self.images: dict[str, int] = {}
        self.image_of_box: list[int] = []
        self.boxes: list[list[float]] = []
        self.labels: list[str] = []
        self.class_names: set[str] = set()

    def add(self, cells: Mapping[str, str], where: str, split: str | None) -> None:
        texts = [cells[corner] for corner in CORNERS]
        box: list[float] | None = []  # of an image without objects
        if any(texts):
            box = box_from_corners(texts, where, self.problems)
            if box is None:
                return
            if not any(box):  # as DeepForest writes an image without objects
                box = []
        if box and not cells["label"]:
            self.problems.add("malformed_annotation", f"{where}: a box without a label")
            return
        if box:
            self.class_names.add(cells["label"])
        if split is not None and cells["split"] != split:
            return
        name = cells["image"]
        if name not in self.images:
            if not is_safe_name(name):
                self.problems.add("unsafe_path", f"{where}: {name!r}")
                return
            self.images[name] = len(self.images)
        if box:
            self.image_of_box.append(self.images[name])
            self.boxes.append(box)
            self.labels.append(cells["label"])


def _csv_line(*cells: str) -> bytes:
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _columns(header: Sequence[str]) -> dict[str, int] | None:
    """Column numbers by our names, ``split`` only if present; None if the line is not the header of a table of boxes."""
    names = [name.strip().lower() for name in header]
    places = {ours: next((names.index(alias) for alias in aliases if alias in names), None) for ours, aliases in _ALIASES.items()}
    split = places.pop("split")
    found = {name: place for name, place in places.items() if place is not None}
    if len(found) != len(places):
        return None
    return found if split is None else {**found, "split": split}


def _rows(path: Path) -> tuple[int, dict[str, int], list[tuple[int, list[str]]]]:
    """Number of columns, their places, and (line number, fields) of every line that is not blank."""
    text = read_text(path)
    reader = csv.reader(StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}; repair or export it again") from error
    header = rows[0][1] if rows else []
    place = _columns(header)
    if place is None:
        raise DataError(f"{path}: the first line must name the columns image,xmin,ymin,xmax,ymax,label, got {','.join(header)[:80]!r}")
    return len(header), place, rows[1:]


def _delimiter(text: str) -> str:
    """The separator of a table: the semicolon of some spreadsheets if the first line has one, the comma otherwise."""
    first = text[:4096].lstrip().split("\n", 1)[0]
    return ";" if ";" in first and "," not in first else ","


FORMAT = Csv()
