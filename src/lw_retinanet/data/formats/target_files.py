"""What the writers of annotation files share: names that are sound in the target folder, image sizes, and what a plain format loses."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.image_files import is_safe_name
from lw_retinanet.data.records import Category, Records, build_records
from lw_retinanet.errors import DataError, shown


def plain_objects(records: Records) -> NDArray[np.bool_]:
    """(B,) which boxes are objects of at least some size: a format that knows nothing else would make objects of crowd regions, too."""
    return (records.boxes_xywh[:, 2:] > 0).all(axis=1) & ~records.is_crowd


def without_details(
    splits: Mapping[str, Records],
    holds: Callable[[Records], NDArray[np.bool_]],
    *,
    class_names: Sequence[str] | None = None,
    first_id: int = 1,
    has_difficult: bool = False,
) -> dict[str, Records]:
    """What a format keeps that has boxes and class names only: no ids, no crowds, no areas of their own.

    Args:
        splits: What is written.
        holds: Tells which boxes are written, see `AnnotationFormat.holds`.
        class_names: The classes when the files are read again; None if they are then those with a box in any split, sorted by name.
        first_id: The id of the first class then; the others follow.
        has_difficult: Whether ignored boxes are marked as difficult; else they become ordinary boxes.
    """
    held = {split: holds(records) for split, records in splits.items()}
    if class_names is None:
        class_names = sorted({records.class_names[k] for split, records in splits.items() for k in np.unique(records.labels[held[split]])})
    label_of = {name: label for label, name in enumerate(class_names)}
    categories = [Category(id=label + first_id, name=name) for name, label in label_of.items()]
    kept = {}
    for split, records in splits.items():
        keep = held[split]
        labels = np.array([label_of.get(name, -1) for name in records.class_names], dtype=np.int32)
        kept[split] = build_records(
            root=records.root,
            file_names=records.file_names,
            sizes_hw=records.sizes_hw,
            image_of_box=records.image_of_box[keep],
            boxes_xywh=records.boxes_xywh[keep],
            labels=labels[records.labels[keep]],
            is_difficult=records.is_ignored[keep] if has_difficult else None,
            categories=categories,
        )
    return kept


def require_plain_class_names(splits: Mapping[str, Records], form: str) -> None:
    """Refuse class names that a format of plain text cannot tell apart or give back.

    Raises:
        DataError: naming the class.
    """
    for split, records in splits.items():
        if len(set(records.class_names)) != len(records.categories):
            raise DataError(f"{split}: two classes share one name, which {form} cannot tell apart; rename one")
        odd = next((name for name in records.class_names if re.search(r"[\x00-\x1f]", name) or name != name.strip()), None)
        if odd is not None:
            raise DataError(f"{split}: the class name {odd!r} has control characters or outer spaces; rename it")


def require_text_file_names(splits: Mapping[str, Records], form: str) -> None:
    """Refuse file names that cannot stand in a text file: with control characters, or with bytes that are no UTF-8.

    Raises:
        DataError: naming the file.
    """
    for split, records in splits.items():
        odd = next((name for name in records.file_names if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", name)), None)
        if odd is not None:
            raise DataError(
                f"{split}: the file name {shown(odd)} is no plain text, which {form} cannot hold; rename the file, or convert to COCO"
            )


def target_names(splits: Mapping[str, Records]) -> dict[str, list[str]]:
    """File names for the target, unchanged unless two different images of different splits share one; those go to a folder a split."""
    names: dict[str, list[str]] = {}
    home: dict[str, str] = {}
    is_shared = False
    for split, records in splits.items():
        unsafe = next((name for name in records.file_names if not is_safe_name(name)), None)
        if unsafe is not None:
            raise DataError(f"{records.root}: {unsafe!r} leaves the image folder; write file names relative to it")
        names[split] = [posixpath.normpath(name.replace("\\", "/")) for name in records.file_names]
        for row, name in enumerate(names[split]):
            path = os.fspath(records.path(row))
            is_shared |= home.setdefault(name, path) != path
    return {split: [f"{split}/{name}" for name in own] for split, own in names.items()} if is_shared else names


def with_unique_stems(names: list[str], split: str, taken: set[str] | None = None) -> list[str]:
    """The names, changed where two differ in nothing but the suffix: their annotation files would be one."""
    stems = {posixpath.splitext(name)[0] for name in taken or ()}
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise DataError(f"{split}: {twice} is listed twice, and this form has one annotation file an image; merge the entries")
    unique = []
    for name in names:
        stem, suffix = posixpath.splitext(name)
        number = 1
        while stem in stems:
            number += 1
            stem = f"{posixpath.splitext(name)[0]}_{number}"
        stems.add(stem)
        unique.append(stem + suffix)
    return unique
