"""Running detectors over a whole data set."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.image_sizes import require_size
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector, readable
from lw_retinanet.detection.pipeline import read_ahead
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.progress import Progress, tracked

log = logging.getLogger(__name__)


def detect_records(
    detector: Detector, records: Records, *, batch_size: int = 1, tiling: Tiling | None = None, progress: Progress | None = None
) -> DetectionTable:
    """Run a detector over all images of a data set.

    Args:
        detector: Its classes are matched with those of the data set by id and name. Detections of other classes are left out.
        records: The images; their boxes are not used.
        batch_size: Images in a batch. Images of similar shape go together, and none is padded to the size of another, so the results do not
            depend on it.
        tiling: How every image is cut into tiles, if it is; batches are then of tiles.
        progress: Wraps the batches, for instance to show a bar.

    Raises:
        DataError: If no class of the model is in the data set, or if an image has another size than its annotation says.
        ImageError: If an image is missing or cannot be read.
    """
    return detect_records_together([detector], records, batch_size=batch_size, tiling=tiling, progress=progress)[0]


def detect_records_together(
    detectors: Sequence[Detector], records: Records, *, batch_size: int = 1, tiling: Tiling | None = None, progress: Progress | None = None
) -> list[DetectionTable]:
    """Run several detectors over a data set and decode every image only once.

    The parameters and errors are those of :func:`detect_records`, with at least one detector.

    Returns:
        For each detector, the table that :func:`detect_records` would give.
    """
    if not detectors:
        raise ValueError("give at least one detector")
    matches = [match_categories(detector.categories, records) for detector in detectors]
    for note in dict.fromkeys(note for match in matches for note in match.notes):
        log.warning("%s", note)
    images_a_batch = batch_size if tiling is None else 1
    order = np.lexsort((np.arange(records.num_images), _shapes(records, images_a_batch)))
    batches = [order[start : start + images_a_batch] for start in range(0, len(order), images_a_batch)]
    tables: list[list[DetectionTable]] = [[] for _ in detectors]
    shown = tracked(batches, len(batches), "evaluate", progress)
    for rows, images in zip(shown, _decoded(records, batches), strict=True):
        for detector, match, found in zip(detectors, matches, tables, strict=True):
            outcomes = (
                detector.predict_arrays(images)
                if tiling is None
                else readable(detector.predict_files(images, batch_size=batch_size, tiling=tiling))
            )
            for row, result in zip(rows, outcomes, strict=True):
                labels = match.labels[result.labels]
                known = labels >= 0
                found.append(DetectionTable.from_image(int(row), result.boxes[known], result.scores[known], labels[known]))
    return [concatenate(found) for found in tables]


def _shapes(records: Records, batch_size: int) -> NDArray[np.float64]:
    """(I,) keys to sort the images by. For batches: height / width, since images with equal ratios are resized to the same size."""
    heights, widths = records.sizes_hw.T.astype(np.float64)
    return (heights > widths).astype(np.float64) if batch_size == 1 else heights / np.maximum(widths, 1)


def _decoded(records: Records, batches: Sequence[NDArray[np.int64]]) -> Iterator[list[NDArray[np.uint8]]]:
    """The images of each batch, decoded ahead of time."""
    rows = [int(row) for batch in batches for row in batch]
    images = read_ahead(rows, lambda row: _decode_one(records, row), number=2 * max(map(len, batches), default=1))
    for batch in batches:
        yield list(islice(images, len(batch)))


def _decode_one(records: Records, row: int) -> NDArray[np.uint8]:
    image = records.decode(row)
    height, width = records.sizes_hw[row].tolist()
    # If an image was resized or rotated after it was annotated, all of its boxes would count as misses.
    require_size(records.path(row), (image.shape[0], image.shape[1]), (height, width))
    return image
