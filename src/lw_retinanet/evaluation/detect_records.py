"""A detector over a whole data set: pictures -> detection table."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.image_sizes import require_size
from lw_retinanet.data.images import decode
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.pipeline import read_ahead
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.progress import Progress, tracked

log = logging.getLogger(__name__)


def detect_records(detector: Detector, records: Records, *, batch_size: int = 1, progress: Progress | None = None) -> DetectionTable:
    """Run a detector over all pictures of a data set.

    Args:
        detector: whose classes are found among the data set's, by id and name; those that are not there are left out.
        records: pictures to look at; their boxes are not used.
        batch_size: pictures at a time; those of like shape come together, and none is padded for another, so answers do not depend on it.
        progress: wraps the batches, for instance to show a bar; gets their number.

    Raises:
        DataError: if no class of the model is in the data set, or a picture has another size than its annotation says.
        ImageError: for a picture that is missing or cannot be read.
    """
    return detect_records_together([detector], records, batch_size=batch_size, progress=progress)[0]


def detect_records_together(
    detectors: Sequence[Detector], records: Records, *, batch_size: int = 1, progress: Progress | None = None
) -> list[DetectionTable]:
    """Run several detectors over a data set side by side: every picture is decoded once, and goes through all before the next one.

    Args:
        detectors: at least one; each has classes of its own, see :func:`detect_records`.
        records, batch_size, progress: as there.

    Returns:
        One table a detector, the same as it would have alone.

    Raises:
        DataError, ImageError: as there.
    """
    if not detectors:
        raise ValueError("give at least one detector")
    matches = [match_categories(detector.categories, records) for detector in detectors]
    for note in dict.fromkeys(note for match in matches for note in match.notes):
        log.warning("%s", note)
    order = np.lexsort((np.arange(records.num_images), _shapes(records, batch_size)))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    tables: list[list[DetectionTable]] = [[] for _ in detectors]
    shown = tracked(batches, len(batches), "evaluate", progress)
    for rows, images in zip(shown, _decoded(records, batches), strict=True):
        for detector, match, found in zip(detectors, matches, tables, strict=True):
            for row, result in zip(rows, detector.predict_arrays(images), strict=True):
                labels = match.labels[result.labels]
                known = labels >= 0
                found.append(DetectionTable.from_image(int(row), result.boxes[known], result.scores[known], labels[known]))
    return [concatenate(found) for found in tables]


def _shapes(records: Records, batch_size: int) -> NDArray[np.float64]:
    """(images,) what to sort by: with several at a time height over width, since equal ones are resized to the same size."""
    heights, widths = records.sizes_hw.T.astype(np.float64)
    return (heights > widths).astype(np.float64) if batch_size == 1 else heights / np.maximum(widths, 1)


def _decoded(records: Records, batches: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Pictures of each batch, read ahead of their turn."""
    rows = [int(row) for batch in batches for row in batch]
    images = read_ahead(rows, lambda row: _decoded_one(records, row), number=2 * max(map(len, batches), default=1))
    for batch in batches:
        yield list(islice(images, len(batch)))


def _decoded_one(records: Records, image: int) -> NDArray[np.uint8]:
    picture = decode(records.path(image))
    height, width = records.sizes_hw[image].tolist()
    # Boxes of a picture that was resized, or turned, after it was annotated would count as misses without a word.
    require_size(records.path(image), (picture.shape[0], picture.shape[1]), (height, width))
    return picture
