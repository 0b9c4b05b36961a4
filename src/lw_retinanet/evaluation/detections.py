"""Detections of a whole data set as flat arrays, read from and written to COCO results files."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.data.records import Id, Records
from lw_retinanet.errors import DataError, quoted
from lw_retinanet.files import write_bytes

_KEYS = ("image_id", "category_id", "bbox", "score")


@dataclass(frozen=True, kw_only=True, eq=False)
class DetectionTable:
    """D detections in any order. Of two equal scores in one image and class, the earlier row ranks higher.

    Args:
        image: (D,) int64 row of the image in its ``Records``, 0..I-1 (not the image id of the data set).
        boxes_xywh: (D, 4) float64 x, y, width, height in pixels of the original image.
        scores: (D,) float64.
        labels: (D,) int32 index into the ``categories`` of the ``Records``.
    """

    image: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int32]

    def __post_init__(self) -> None:
        count = len(self.image)
        shapes = (self.image.shape, self.boxes_xywh.shape, self.scores.shape, self.labels.shape)
        if shapes != ((count,), (count, 4), (count,), (count,)):
            raise ValueError(f"image, boxes_xywh, scores and labels must have shapes (D,), (D, 4), (D,), (D,), got {shapes}")

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def empty(cls) -> Self:
        """A table without detections."""
        return cls.from_arrays([], np.zeros((0, 4)), [], [])

    @classmethod
    def from_arrays(cls, image: ArrayLike, boxes_xywh: ArrayLike, scores: ArrayLike, labels: ArrayLike) -> Self:
        """Convert array-likes to the dtypes of the table."""
        return cls(
            image=np.asarray(image, dtype=np.int64),
            boxes_xywh=np.asarray(boxes_xywh, dtype=np.float64),
            scores=np.asarray(scores, dtype=np.float64),
            labels=np.asarray(labels, dtype=np.int32),
        )

    @classmethod
    def from_image(cls, image: int, boxes: ArrayLike, scores: ArrayLike, labels: ArrayLike) -> Self:
        """The detections of the image in row ``image`` of its ``Records``; ``boxes`` are (M, 4) xyxy pixels of the original image."""
        boxes_xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
        boxes_xywh[:, 2:] -= boxes_xywh[:, :2]
        return cls.from_arrays(np.full(len(boxes_xywh), image), boxes_xywh, scores, labels)


def concatenate(tables: Sequence[DetectionTable]) -> DetectionTable:
    """All rows of the tables, in order. No tables give an empty table."""
    if not tables:
        return DetectionTable.empty()
    return DetectionTable(**{name: np.concatenate([vars(table)[name] for table in tables]) for name in vars(tables[0])})


def check_detections(detections: DetectionTable, records: Records) -> None:
    """Refuse detections that cannot be scored or written correctly.

    Raises:
        DataError: If a box or score is not finite, or an image or label number is not one of ``records``.
    """
    for what, numbers, count in (
        ("image row", detections.image, records.num_images),
        ("label", detections.labels, len(records.categories)),
    ):
        rows = np.flatnonzero((numbers < 0) | (numbers >= count))
        if len(rows):
            raise DataError(
                f"detection {rows[0]}: {what} {numbers[rows[0]]} is not one of the data set's {count:,}; "
                "score detections against the data set that they were made for"
            )
    for what, finite in (("box", np.isfinite(detections.boxes_xywh).all(axis=1)), ("score", np.isfinite(detections.scores))):
        rows = np.flatnonzero(~finite)
        if len(rows):
            name = records.file_names[detections.image[rows[0]]]
            raise DataError(
                f"detection {rows[0]} (image {name!r}): its {what} is not finite, like {len(rows):,} of {len(detections):,}; "
                "look for NaN in the model's weights or drop these detections"
            )


def read_results(path: Path, records: Records) -> DetectionTable:
    """Read detections from a COCO results file, from a COCO annotation file whose boxes carry a ``score``, or from what ``predict`` wrote.

    Args:
        path: A run folder or a folder that ``predict`` wrote; or JSON: a list of ``{image_id, category_id, bbox, score}``, an object with
            such a list as ``annotations``, or ``{images: [{file, detections: [{box, score, category_id}]}]}``. Text that is no image id
            of the data set is taken for the name of an image file.
        records: The data set that the ids belong to.

    Raises:
        DataError: If a detection is malformed, not finite, or of an unknown image or class; the message names the first one.
    """
    path = _file_of(path)
    entries, place = _entries(path)
    row_of_image: Mapping[Id, int] = _ImageRows(records)
    label_of_category = {category_id: label for label, category_id in enumerate(records.category_ids)}
    images: list[int] = []
    labels: list[int] = []
    boxes: list[Sequence[Any]] = []
    scores: list[Any] = []
    for position, entry in enumerate(entries):
        try:
            image = row_of_image[entry["image_id"]]
            label = label_of_category[entry["category_id"]]
            box, score = entry["bbox"], entry["score"]
            _, _, _, _ = box
            if isinstance(entry["image_id"], bool) or isinstance(entry["category_id"], bool):  # true is 1 to Python
                raise TypeError
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{path}: {place}[{position}]: {_fault(entry, row_of_image, label_of_category)}") from None
        images.append(image)
        labels.append(label)
        boxes.append(box)
        scores.append(score)
    return DetectionTable.from_arrays(
        images,
        _finite(list(chain.from_iterable(boxes)), 4, "bbox", f"{path}: {place}").reshape(-1, 4),
        _finite(scores, 1, "score", f"{path}: {place}"),
        labels,
    )


def _file_of(path: Path) -> Path:
    """The detections in a folder: of a run, or of ``predict``."""
    if not path.is_dir():
        return path
    names = ("detections.json", "results.json", "predictions.json")  # results.json may have ids that predictions.json has not
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        raise DataError(f"{path} holds none of {', '.join(names)}; give a run folder that is finished, a folder of predict, or a file")
    return found


class _ImageRows(dict[Id, int]):
    """Row of an image by its id. Names of files, as ``predict`` writes them, are looked up only where they are no ids."""

    def __init__(self, records: Records) -> None:
        super().__init__((image_id, row) for row, image_id in enumerate(records.image_ids))
        self._records = records
        self._by_name: dict[str, list[tuple[tuple[str, ...], int]]] | None = None

    def __missing__(self, name: Id) -> int:
        if not isinstance(name, str):
            raise KeyError(name)
        if self._by_name is None:
            self._by_name = {}
            for row, file_name in enumerate(self._records.file_names):
                parts = PurePosixPath(file_name.replace("\\", "/")).parts
                self._by_name.setdefault(parts[-1] if parts else "", []).append((parts, row))
        wanted = PurePosixPath(name.replace("\\", "/")).parts
        found = [row for parts, row in self._by_name.get(wanted[-1] if wanted else "", ()) if _is_end(parts, wanted)]
        if len(found) != 1:
            raise KeyError(name)
        self[name] = found[0]
        return found[0]


def _is_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether one path is the end of the other."""
    count = min(len(first), len(second))
    return first[-count:] == second[-count:]


