"""Detection in a data set by all processes of a run, each in its share of the images."""

import numpy as np
import torch

from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.progress import Progress
from lw_retinanet.training.distributed import World


def detect_together(detector: Detector, records: Records, world: World, *, progress: Progress | None = None) -> DetectionTable:
    """The table that :func:`~lw_retinanet.evaluation.detect_records.detect_records` gives, in every process, ordered by image.

    Args:
        detector: The same model in every process.
        records: The images.
        world: The processes, which all call this.
        progress: Wraps the batches of the first process.
    """
    share = np.arange(world.rank, records.num_images, world.size)
    found = detect_records(detector, records.subset(share), progress=progress if world.is_main else None)
    columns = (share[found.image], found.boxes_xywh, found.scores, found.labels)
    rows = torch.from_numpy(np.column_stack(columns).astype(np.float64))  # exact for whole numbers up to 2 ** 53
    gathered = world.gather(rows.to(world.device)).cpu().numpy()
    ordered = gathered[np.argsort(gathered[:, 0], kind="stable")]
    return DetectionTable.from_arrays(ordered[:, 0], ordered[:, 1:5], ordered[:, 5], ordered[:, 6])
