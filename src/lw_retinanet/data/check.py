"""Checking a whole data set for everything that harms training or scoring, without stopping at the first problem."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.data.box_quality import clipped_sides
from lw_retinanet.data.check_report import ClassCount, DataReport, SplitReport
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.annotation_format import WHOLE, Part
from lw_retinanet.data.image_files import is_safe_name
from lw_retinanet.data.image_sizes import image_sizes
from lw_retinanet.data.orientation import SWAPS_SIDES, orientation
from lw_retinanet.data.problems import NUM_EXAMPLES, Problems
from lw_retinanet.data.records import Records, build_records
from lw_retinanet.errors import DataError, ImageError
from lw_retinanet.progress import Progress, tracked

# Annotation tools round coordinates, so a box that reaches out by less is not worth a warning.
_BORDER_TOLERANCE = 0.5
_SIDE_LIMITS = (8, 16, 32, 64, 128, 256, 512)
_COCO_LIMITS = (32**2, 96**2)


@dataclass(frozen=True, kw_only=True)
class LookedAt:
    """A split that was read and looked at.

    Args:
        part: Where it comes from.
        records: What could be read of it.
        problems: What is wrong with it.
        is_sound: Whether its reader found no error.
    """

    part: Part
    records: Records
    problems: Problems
    is_sound: bool


def check(dataset: Dataset, split: str | None = None, *, quick: bool = False, progress: Progress | None = None) -> DataReport:
    """Count every problem of a data set; `look_at`, then `report_on`."""
    return report_on(dataset, look_at(dataset, split, quick=quick, progress=progress))


def look_at(dataset: Dataset, split: str | None = None, *, quick: bool = False, progress: Progress | None = None) -> dict[str, LookedAt]:
    """Find every problem of a data set, with the first few ids or files of each kind, by split.

    Args:
        dataset: The data set.
        split: The split to check; None checks all splits, and compares them with one another.
        quick: Whether only the headers of the images are read; else every image is decoded.
        progress: Wraps the images, for instance to show a bar.

    Raises:
        DataError: if there is no such split.
    """
    parts = dataset.parts if split is None else {split: dataset.part(split)}
    found = {name: _read(part, quick, progress) for name, part in parts.items()}
    _compare_splits({name: one.records for name, one in found.items()}, {name: one.problems for name, one in found.items()})
    return found


def report_on(dataset: Dataset, found: Mapping[str, LookedAt]) -> DataReport:
    """The report of what `look_at` found."""
    reports = [_report(name, one.part, one.records, one.problems) for name, one in found.items()]
    return DataReport(source=str(dataset.path), splits=tuple(reports))


def _read(part: Part, quick: bool, progress: Progress | None) -> LookedAt:
    problems = Problems(part.path)
    try:
        records = part.read(problems)
    except DataError as error:
        problems.add("broken_file", str(error))
        records = build_records(root=part.path.parent, file_names=(), sizes_hw=(), image_of_box=(), boxes_xywh=(), labels=(), categories=())
        return LookedAt(part=part, records=records, problems=problems, is_sound=False)
    is_sound = all(problem.severity != "error" for problem in problems.found())
    if records.num_images == 0 and not problems.found():  # else that is why
        problems.add("no_images", str(part.path))
    if records.num_boxes and records.is_ignored.all():
        problems.add("all_ignored", f"{records.num_boxes:,} boxes")
    _check_boxes(records, problems, has_ids=part.format.has_annotation_ids)
    _check_tables(records, problems, has_ids=part.format.has_annotation_ids)
    _check_images(records, problems, is_measured=part.format.takes_sizes_from_images, quick=quick, progress=progress)
    return LookedAt(part=part, records=records, problems=problems, is_sound=is_sound)


def _check_boxes(records: Records, problems: Problems, *, has_ids: bool) -> None:
    rows_of_images = records.image_of_box

    def add(kind: str, is_bad: ArrayLike) -> None:
        rows = np.flatnonzero(is_bad)
        problems.add_many(kind, len(rows), (_box_name(records, int(row), int(rows_of_images[row]), has_ids) for row in rows))

    sides = records.boxes_xywh[:, 2:]
    low, high = records.boxes_xywh[:, :2], records.boxes_xywh[:, :2] + sides
    sizes_wh = records.sizes_hw[rows_of_images, ::-1].astype(np.float64)
    is_known = (sizes_wh > 0).all(axis=1)
    is_empty = (sides <= 0).any(axis=1)
    is_tiny = (sides < 1).any(axis=1) & ~is_empty
    is_outside = is_known & ~is_empty & (clipped_sides(records) <= 0).any(axis=1)
    reaches_out = ((low < -_BORDER_TOLERANCE) | (high > sizes_wh + _BORDER_TOLERANCE)).any(axis=1)
    add("empty_box", is_empty)
    add("tiny_box", is_tiny)
    add("outside_box", is_outside)
    add("partly_outside_box", is_known & ~is_empty & ~is_outside & reaches_out)
    add("duplicate_box", _repeats(np.column_stack([rows_of_images, records.labels, records.is_crowd, records.boxes_xywh])))


def _repeats(table: NDArray[np.float64]) -> NDArray[np.bool_]:
    """(B,) True for rows that equal an earlier row."""
    order = np.lexsort(table.T[::-1])
    is_repeat = np.zeros(len(table), dtype=np.bool_)
    is_repeat[order[1:]] = (table[order[1:]] == table[order[:-1]]).all(axis=1)
    return is_repeat


def _box_name(records: Records, row: int, image: int, has_ids: bool) -> str:
    name = records.file_names[image]
    return f"annotation {records.annotation_ids[row]} of {name}" if has_ids else name


def _check_tables(records: Records, problems: Problems, *, has_ids: bool) -> None:
    if has_ids:
        ids, counts = np.unique(records.annotation_ids, return_counts=True)
        twice = ids[counts > 1]
        problems.add_many("duplicate_annotation_id", len(twice), (str(one) for one in twice))
    for kind, names in (("duplicate_file_name", records.file_names), ("duplicate_class_name", records.class_names)):
        repeated = list(_seen_before(names))
        problems.add_many(kind, len(repeated), repeated)
    empty = np.flatnonzero(np.diff(records.offsets) == 0)
    problems.add_many("image_without_boxes", len(empty), (records.file_names[int(row)] for row in empty))
    unused = np.flatnonzero(np.bincount(records.labels, minlength=len(records.categories)) == 0)
    problems.add_many("class_without_boxes", len(unused), (records.class_names[int(label)] for label in unused))


def _seen_before(values: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            yield value
        seen.add(value)


def _check_images(records: Records, problems: Problems, *, is_measured: bool, quick: bool, progress: Progress | None) -> None:
    """Look at every image.

    Args:
        records: What was read.
        problems: Gets what is wrong.
        is_measured: Whether the reader has read the headers, and has reported images that are missing or unreadable.
        quick: Whether the headers are enough.
        progress: Wraps the images.
    """
    if quick and is_measured:
        return
    safe = (row for row, name in enumerate(records.file_names) if is_safe_name(name))
    rows = [row for row in safe if not is_measured or records.sizes_hw[row].all()]
    sizes = image_sizes([records.path(row) for row in rows], decoded=not quick)
    for row, size in tracked(zip(rows, sizes, strict=True), len(rows), "checking images", None if quick else progress):
        annotated = (int(records.sizes_hw[row, 0]), int(records.sizes_hw[row, 1]))
        if size is None:
            problems.add("missing_image", str(records.path(row)))
        elif isinstance(size, ImageError):
            problems.add("unreadable_image", str(size))
        elif size == annotated[::-1] != annotated and orientation(records.path(row)) in SWAPS_SIDES:
            problems.add("turned_image", records.file_names[row])
        elif annotated not in ((0, 0), size):
            height, width = size
            problems.add("size_mismatch", f"{records.file_names[row]}: {width} x {height}, annotated {annotated[1]} x {annotated[0]}")


def _compare_splits(records: Mapping[str, Records], problems: Mapping[str, Problems]) -> None:
    """Find images that are in an earlier split, too, and lists of classes that differ from the first split's."""
    # VOC's trainval is the union of two other lists by definition.
    names = [name for name in records if name != "trainval" and records[name].num_images]
    home: dict[Path, str] = {}
    for name in names:
        root = records[name].root.resolve()
        paths = [root / file_name for file_name in records[name].file_names]
        shared = [path for path in paths if home.setdefault(path, name) != name]
        problems[name].add_many(
            "image_in_two_splits", len(shared), (f"{path.name} (also in {home[path]})" for path in shared[:NUM_EXAMPLES])
        )
        if records[name].categories != records[names[0]].categories:
            lists = [{(category.id, category.name) for category in records[other].categories} for other in (names[0], name)]
            odd = sorted(f"{category_name} (id {category_id})" for category_id, category_name in lists[0] ^ lists[1])
            if odd:
                problems[name].add_many("different_classes", 1, [f"{name}: {'; '.join(odd[:NUM_EXAMPLES])}"])


