"""Detections in the forms of other tools. Each takes the (D, 4) boxes in xyxy pixels, the names, the scores and the image's size."""

import csv
import io
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from numpy.typing import NDArray

from lw_retinanet.errors import MissingExtraError

COLUMNS = ("xmin", "ymin", "xmax", "ymax", "label", "score", "image_path")  # DeepForest's, in its order


def rows(boxes: NDArray[Any], names: Sequence[str], scores: NDArray[Any], file: str | None) -> list[tuple[Any, ...]]:
    """A row of :data:`COLUMNS` for each detection."""
    return [(*box, name, score, file or "") for box, name, score in zip(boxes.tolist(), names, scores.tolist(), strict=True)]


def as_csv(boxes: NDArray[Any], names: Sequence[str], scores: NDArray[Any], file: str | None) -> str:
    """A table as DeepForest writes it, with a header."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rows(boxes, names, scores, file)])
    return text.getvalue()


def as_pandas(boxes: NDArray[Any], names: Sequence[str], scores: NDArray[Any], file: str | None) -> Any:
    """The same as a ``pandas.DataFrame``."""
    try:
        pandas = import_module("pandas")
    except ImportError:
        raise MissingExtraError("to_pandas needs pandas; install it with: pip install pandas") from None
    return pandas.DataFrame(rows(boxes, names, scores, file), columns=list(COLUMNS))


def as_yolo(boxes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], size_hw: tuple[int, int]) -> str:
    """YOLO's text: a line ``label cx cy w h confidence`` for each detection, in shares of the image's sides."""
    height, width = size_hw
    lines = []
    for (x1, y1, x2, y2), label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} {' '.join(f'{share:.6f}' for share in shares)} {score:.6f}\n")
    return "".join(lines)


def as_label_studio(
    boxes: NDArray[Any], names: Sequence[str], scores: NDArray[Any], size_hw: tuple[int, int], *, image: str, version: str
) -> dict[str, Any]:
    """A task with pre-annotations for Label Studio's rectangles; boxes are percentages of the image's sides."""
    height, width = size_hw
    regions = [
        {
            "from_name": "label",
            "to_name": "image",
            "type": "rectanglelabels",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "score": score,
            "value": {
                "x": 100 * x1 / width,
                "y": 100 * y1 / height,
                "width": 100 * (x2 - x1) / width,
                "height": 100 * (y2 - y1) / height,
                "rotation": 0,
                "rectanglelabels": [name],
            },
        }
        for (x1, y1, x2, y2), name, score in zip(boxes.tolist(), names, scores.tolist(), strict=True)
    ]
    best = max(scores.tolist(), default=0.0)
    return {"data": {"image": image}, "predictions": [{"model_version": version, "score": best, "result": regions}]}


def as_fiftyone(boxes: NDArray[Any], names: Sequence[str], scores: NDArray[Any], size_hw: tuple[int, int]) -> Any:
    """A ``fiftyone.Detections``, with boxes x, y, width, height in shares of the image's sides."""
    try:
        fiftyone = import_module("fiftyone")
    except ImportError:
        raise MissingExtraError("to_fiftyone needs FiftyOne; install it with: pip install fiftyone") from None
    height, width = size_hw
    return fiftyone.Detections(
        detections=[
            fiftyone.Detection(label=name, confidence=score, bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height])
            for (x1, y1, x2, y2), name, score in zip(boxes.tolist(), names, scores.tolist(), strict=True)
        ]
    )
