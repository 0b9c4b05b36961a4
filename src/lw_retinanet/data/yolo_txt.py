"""YOLO label files -> `Records`: one text file an image, centre, width and height as fractions of the image."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lw_retinanet.data.builder import build_records
from lw_retinanet.data.image_sizes import measure_sizes
from lw_retinanet.data.json_sections import read_text
from lw_retinanet.data.problems import Problems
from lw_retinanet.data.records import Category, Records
from lw_retinanet.data.yolo_lists import images_and_labels, read_yolo_file
from lw_retinanet.errors import DataError

_MAX_FRACTION = 2.0  # boxes may reach out of the image, but pixels in place of fractions must not pass


def read_yolo(path: Path, *, split: str | None = None, problems: Problems | None = None) -> Records:
    """Read a split of a YOLO data set, detection rows (``class cx cy w h``) and polygons, of which the bounding box is taken.

    An empty or missing label file is an image without objects. Category ids are YOLO's own class numbers, image ids 1..I in the order
    of the list or of the file names; sizes come from the image headers.

    Args:
        path: data.yaml, or darknet's obj.data.
        split: a key of the file; the only one if None.
        problems: collects what is wrong, and the entries concerned are left out. Without it the first kind of error is raised.

    Raises:
        DataError: if there is no such data set or split, or it has errors and ``problems`` is not given.
    """
    found = Problems(path) if problems is None else problems
    data = read_yolo_file(path)
    if split is None and len(data.splits) == 1:
        split = next(iter(data.splits))
    if split is None or split not in data.splits:
        raise DataError(f"{path}: the splits are {', '.join(data.splits) or 'missing'}, not {split!r}; name one of them")
    pairs = images_and_labels(data, split)
    images = [Path(os.path.abspath(pair.image)) for pair in pairs]  # noqa: PTH100 - resolve() would follow links out of the data set
    root = Path(os.path.commonpath([image.parent for image in images])) if images else data.folder
    names = [image.relative_to(root).as_posix() for image in images]
    sizes_hw = measure_sizes(root, names, found)

    label_of = {number: label for label, number in enumerate(data.names)}
    image_of_box: list[int] = []
    labels: list[int] = []
    fractions: list[tuple[float, float, float, float]] = []
    for row, pair in enumerate(pairs):
        for number, box in _read_labels(pair.label, found) if pair.label is not None else ():
            if number not in label_of:
                found.add("unknown_category", f"{pair.label}: class {number}")
            elif sizes_hw[row].all():
                image_of_box.append(row)
                labels.append(label_of[number])
                fractions.append(box)
    if problems is None:
        found.raise_errors()
    centres_and_sides = np.array(fractions, dtype=np.float64).reshape(-1, 4)
    sizes_wh = sizes_hw[np.array(image_of_box, dtype=np.int64)][:, ::-1].astype(np.float64)
    sides = centres_and_sides[:, 2:] * sizes_wh
    return build_records(
        root=root,
        file_names=names,
        sizes_hw=sizes_hw,
        image_of_box=image_of_box,
        boxes_xywh=np.hstack([centres_and_sides[:, :2] * sizes_wh - sides / 2, sides]),
        labels=labels,
        categories=[Category(id=number, name=name) for number, name in data.names.items()],
    )


def _read_labels(path: Path, problems: Problems) -> list[tuple[int, tuple[float, float, float, float]]]:
    """(class number, (cx, cy, w, h)) of each sound line."""
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        problems.add("broken_file", str(error))
        return []
    rows = []
    for line, text in enumerate(lines, start=1):
        fields = text.split()
        if not fields:
            continue
        where = f"{path} line {line}"
        try:
            number, values = float(fields[0]), [float(field) for field in fields[1:]]
        except ValueError:
            problems.add("malformed_box", f"{where}: {text.strip()[:60]!r} is not numbers")
            continue
        is_box, is_polygon = len(values) == 4, len(values) >= 6 and len(values) % 2 == 0
        if not number.is_integer() or not (is_box or is_polygon):
            problems.add("malformed_box", f"{where}: {len(fields)} numbers; a class number with 4 (a box) or 6, 8, ... (a polygon) is due")
        elif not all(map(math.isfinite, values)):
            problems.add("non_finite_box", where)
        elif max(map(abs, values)) > _MAX_FRACTION:
            problems.add("malformed_box", f"{where}: {max(values, key=abs):g} is no fraction of the image; divide by its width or height")
        else:
            rows.append((int(number), (values[0], values[1], values[2], values[3]) if is_box else _bounding_box(values)))
    return rows


def _bounding_box(polygon: Sequence[float]) -> tuple[float, float, float, float]:
    xmin, xmax = min(polygon[::2]), max(polygon[::2])
    ymin, ymax = min(polygon[1::2]), max(polygon[1::2])
    return (xmin + xmax) / 2, (ymin + ymax) / 2, xmax - xmin, ymax - ymin