def write_results(detections: DetectionTable, records: Records, path: Path) -> None:
    """Write a COCO results file with the ids of the data set, completely or not at all. Reading it gives the same table, bit for bit.

    Raises:
        DataError: See :func:`check_detections`.
        OutputError: If the file cannot be written.
    """
    check_detections(detections, records)
    image_ids = [json.dumps(image_id) for image_id in records.image_ids]
    category_ids = [json.dumps(category_id) for category_id in records.category_ids]
    columns = (detections.image.tolist(), detections.labels.tolist(), detections.boxes_xywh.tolist(), detections.scores.tolist())
    # repr is the shortest text that reads back as the same float, and JSON allows every form of it.
    lines = (
        f'{{"image_id": {image_ids[image]}, "category_id": {category_ids[label]}, "bbox": {box!r}, "score": {score!r}}}'
        for image, label, box, score in zip(*columns, strict=True)
    )
    write_bytes(path, ("[\n" + ",\n".join(lines) + "\n]\n").encode() if len(detections) else b"[]\n")


def _entries(path: Path) -> tuple[list[Any], str]:
    try:
        parsed = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; give a COCO results file") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}; is the file complete?") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start}: not UTF-8 text; give a COCO results file in JSON") from error
    except (RecursionError, ValueError) as error:  # ValueError: an integer of more than 4,300 digits
        raise DataError(f"{path}: not a results file: {error}; give a JSON list of detections") from error
    if isinstance(parsed, dict) and isinstance(parsed.get("annotations"), list):
        return parsed["annotations"], "annotations"
    if isinstance(parsed, list):
        return parsed, "detection "
    if isinstance(parsed, dict) and isinstance(parsed.get("images"), list):
        return list(_predicted(parsed["images"], path)), "detection "
    raise DataError(f"{path}: expected a JSON list of detections (or an object with 'annotations'), found {_kind(parsed)}")


