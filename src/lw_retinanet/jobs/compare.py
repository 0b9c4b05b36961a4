"""Compare the detections of two detectors on one data set."""

from collections.abc import Sequence
from pathlib import Path

from lw_retinanet.data.box_quality import require_boxes
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.evaluation.packed_detections import read_detections
from lw_retinanet.evaluation.paired import Comparison, compare
from lw_retinanet.files import existing
from lw_retinanet.progress import Progress


def run_comparison(
    detections_a: Path,
    detections_b: Path,
    data: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    draws: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Subtract the metrics of A from those of B, with 95 % intervals; the parameters are those of :func:`lw_retinanet.compare`."""
    existing(detections_a, "detections file")
    existing(detections_b, "detections file")
    dataset = Dataset.open(existing(data, "data set"), classes=classes)
    records = dataset.read(split or dataset.or_whole("val"), joined=False, scoring=True)
    require_boxes(records, data)
    tables = [read_detections(file, records) for file in (detections_a, detections_b)]
    return compare(records, *tables, draws=draws, seed=seed, progress=progress)
