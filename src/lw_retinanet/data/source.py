"""Open a data set whatever its form, by split."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.recognition import WHOLE, Part, recognise
from lw_retinanet.data.records import Records
from lw_retinanet.errors import DataError

_logger = logging.getLogger(__name__)
_OWN_NAMES = {"valid": "val", "validation": "val"}
# What a split may also be called, the first that exists is taken.
_STANDS_IN: Mapping[str, tuple[str, ...]] = {"val": ("test",), "train": ("trainval",)}


def splits(source: Path) -> tuple[str, ...]:
    """The splits of a data set, ``valid`` and ``validation`` called ``val``; () for a single file or folder without splits.

    Raises:
        DataError: if the path does not exist or holds no known form.
    """
    return tuple(split for split in parts_by_split(source) if split != WHOLE)


def open_data(source: Path, *, split: str | None = None) -> Records:
    """Read a data set, its form recognised by content.

    Args:
        source: a folder (ours: ``train.json``, ``val.json``, ``images/``; COCO's own; Roboflow's; VOC's; YOLO's) or one annotation file.
        split: which split; not needed where there is only one. ``val`` falls back to ``test``, ``train`` to ``trainval``.

    Raises:
        DataError: if the path, the split or the annotations are not usable.
    """
    return choose_part(parts_by_split(source), source, split).read()


def parts_by_split(source: Path) -> dict[str, Part]:
    """What to read for each split, in the layout's order; the only key is `WHOLE` where there are no splits."""
    parts: dict[str, Part] = {}
    for name, part in recognise(source).items():
        parts.setdefault(_OWN_NAMES.get(name, name), part)
    return parts


def choose_part(parts: Mapping[str, Part], source: Path, split: str | None) -> Part:
    """The part that a request for a split, or for none, means.

    Raises:
        DataError: if there is no such split, or a choice is needed.
    """
    if split is None:
        if len(parts) > 1:
            raise DataError(f"{source}: has the splits {', '.join(parts)}; name the one to use")
        return next(iter(parts.values()))
    if WHOLE in parts:
        raise DataError(f"{source}: has no splits, so no {split!r}; leave the split out, or pass a folder with train and val")
    name = _OWN_NAMES.get(split, split)
    for candidate in (name, *_STANDS_IN.get(name, ())):
        if candidate in parts:
            if candidate != name:
                _logger.warning("%s has no split %r: %r is used in its place", source, name, candidate)
            return parts[candidate]
    raise DataError(f"{source}: no split {split!r}; it has {', '.join(parts)}")


def require_boxes(records: Records, where: Path | str) -> None:
    """Refuse a data set from which nothing can be learned or measured.

    Raises:
        DataError: if there are no images, no boxes, or none of at least 1 x 1 pixel inside its image.
    """
    if records.num_images == 0:
        raise DataError(f"{where}: no images at all; check that this is the right file or split")
    if records.num_boxes == 0:
        raise DataError(f"{where}: {records.num_images:,} images but no boxes at all; check that this is the annotation file")
    if not usable(records).any():
        raise DataError(f"{where}: none of the {records.num_boxes:,} boxes covers 1 x 1 pixel of its image; check the box format")


def fingerprint(records: Records) -> str:
    """sha256 of everything but the root folder: equal for equal data, so a moved data set can still be resumed on."""
    digest = hashlib.sha256()
    categories = [(category.id, category.name, category.supercategory) for category in records.categories]
    digest.update(json.dumps([list(records.file_names), list(records.image_ids), categories]).encode())
    for name in ("sizes_hw", "offsets", "boxes_xywh", "labels", "is_crowd", "is_difficult", "areas", "annotation_ids"):
        array: np.ndarray = np.ascontiguousarray(getattr(records, name))
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