def _predicted(images: list[Any], path: Path) -> Iterator[dict[str, Any]]:
    """The detections of ``predict``'s own file as entries of a results file."""
    for position, image in enumerate(images):
        try:
            for one in image["detections"]:
                x1, y1, x2, y2 = one["box"]
                yield {
                    "image_id": image["file"],
                    "category_id": one["category_id"],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": one["score"],
                }
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{path}: images[{position}]: not as `predict` writes it, with file and detections (box, score, category_id); "
                "give its predictions.json or results.json, or any COCO results file"
            ) from None


def _fault(entry: Any, row_of_image: Mapping[Id, int], label_of_category: Mapping[Id, int]) -> str:
    """Say what is wrong with an entry that could not be read, and what to do about it."""
    if not isinstance(entry, dict):
        return f"expected an object with {', '.join(_KEYS)}, found {_kind(entry)}"
    missing = [key for key in _KEYS if key not in entry]
    if missing:
        hint = "; this looks like ground truth, give the detections" if missing == ["score"] else ""
        return f"no {', '.join(map(repr, missing))}; a detection needs {', '.join(_KEYS)}{hint}"
    for key, known in (("image_id", row_of_image), ("category_id", label_of_category)):
        value = entry[key]
        if not isinstance(value, int | float | str) or isinstance(value, bool):
            return f"{key} is {_kind(value)}, not an id; write the data set's own id"
        if not _knows(known, value):
            other: Id = str(value) if not isinstance(value, str) else int(value) if value.isdecimal() and len(value) < 20 else value
            if other in known:
                return f"{key} {quoted(value)} is not in the data set, which has {quoted(other)}; write the id as the data set does"
            if key == "image_id" and isinstance(value, str):
                return (
                    f"{key} {quoted(value)} is neither an id nor the name of one file of the data set; give the annotations of these images"
                )
            return f"{key} {quoted(value)} is not in the data set; give the annotations that these detections were made for"
    return f"bbox is {json.dumps(entry['bbox'])[:80]}; write four numbers: x, y, width, height"


def _knows(known: Mapping[Id, int], value: float | str) -> bool:
    try:
        return known[value] >= 0  # type: ignore[index]  # 1.0 is 1 to a dictionary
    except KeyError:
        return False


def _finite(values: list[Any], per_entry: int, key: str, place: str) -> NDArray[np.float64]:
    """Numbers as float64. NaN and infinity are refused, and so are strings, null and booleans, which NumPy would convert."""
    if set(map(type, values)) <= {int, float}:
        with suppress(OverflowError):  # an integer too large for a float
            numbers = np.array(values, dtype=np.float64)
            if np.isfinite(numbers).all():
                return numbers
    first = next(index for index, value in enumerate(values) if not _is_finite(value))
    value = json.dumps(values[first])[:40]
    raise DataError(
        f"{place}[{first // per_entry}]: {key} holds {value}, not a finite number; write finite numbers or leave the detection out"
    )


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
