"""The lines of YOLO label files: which of several kinds they are is decided for all lines of a split together."""

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lw_retinanet.data.formats.annotation_format import read_text
from lw_retinanet.data.problems import Problems
from lw_retinanet.errors import DataError, shown

_MAX_FRACTION = 2.0  # boxes may reach out of the image, but pixels in place of fractions must not pass
_CONFIDENCE, _TRACK = 5, 6  # how many numbers follow the class when a confidence, or that and a track number, follow the box
_ROUNDING = 1e-5  # of six digits
_VISIBILITY = frozenset({0.0, 1.0, 2.0})  # of a keypoint
Box = tuple[float, float, float, float]  # cx, cy, w, h


class LabelLine(NamedTuple):
    """What is needed of a line to tell its kind and to read its box; polygons may have thousands of points.

    Args:
        where: File and line.
        number: The class number.
        length: How many numbers follow it.
        box: The first four of them.
        around: The upright box around all of them, taken as points.
        last: The last two of them.
        is_flagged: Whether what follows the first four may be keypoints with a visibility of 0, 1 or 2, visible ones inside the box.
        is_inside: Whether those after the first four, taken as points, lie inside the box of the first four.
        largest: The largest of all, in absolute value.
    """

    where: str
    number: int
    length: int
    box: Box
    around: Box
    last: tuple[float, float]
    is_flagged: bool
    is_inside: bool
    largest: float


def read_label_lines(path: Path, problems: Problems) -> Iterator[LabelLine]:
    """The lines of a label file that are a class number and at least four finite numbers."""
    try:
        texts = read_text(path).splitlines()
    except DataError as error:
        problems.add("broken_file", str(error))
        return
    for line, text in enumerate(texts, start=1):
        fields = text.split()
        if not fields:
            continue
        where = f"{path} line {line}"
        try:
            number, values = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            problems.add("malformed_box", f"{where}: {shown(text.strip()[:60])!r} is not numbers")
            continue
        if not number.is_integer() or len(values) < 4:
            problems.add("malformed_box", f"{where}: {len(fields)} numbers; a class number with 4 (a box) or 6, 8, ... (a polygon) is due")
        elif not all(map(math.isfinite, values)):
            problems.add("non_finite_box", where)
        else:
            yield _line(where, int(number), values)


def _line(where: str, number: int, values: Sequence[float]) -> LabelLine:
    cx, cy, w, h = values[:4]
    more, even = values[4:], values[: len(values) // 2 * 2]
    xs, ys = even[::2], even[1::2]

    def are_inside(points: Iterable[tuple[float, float]]) -> bool:
        return all(abs(x - cx) <= w / 2 + _ROUNDING and abs(y - cy) <= h / 2 + _ROUNDING for x, y in points)

    is_flagged = len(more) % 3 == 0 and set(more[2::3]) <= _VISIBILITY
    visible = [(x, y) for x, y, flag in zip(more[::3], more[1::3], more[2::3], strict=True) if flag] if is_flagged else []
    return LabelLine(
        where=where,
        number=number,
        length=len(values),
        box=(cx, cy, w, h),
        around=((min(xs) + max(xs)) / 2, (min(ys) + max(ys)) / 2, max(xs) - min(xs), max(ys) - min(ys)),
        last=(values[-2], values[-1]),
        is_flagged=is_flagged and are_inside(visible),
        is_inside=are_inside(zip(more[::2], more[1::2], strict=False)),
        largest=max(values, key=abs),
    )


def boxes_of_lines(lines: Sequence[LabelLine], num_extra: int | None, problems: Problems) -> list[Box | None]:
    """The box of each line; None, and a problem, where there is none.

    Args:
        lines: All lines of a split.
        num_extra: How many numbers of keypoints follow a box by the data file; None if it does not say so.
        problems: Gets what is wrong, and how many lines have more than a box.
    """
    counts = {line.length for line in lines}
    same = next(iter(counts)) if len(counts) == 1 else None
    extra = 0 if num_extra is None else num_extra
    if num_extra is None and same == _CONFIDENCE and all(0 <= line.last[1] <= 1 for line in lines):
        extra = 1
    elif num_extra is None and same == _TRACK and _are_tracks(lines):
        if max(line.last[1] for line in lines) <= 1:
            raise_ambiguous(
                lines,
                "class, box, confidence and track number, or triangles",
                "keep the first five numbers of each line, or give triangles their last point twice",
            )
        extra = 2
    elif num_extra is None and same is not None and same > _TRACK:
        if all(line.is_flagged for line in lines):
            extra = same - 4
        elif same % 2 == 0 and all(line.is_inside for line in lines):
            raise_ambiguous(lines, "boxes with keypoints", "write kpt_shape: [number of points, 2] into the data file")
    return [_box(line, extra, num_extra is not None, problems) for line in lines]


def _are_tracks(lines: Sequence[LabelLine]) -> bool:
    return all(line.last[1].is_integer() and line.last[1] >= 0 and 0 <= line.last[0] <= 1 for line in lines)


def raise_ambiguous(lines: Sequence[LabelLine], what: str, remedy: str) -> None:
    """Refuse lines that may mean different boxes.

    Raises:
        DataError: always.
    """
    raise DataError(f"{lines[0].where} and all other lines look like {what}; {remedy}")


def _box(line: LabelLine, extra: int, is_pose: bool, problems: Problems) -> Box | None:
    count = line.length
    if extra and count == 4 + extra:
        problems.add("more_numbers", line.where)
        box = line.box
        largest = max(map(abs, box))
    elif count == 4:
        box, largest = line.box, line.largest
    elif count >= 6 and count % 2 == 0 and not is_pose:
        problems.add("polygon_box", line.where)
        box, largest = line.around, line.largest
    else:
        due = f"{4 + extra} (a box and its keypoints)" if is_pose else "4 (a box) or 6, 8, ... (a polygon)"
        problems.add("malformed_box", f"{line.where}: {count + 1} numbers; a class number with {due} is due")
        return None
    if abs(largest) > _MAX_FRACTION:
        problems.add("malformed_box", f"{line.where}: {largest:g} is no fraction of the image; divide by its width or height")
        return None
    return box