def _report(name: str, part: Part, records: Records, problems: Problems) -> SplitReport:
    counts = ~records.is_ignored & (records.boxes_xywh[:, 2:] > 0).all(axis=1)
    sides = np.sqrt(records.boxes_xywh[counts, 2:].prod(axis=1))
    sizes = np.searchsorted(_COCO_LIMITS, records.areas[counts], side="left")
    return SplitReport(
        split=None if name == WHOLE else name,
        form=part.format.name,
        path=str(part.path),
        images=records.num_images,
        boxes=records.num_boxes,
        problems=tuple(problems.found()),
        classes=_class_table(records),
        side_histogram=_named_counts(_side_names(), np.searchsorted(_SIDE_LIMITS, sides, side="right")),
        coco_sizes=_named_counts(("small", "medium", "large"), sizes),
    )


def _side_names() -> Sequence[str]:
    middle = [f"{low}-{high}" for low, high in pairwise(_SIDE_LIMITS)]
    return [f"0-{_SIDE_LIMITS[0]}", *middle, f"{_SIDE_LIMITS[-1]}+"]


def _named_counts(names: Sequence[str], bins: NDArray[np.int64]) -> dict[str, int]:
    return dict(zip(names, np.bincount(bins, minlength=len(names)).tolist(), strict=True))


def _class_table(records: Records) -> tuple[ClassCount, ...]:
    num_classes = len(records.categories)
    boxes = np.bincount(records.labels[~records.is_ignored], minlength=num_classes)
    ignored = np.bincount(records.labels[records.is_ignored], minlength=num_classes)
    pairs = np.unique(records.image_of_box * max(1, num_classes) + records.labels)
    images = np.bincount(pairs % max(1, num_classes), minlength=num_classes)
    return tuple(
        ClassCount(id=category.id, name=category.name, images=int(images[k]), boxes=int(boxes[k]), ignored=int(ignored[k]))
        for k, category in enumerate(records.categories)
    )
