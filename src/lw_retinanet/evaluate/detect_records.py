"""A detector over a whole data set: pictures -> detection table."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.images import decode
from lw_retinanet.data.records import Records
from lw_retinanet.detect.detector import Detector
from lw_retinanet.evaluate.coco_metrics import match_categories
from lw_retinanet.evaluate.detections import DetectionTable, concatenate

Progress = Callable[[Iterable[NDArray[np.int64]], int], Iterable[NDArray[np.int64]]]


def detect_records(detector: Detector, records: Records, *, batch_size: int = 1, progress: Progress | None = None) -> DetectionTable:
    """Run a detector over all pictures of a data set.

    Args:
        detector: whose classes are found among the data set's, by id and name.
        records: pictures to look at; their boxes are not used.
        batch_size: pictures at a time; pictures of like shape go together, so that little is padded.
        progress: wraps the batches, for instance to show a bar; gets their number.

    Raises:
        DataError: if a class of the model is not in the data set.
        ImageError: for a picture that is missing or cannot be read.
    """
    labels = match_categories(detector.categories, records).labels
    order = np.lexsort((np.arange(records.num_images), records.sizes_hw[:, 0] > records.sizes_hw[:, 1]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    tables = []
    shown = progress(batches, len(batches)) if progress else batches
    for rows, images in zip(shown, _decoded(records, batches), strict=True):
        results = detector.predict_arrays(images)
        tables += [
            DetectionTable.from_image(int(row), result.boxes, result.scores, labels[result.labels])
            for row, result in zip(rows, results, strict=True)
        ]
    return concatenate(tables)


def _decoded(records: Records, batches: list[NDArray[np.int64]]) -> Iterator[list[NDArray[np.uint8]]]:
    """Pictures of each batch, decoded one batch ahead."""
    with ThreadPoolExecutor(max_workers=1) as pool:

        def load(rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
            return [decode(records.path(int(row))) for row in rows]

        ahead = pool.submit(load, batches[0]) if batches else None
        for following in [*batches[1:], None]:
            assert ahead is not None
            images = ahead.result()
            ahead = pool.submit(load, following) if following is not None else None
            yield images
            if following is None:
                return
