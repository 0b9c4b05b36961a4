"""Detections of a whole data set in one small file: nothing is rounded or left out, so every metric stays the same to the last digit."""

import io
import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Id, Records
from lw_retinanet.errors import DataError, quoted
from lw_retinanet.evaluation.detections import DetectionTable, check_detections, read_results
from lw_retinanet.files import write_bytes

PACKED_FILE = "detections.npz"
_BROKEN = (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def pack_detections(detections: DetectionTable, records: Records, path: Path) -> None:
    """Write a compressed file of about twenty bytes a detection, a sixth of a COCO results file. The same detections give the same bytes.

    Args:
        detections: The detections. Those of a detector are numbers of single precision, and are stored so if that changes nothing.
        records: The data set that they were made for.
        path: The file, whose name ends in ``.npz``.

    Raises:
        DataError: See :func:`~lw_retinanet.evaluation.detections.check_detections`.
        OutputError: If the file cannot be written.
    """
    check_detections(detections, records)
    order = np.argsort(detections.image, kind="stable")
    boxes, scores = detections.boxes_xywh[order], detections.scores[order]
    with np.errstate(over="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32)
        single = scores.astype(np.float32)
    columns: dict[str, Any] = {
        "image_ids": _text(records.image_ids),
        "category_ids": _text(records.category_ids),
        "counts": np.bincount(detections.image, minlength=records.num_images).astype(np.int32),
        "labels": detections.labels[order].astype(np.uint16),
        "scores": _planes(single if np.array_equal(single, scores) else scores),
        "boxes": _planes(corners if np.array_equal(_from_corners(corners), boxes) else boxes),
    }
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **columns)
    write_bytes(path, stream.getvalue())


def read_detections(path: Path, records: Records) -> DetectionTable:
    """Read a file of :func:`pack_detections`, a folder that holds one, or what :func:`read_results` reads.

    Raises:
        DataError: If the file is damaged, or holds detections of an image or class that the data set does not have.
    """
    packed = path / PACKED_FILE if path.is_dir() else path
    if packed.suffix != ".npz" or not packed.is_file():
        return read_results(path, records)
    try:
        with np.load(io.BytesIO(packed.read_bytes()), allow_pickle=False) as columns:
            image_ids, category_ids = (json.loads(columns[name].tobytes()) for name in ("image_ids", "category_ids"))
            image = np.repeat(np.arange(len(image_ids)), columns["counts"])
            boxes = _joined(columns["boxes"]).reshape(-1, 4)
            boxes = _from_corners(boxes) if boxes.dtype.itemsize == 4 else boxes
            rows = _places(image_ids, records.image_ids, "image", packed)
            labels = _places(category_ids, records.category_ids, "class", packed)
            table = DetectionTable.from_arrays(rows[image], boxes, _joined(columns["scores"]), labels[columns["labels"]])
    except _BROKEN as error:
        raise DataError(f"{packed}: not a whole file of packed detections ({error}); run what made it again") from None
    check_detections(table, records)
    return table


def _from_corners(corners: NDArray[Any]) -> NDArray[np.float64]:
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return boxes


def _places(own: Sequence[Id], known: Sequence[Id], what: str, path: Path) -> NDArray[np.int64]:
    """The row of each id of the file in the data set."""
    row_of = {one: row for row, one in enumerate(known)}
    missing = next((one for one in own if one not in row_of), None)
    if missing is not None:
        raise DataError(f"{path}: {what} {quoted(missing)} is not in the data set; give the data that these detections were made for")
    return np.array([row_of[one] for one in own], dtype=np.int64)


def _text(ids: Sequence[Id]) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(list(ids)).encode(), dtype=np.uint8)


def _planes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(4 or 8, N) the bytes of the numbers, all first bytes first: compression finds more in them that is alike."""
    little = values.astype(f"<f{values.dtype.itemsize}").reshape(-1, 1)
    return np.ascontiguousarray(little.view(np.uint8).T)


def _joined(planes: NDArray[np.uint8]) -> NDArray[Any]:
    return np.ascontiguousarray(planes.T).view(f"<f{len(planes)}").reshape(-1)
