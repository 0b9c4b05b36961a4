"""CSV tables of boxes, as RetinaNet projects and DeepForest write them."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.formats.annotation_format import (
    CORNERS,
    SPLIT_FOLDERS,
    WHOLE,
    AnnotationFormat,
    Files,
    Part,
    Parts,
    Sign,
    box_from_corners,
    read_text,
)
from lw_retinanet.data.formats.other_tools import read_head
from lw_retinanet.data.formats.target_files import plain_objects, require_plain_class_names, target_names, without_details
from lw_retinanet.data.image_files import SUFFIXES, files_of, is_file, place_images, root_candidates, walk_images
from lw_retinanet.data.image_sizes import measure_sizes
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError, shown

_ALIASES: Mapping[str, Sequence[str]] = {
    "image": ("image", "image_path", "filename", "file_name", "image_name", "imageid", "image_id"),
    "label": ("label", "class", "name", "labelname", "class_name"),
    "xmin": ("xmin", "x1", "x_min"),
    "ymin": ("ymin", "y1", "y_min"),
    "xmax": ("xmax", "x2", "x_max"),
    "ymax": ("ymax", "y2", "y_max"),
}
_MAY_LACK: Mapping[str, Sequence[str]] = {
    "split": ("split",),
    "width": ("width", "image_width"),
    "height": ("height", "image_height"),
    "group": ("isgroupof",),
}
# The columns of tables without a header: keras-retinanet's, and SKU110K's with the image size.
_BARE = ("image", *CORNERS, "label")
_BARE_WITH_SIZE = (*_BARE, "width", "height")
_LONGEST_LINE = 10_000  # of a header
_WANTED = "the first line must name the columns image,xmin,ymin,xmax,ymax,label"
_LARGEST_FRACTION = 1.5  # a table without a larger coordinate is in fractions of the image: boxes of one pixel are of no use


class Csv(AnnotationFormat):
    """A CSV table of boxes, a line each, with the columns image, xmin, ymin, xmax, ymax, label, and maybe split.

    Other usual names of the columns are known (``image_path``, ``x1``, ``class``; Open Images' ``ImageID`` and ``LabelName``), and so is
    keras-retinanet's table without a header, with its table of classes beside it. Coordinates are pixels, or fractions of the image as
    in Open Images. An image without objects is a line with empty coordinates, or with four zeros, as DeepForest writes it. Classes are
    sorted by name and get the ids 1..K, those of the whole table whatever the split; images get 1..I in order of appearance. What is
    written has no crowd regions and no boxes without an area.
    """

    name = "csv"
    layouts = "a CSV table"
    takes_sizes_from_images = True

    def recognise_file(self, path: Path, head: str) -> Parts:
        """A table whose first line names the columns, or is a box itself."""
        header = next(csv.reader([re.split(r"[\r\n]", head, maxsplit=1)[0].strip()[:_LONGEST_LINE]], delimiter=_delimiter(head)), [])
        if "region_shape_attributes" in header:
            raise DataError(f"{path}: a table of VIA (VGG Image Annotator); choose Annotation, Export Annotations (COCO format) instead")
        if {"annotation_id", "lead_time"} <= set(header):
            raise DataError(f"{path}: a table of Label Studio, with its boxes as JSON; export as COCO, YOLO or Pascal VOC instead")
        if _columns(header) is None:
            if _is_near(header):
                raise DataError(f"{path}: a table of boxes with unknown columns: {_WANTED}, got {shown(','.join(header))!r}")
            return {}
        place, rows = _rows(path)
        splits = dict.fromkeys(row[place["split"]].strip() for _, row in rows if len(row) > place["split"]) if "split" in place else {}
        return {split: Part(format=self, path=path, split=split) for split in splits if split} or {WHOLE: Part(format=self, path=path)}

    def recognise_folder(self, folder: Path, sign: Sign) -> Parts | Path:
        """Roboflow's folders, a table a split, or the only table there is."""
        if sign is Sign.STRUCTURE:
            paths = {split: folder / split / "_annotations.csv" for split in SPLIT_FOLDERS}
            return {split: Part(format=self, path=path, root=path.parent) for split, path in paths.items() if is_file(path)}
        if sign is not Sign.OWN_FILES:
            return {}
        files = [path for path in files_of(folder, ".csv") if not _is_class_table(path)]
        by_split: dict[str, Path] = {}
        for path in files:
            words = [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in SPLIT_FOLDERS]
            if len(words) == 1:
                by_split.setdefault(words[0], path)
        if by_split:
            return {split: Part(format=self, path=by_split[split]) for split in SPLIT_FOLDERS if split in by_split}
        one_hot = next((folder / split / "_classes.csv" for split in SPLIT_FOLDERS if is_file(folder / split / "_classes.csv")), None)
        if one_hot is not None:
            raise DataError(f"{one_hot}: classes of whole images, without boxes; export an object detection format, such as COCO")
        return files[0] if len(files) == 1 else {}

    def parse(self, path: Path, root: Path | None, split: str | None, problems: Problems) -> Records:
        """See `AnnotationFormat.read`; a split is a value of the column ``split``."""
        lines = _Lines(problems)
        place, rows = _rows(path)
        if split is not None and "split" not in place:
            raise DataError(f"{path}: no column 'split'; add one or leave the split out")
        for line, row in rows:
            if len(row) != place["columns"]:
                problems.add("malformed_annotation", f"line {line}: {len(row)} fields instead of {place['columns']}")
            else:
                cells = {name: row[column].strip() for name, column in place.items() if name != "columns"}
                lines.add(cells, f"line {line}", split)
        folder, names = place_images(list(lines.images), root_candidates(path) if root is None else [root], problems)
        names = _with_suffixes(folder, names)
        sizes_hw = measure_sizes(folder, names, problems)
        lines.check_sizes(names, sizes_hw)
        boxes = np.array(lines.boxes, dtype=np.float64).reshape(-1, 4)
        if len(boxes) and np.abs(boxes[:, :2]).max() <= _LARGEST_FRACTION and (boxes[:, :2] + boxes[:, 2:]).max() <= _LARGEST_FRACTION:
            problems.add_many("fraction_box", len(boxes), (names[lines.image_of_box[row]] for row in range(len(boxes))))
            boxes *= np.tile(sizes_hw[lines.image_of_box][:, ::-1], 2)
        categories = _categories(path, lines.class_names)
        label_of = {category.name: label for label, category in enumerate(categories)}
        descriptions = _shown_names(path)
        return build_records(
            root=folder,
            file_names=names,
            sizes_hw=sizes_hw,
            image_of_box=lines.image_of_box,
            boxes_xywh=boxes,
            labels=[label_of[label] for label in lines.labels],
            is_crowd=lines.is_group,
            categories=[replace(category, name=descriptions.get(category.name, category.name)) for category in categories],
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
        self.sizes: dict[str, tuple[str, str]] = {}
        self.image_of_box: list[int] = []
        self.boxes: list[list[float]] = []
        self.labels: list[str] = []
        self.is_group: list[bool] = []
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
        if not name:
            self.problems.add("unsafe_path", f"{where}: {name!r}")
            return
        self.images.setdefault(name, len(self.images))
        if cells.get("width") and cells.get("height") and not (box and _same_number(cells["width"], box[2])):  # some give the box's
            self.sizes[name] = cells["width"], cells["height"]
        if box:
            self.image_of_box.append(self.images[name])
            self.boxes.append(box)
            self.labels.append(cells["label"])
            self.is_group.append(cells.get("group") == "1")

    def check_sizes(self, names: Sequence[str], sizes_hw: NDArray[np.int32]) -> None:
        """Compare the sizes of the images with those of the table: boxes of a resized image lie in the wrong places."""
        for written, row in self.images.items():
            height, width = sizes_hw[row].tolist()
            said = self.sizes.get(written)
            if said is not None and height and not (_same_number(said[0], width) and _same_number(said[1], height)):
                self.problems.add("size_mismatch", f"{names[row]}: {width} x {height}, annotated {said[0][:20]} x {said[1][:20]}")


def _same_number(text: str, number: float) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def _with_suffixes(folder: Path, names: list[str]) -> list[str]:
    """The names, with the suffix of the image file where the table gives ids without one, as Open Images does."""
    if not names or any(Path(name).suffix.lower() in SUFFIXES for name in names[:100]):
        return names
    found = {path.relative_to(folder).with_suffix("").as_posix(): path.relative_to(folder).as_posix() for path in walk_images(folder)}
    return [found.get(name, name) for name in names]


def _is_class_table(path: Path) -> bool:
    """keras-retinanet's table of classes (name, number), or Open Images' (code, name): two columns."""
    first = read_head(path).split("\n", 1)[0].strip()
    return first.count(",") == 1 or path.stem.lower() == "_classes"


def _categories(path: Path, names: Set[str]) -> list[Category]:
    """The classes of a table: with the numbers of keras-retinanet's table of classes if that lies beside it, else sorted."""
    for other in files_of(path.parent, ".csv"):
        if "class" in other.stem.lower() and other != path and "description" not in other.stem.lower():
            rows = [row for row in csv.reader(StringIO(read_text(other))) if row]
            numbers = {row[0].strip(): row[1].strip() for row in rows if len(row) == 2 and row[1].strip().isdecimal()}
            if names <= numbers.keys() and len({int(number) for number in numbers.values()}) == len(numbers):
                return sorted((Category(id=int(number), name=name) for name, number in numbers.items()), key=lambda one: int(one.id))
    return [Category(id=label + 1, name=name) for label, name in enumerate(sorted(names))]


def _shown_names(path: Path) -> dict[str, str]:
    """The names of Open Images' class codes (``/m/0199g``), if its table of them lies beside the annotations."""
    tables = [other for other in files_of(path.parent, ".csv") if "class-descriptions" in other.stem.lower()]
    return {row[0]: row[1] for table in tables[:1] for row in csv.reader(StringIO(read_text(table))) if len(row) == 2 and row[1].strip()}


def _csv_line(*cells: str) -> bytes:
    text = StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _columns(header: Sequence[str]) -> dict[str, int] | None:
    """Places of the columns by our names, those that may lack only if present; None if the line is not the header of a table of boxes."""
    names = [name.strip().lower() for name in header]
    places = {
        ours: next((names.index(alias) for alias in aliases if alias in names), -1) for ours, aliases in {**_ALIASES, **_MAY_LACK}.items()
    }
    if all(places[name] >= 0 for name in _ALIASES):
        return {name: place for name, place in places.items() if place >= 0}
    if len(header) in (len(_BARE), len(_BARE_WITH_SIZE)) and Path(header[0].strip().replace("\\", "/")).suffix.lower() in SUFFIXES:
        bare = _BARE if len(header) == len(_BARE) else _BARE_WITH_SIZE
        numbers = [text.strip() for name, text in zip(bare, header, strict=True) if name not in ("image", "label")]
        if not any(numbers) or all(re.fullmatch(r"-?\d+(\.\d*)?", text) for text in numbers):
            return {name: place for place, name in enumerate(bare)}
    return None


def _is_near(header: Sequence[str]) -> bool:
    """Whether a line may be meant as a table of boxes: it has corners or a size under some name, or an image and numbers."""
    names = " ".join(name.strip().lower() for name in header)
    is_row = len(header) >= 5 and any(Path(cell.strip()).suffix.lower() in SUFFIXES for cell in header)
    is_header = "bbox" in names or re.search(r"\bx_?(min|1|center)\b|\bxmin|\b(x|left)\b.*\bw(idth)?\b", names) is not None
    return len(header) >= 4 and (is_row or is_header)


def _rows(path: Path) -> tuple[dict[str, int], list[tuple[int, list[str]]]]:
    """Places of the columns, with their number as ``columns``, and (line number, fields) of every line that is not blank."""
    text = read_text(path)
    text = text if "\n" in text else text.replace("\r", "\n")  # the line ends of old Macs
    reader = csv.reader(StringIO(text, newline=""), delimiter=_delimiter(text))
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: {error}; repair or export it again") from error
    header = rows[0][1] if rows else []
    place = _columns(header)
    if place is None:
        raise DataError(f"{path}: {_WANTED}, got {shown(','.join(header))!r}")
    is_bare = header[place["image"]].strip().lower() not in _ALIASES["image"]
    return {**place, "columns": len(header)}, rows if is_bare else rows[1:]


def _delimiter(text: str) -> str:
    """The separator of a table: the semicolon or the tab of some spreadsheets if the first line has one, the comma otherwise."""
    first = text[:4096].lstrip().split("\n", 1)[0]
    return next((mark for mark in ";\t" if mark in first and "," not in first), ",")


FORMAT = Csv()
