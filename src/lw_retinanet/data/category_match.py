"""Which class of a data set each class of a model is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Category, Records
from lw_retinanet.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class CategoryMatch:
    """Which label of a data set each label of a model means.

    Args:
        labels: (M,) int32; the model's label ``m`` is the data set's label ``labels[m]``, or -1 if the data set has no such class.
        notes: What the reader of an evaluation should know, one line each; usually empty.
    """

    labels: NDArray[np.int32]
    notes: tuple[str, ...]


def match_categories(model_classes: Sequence[Category], records: Records) -> CategoryMatch:
    """Find each class of a model in a data set: by id and name together, else by name alone.

    Classes of the data set that the model does not know count in the score, with AP 0. Classes of the model that the data set does not
    have do not count. The notes name both.

    Raises:
        DataError: if no class of the model is in the data set, or if two of them mean the same class of the data set.
    """
    by_id_and_name = {(category.id, category.name): label for label, category in enumerate(records.categories)}
    by_name: dict[str, list[int]] = {}
    for label, category in enumerate(records.categories):
        by_name.setdefault(category.name, []).append(label)
    labels: list[int] = []
    lost: list[Category] = []
    for category in model_classes:
        same_name = by_name.get(category.name, [])
        if (category.id, category.name) in by_id_and_name:
            labels.append(by_id_and_name[category.id, category.name])
        elif len(same_name) == 1:
            labels.append(same_name[0])
        else:
            labels.append(-1)
            lost.append(category)
    if len(lost) == len(model_classes):
        raise DataError(
            f"none of the model's {len(model_classes)} classes ({_names(model_classes)}) is among the data set's "
            f"{len(records.categories)} ({_names(records.categories)}); evaluate on data with such classes, or rename them"
        )
    known = [label for label in labels if label >= 0]
    repeated = [records.categories[label] for label in np.flatnonzero(np.bincount(known, minlength=1) > 1)]
    if repeated:
        raise DataError(f"several classes of the model mean the same class of the data set: {_names(repeated)}; give them different names")
    unknown = [category for label, category in enumerate(records.categories) if label not in known]
    notes = []
    if unknown:
        notes.append(f"the model does not know {len(unknown)} of the data set's classes ({_names(unknown)}): their AP is 0")
    if lost:
        notes.append(f"the data set has none of {len(lost)} of the model's classes ({_names(lost)}): their detections are left out")
    return CategoryMatch(labels=np.array(labels, dtype=np.int32), notes=tuple(notes))


def _names(categories: Sequence[Category], most: int = 5) -> str:
    shown = ", ".join(f"{category.name!r} (id {category.id!r})" for category in categories[:most])
    return f"{shown} and {len(categories) - most} more" if len(categories) > most else shown or "no classes"
