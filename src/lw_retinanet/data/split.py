"""Dividing a data set by images, with the classes balanced and related images kept together."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import BOX_COLUMNS, Records
from lw_retinanet.errors import ConfigError, DataError


def divide(records: Records, val: float, *, group: str | None = None, seed: int = 0) -> dict[str, Records]:
    """Divide a data set into ``train`` and ``val``.

    Groups of images are handed out one after another, those with the rarest class first, each to the split that lacks most of what is in
    it: images, and images of each class. So every class has its share in both splits as far as its images allow.

    Args:
        records: The whole data set.
        val: The share of the images for ``val``.
        group: Regular expression, searched in each file name; images with the same match (of the first group in parentheses, if there is
            one) stay together. An image without a match stands for itself.
        seed: Seed for the choice; the same seed gives the same splits.

    Raises:
        ConfigError: if ``val`` is not between 0 and 1, or ``group`` is no regular expression.
        DataError: if there are fewer than two groups.
    """
    held_out = choose_held_out(records, val, group=group, seed=seed)
    return {"train": records.subset(np.flatnonzero(~held_out)), "val": records.subset(np.flatnonzero(held_out))}


def choose_held_out(records: Records, val: float, *, group: str | None = None, seed: int = 0) -> NDArray[np.bool_]:
    """(I,) bool, the images that :func:`divide` gives to ``val``; parameters and errors are those of :func:`divide`."""
    if not 0 < val < 1:
        raise ConfigError(f"val must be a share between 0 and 1, got {val:g}")
    members = _groups(records.file_names, group)
    if len(members) < 2:
        raise DataError(
            f"{records.root}: {len(members)} groups of images cannot be divided; choose a pattern that matches more than one part"
        )
    counts = _counts(records, members)
    totals = counts.sum(axis=0)
    shares = np.array([1 - val, val])
    wanted = shares[:, None] * totals  # (2, 1 + K) of train and val
    given = np.zeros_like(wanted)
    in_val = np.zeros(len(members), dtype=np.bool_)
    rarity = np.where(counts[:, 1:] > 0, totals[1:], np.inf).min(axis=1, initial=np.inf)
    shuffled = np.random.default_rng(seed).permutation(len(members))
    for number in shuffled[np.argsort(rarity[shuffled], kind="stable")].tolist():
        # One image of a class of two weighs more than one of thousands.
        weights = counts[number] / np.maximum(totals, 1)
        lack = (((wanted - given) / shares[:, None]) * weights).sum(axis=1)
        split = int(lack[1] > lack[0])
        given[split] += counts[number]
        in_val[number] = split
    if in_val.all() or not in_val.any():  # of few images, val gets at least one group, and train too
        in_val[shuffled[0]] = not in_val[shuffled[0]]
    held_out = np.zeros(records.num_images, dtype=np.bool_)
    held_out[np.concatenate([members[number] for number in np.flatnonzero(in_val)])] = True
    return held_out


def choose_folds(records: Records, count: int, *, group: str | None = None, seed: int = 0) -> NDArray[np.int64]:
    """(I,) fold 0..count-1 of each image, of about equal size and with the classes balanced; the same seed gives the same folds.

    Args:
        records: The whole data set.
        count: Number of folds.
        group, seed: As for :func:`divide`.

    Raises:
        ConfigError: if ``group`` is no regular expression.
        DataError: if there are fewer groups of images than folds.
    """
    folds = np.full(records.num_images, count - 1)
    left = np.arange(records.num_images)
    for fold in range(count - 1):
        chosen = choose_held_out(records.subset(left), 1 / (count - fold), group=group, seed=seed)
        folds[left[chosen]] = fold
        left = left[~chosen]
    return folds


def join_splits(train: Records, val: Records) -> Records:
    """All images of two splits as one data set, whose image ids are the names of the files.

    Args:
        train: One split. Classes are those of this one.
        val: Another split of the same data set.

    Raises:
        DataError: if both have an image in common, or their classes differ.
    """
    if sorted(train.class_names) != sorted(val.class_names) or len(set(train.class_names)) < len(train.class_names):
        raise DataError(f"{train.root}: train and val have different classes, so they cannot be joined; give both the same ones")
    if shared := train.shared_images(val):
        raise DataError(f"{train.root}: {shared} images are in train and in val; keep every image in one of them")
    root = Path(os.path.commonpath([train.root.absolute(), val.root.absolute()]))
    names = [(part.root.absolute() / name).relative_to(root).as_posix() for part in (train, val) for name in part.file_names]
    relabelled = np.array([train.class_names.index(name) for name in val.class_names], dtype=np.int32)[val.labels]
    columns: dict[str, Any] = {name: np.concatenate([getattr(train, name), getattr(val, name)]) for name in BOX_COLUMNS}
    return replace(
        train,
        root=root,
        file_names=names,
        image_ids=names,
        sizes_hw=np.concatenate([train.sizes_hw, val.sizes_hw]),
        offsets=np.concatenate([train.offsets, val.offsets[1:] + train.num_boxes]),
        **{
            **columns,
            "labels": np.concatenate([train.labels, relabelled]),
            "annotation_ids": np.arange(1, train.num_boxes + val.num_boxes + 1),
        },
        remarks=(*train.remarks, *val.remarks),
    )


def _groups(names: Sequence[str], group: str | None) -> list[NDArray[np.int64]]:
    """The numbers of the images of each group."""
    try:
        pattern = re.compile(group) if group else None
    except re.error as error:
        raise ConfigError(f"group {group!r} is no regular expression ({error}); try for instance '^[^_]+'") from None
    rows: dict[tuple[bool, str], list[int]] = {}
    for row, name in enumerate(names):
        match = pattern.search(PurePosixPath(name).name) or pattern.search(name) if pattern else None
        key = (True, match[1] if match.re.groups else match[0]) if match else (False, name)
        rows.setdefault(key, []).append(row)
    return [np.array(one, dtype=np.int64) for one in rows.values()]


def _counts(records: Records, members: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    """(G, 1 + K) of each group the images, and the images with each class."""
    of_image = np.zeros((records.num_images, 1 + len(records.categories)), dtype=np.float64)
    of_image[:, 0] = 1
    of_image[records.image_of_box, 1 + records.labels] = 1
    return np.stack([of_image[one].sum(axis=0) for one in members])
