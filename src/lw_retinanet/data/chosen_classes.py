"""Some classes of a data set, as if it had no others."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lw_retinanet.data.problems import Problem
from lw_retinanet.data.records import BOX_COLUMNS, Records
from lw_retinanet.errors import DataError, nearest, quoted


def only_classes(records: Records, names: Sequence[str], where: Path) -> tuple[Records, Problem]:
    """Leave out the boxes of all other classes; every image stays, as background if it has no box left.

    Args:
        records: A split of a data set.
        names: Names of the classes that stay, in any order; they keep the order and the ids of the data set.
        where: The annotations, for messages.

    Returns:
        The records, and the number of boxes that were left out, with the first few of their classes.

    Raises:
        DataError: if there is no such class.
    """
    for name in names:
        if name not in records.class_names:
            known = ", ".join(records.class_names[:10]) + (", ..." if len(records.class_names) > 10 else "")
            raise DataError(f"{where}: no class {quoted(name)}{nearest(name, records.class_names)}; it has {known or 'no classes'}")
    stay = [label for label, name in enumerate(records.class_names) if name in names]
    new_labels = np.full(len(records.categories), -1, dtype=np.int32)
    new_labels[stay] = np.arange(len(stay))
    labels = new_labels[records.labels]
    kept = labels >= 0
    counts = np.bincount(records.image_of_box[kept], minlength=records.num_images)
    columns: dict[str, Any] = {name: getattr(records, name)[kept] for name in BOX_COLUMNS}
    others = [name for label, name in enumerate(records.class_names) if new_labels[label] < 0 and (records.labels == label).any()]
    left_out = Problem("other_class", int((~kept).sum()), others[:5])
    return (
        replace(
            records,
            offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            categories=tuple(records.categories[label] for label in stay),
            **{**columns, "labels": labels[kept]},
        ),
        left_out,
    )
