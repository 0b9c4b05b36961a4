"""Predictions as an Arrow table, a row an image: file, width, height, error, detections."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Category
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import ImageError

if TYPE_CHECKING:
    import pyarrow


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictedRow:
    """What is kept of one image, without its pixels; the arrays are those of :class:`~lw_retinanet.detection.result.Result`.

    Args:
        file: The image, as the list names it.
        size_hw: Its height and width; None if it cannot be read.
        error: Why it cannot be read, or None.
    """

    file: str
    size_hw: tuple[int, int] | None
    error: str | None
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, file: str, outcome: Result | ImageError) -> "PredictedRow":
        """The row of an outcome."""
        if isinstance(outcome, ImageError):
            none = np.zeros(0, np.float32)
            return cls(file=file, size_hw=None, error=str(outcome), boxes=none.reshape(0, 4), scores=none, labels=np.zeros(0, np.int64))
        arrays = {"boxes": outcome.boxes, "scores": outcome.scores, "labels": outcome.labels}
        return cls(file=file, size_hw=outcome.size_hw, error=None, **{name: np.array(array) for name, array in arrays.items()})


def predictions_schema(metadata: dict[str, str] | None = None) -> "pyarrow.Schema":
    """Columns of the table (needs pyarrow). A detection has the members that it has in JSON."""
    import pyarrow as pa

    detection = pa.struct(
        [
            ("box", pa.list_(pa.float32())),
            ("score", pa.float32()),
            ("label", pa.int32()),
            ("name", pa.string()),
            ("category_id", pa.int64()),
        ]
    )
    columns = [
        ("file", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("error", pa.string()),
        ("detections", pa.list_(detection)),
    ]
    return pa.schema(columns, metadata=metadata)


def predictions_table(
    rows: Iterable[PredictedRow], categories: Sequence[Category], metadata: dict[str, str] | None = None
) -> "pyarrow.Table":
    """Rows as a table.

    Args:
        rows: The rows.
        categories: The model's classes, in the order of the labels.
        metadata: Stored in the schema.
    """
    import pyarrow as pa

    rows, schema = list(rows), predictions_schema(metadata)
    labels = _joined([row.labels for row in rows], np.int64)
    boxes = _joined([row.boxes.reshape(-1) for row in rows], np.float32)
    members = [
        pa.ListArray.from_arrays(pa.array(np.arange(0, len(boxes) + 1, 4), pa.int32()), pa.array(boxes)),
        pa.array(_joined([row.scores for row in rows], np.float32)),
        pa.array(labels.astype(np.int32)),
        pa.array([category.name for category in categories], pa.string()).take(pa.array(labels)),
        pa.array([category.id for category in categories], pa.int64()).take(pa.array(labels)),
    ]
    structs = pa.StructArray.from_arrays(members, fields=list(schema.field("detections").type.value_type))
    offsets = np.cumsum([0, *(len(row.labels) for row in rows)])
    columns = [
        pa.array([row.file for row in rows], pa.string()),
        pa.array([row.size_hw and row.size_hw[1] for row in rows], pa.int32()),
        pa.array([row.size_hw and row.size_hw[0] for row in rows], pa.int32()),
        pa.array([row.error for row in rows], pa.string()),
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs, type=schema.field("detections").type),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _joined(arrays: Sequence[NDArray[Any]], kind: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, kind), *arrays]).astype(kind, copy=False)
