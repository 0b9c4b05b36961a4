"""Annotations in memory: flat arrays sorted by image, whatever format they were read from."""

import hashlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.data.images import decode
from lw_retinanet.data.problems import Problem, Problems

Id = int | str
MAX_COORDINATE = 1e9  # in pixels; larger numbers would overflow later
BOX_COLUMNS = ("boxes_xywh", "labels", "is_crowd", "is_difficult", "areas", "annotation_ids")  # the arrays of one row a box


@dataclass(frozen=True, kw_only=True)
class Category:
    """One class of a data set.

    Args:
        id: The data set's own id. COCO's ids have gaps, and some tools write strings.
        name: The name that people read.
        supercategory: COCO's optional group name, kept so that a conversion loses nothing.
    """

    id: Id
    name: str
    supercategory: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """I images and their B boxes. A data set of COCO's size takes a few dozen megabytes, which all loader workers share.

    The boxes of image ``i`` are the rows ``offsets[i]:offsets[i + 1]`` of every array of length B, in the order of the file.

    Args:
        root: The folder that ``file_names`` are relative to.
        file_names: I names, as the annotation file gives them.
        image_ids: I ids of the data set, unique.
        sizes_hw: (I, 2) int32 height and width in pixels as annotated; (0, 0) where the file does not say.
        offsets: (I + 1,) int64, non-decreasing, from 0 to B.
        boxes_xywh: (B, 4) float64 x, y, width, height in pixels of the original image, exactly as annotated.
        labels: (B,) int32 index into ``categories``.
        is_crowd: (B,) bool, COCO's crowd regions.
        is_difficult: (B,) bool, VOC's ``difficult``: ignored in training and in scoring, like a crowd region of one object.
        areas: (B,) float64 object areas (COCO: of the mask), which decide small, medium and large in scoring.
        annotation_ids: (B,) int64 ids of the annotation file, 1..B where it has none.
        categories: K classes; label ``k`` means ``categories[k]``.
        remarks: What the reader ignored, repaired or left out.
        max_pixels: The size up to which images are decoded; None is the decoder's own limit.
    """

    root: Path
    file_names: Sequence[str]
    image_ids: Sequence[Id]
    sizes_hw: NDArray[np.int32]
    offsets: NDArray[np.int64]
    boxes_xywh: NDArray[np.float64]
    labels: NDArray[np.int32]
    is_crowd: NDArray[np.bool_]
    is_difficult: NDArray[np.bool_]
    areas: NDArray[np.float64]
    annotation_ids: NDArray[np.int64]
    categories: tuple[Category, ...]
    remarks: tuple[Problem, ...] = ()
    max_pixels: int | None = None

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.file_names)

    @property
    def num_boxes(self) -> int:
        """B."""
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the K classes, in the order of the labels."""
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[Id, ...]:
        """The ids of the K classes, in the order of the labels."""
        return tuple(category.id for category in self.categories)

    @cached_property
    def is_ignored(self) -> NDArray[np.bool_]:
        """(B,) bool: neither a positive nor a negative example."""
        return self.is_crowd | self.is_difficult

    def rows(self, image: int) -> slice:
        """The rows of image number ``image`` (0..I-1) in the arrays of length B."""
        return slice(int(self.offsets[image]), int(self.offsets[image + 1]))

    def boxes(self, image: int) -> NDArray[np.float64]:
        """(M, 4) xyxy pixels of image number ``image``, unclipped, ignored regions included."""
        boxes = self.boxes_xywh[self.rows(image)].copy()
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    @property
    def image_of_box(self) -> NDArray[np.int64]:
        """(B,) number 0..I-1 of each box's image."""
        return np.repeat(np.arange(self.num_images, dtype=np.int64), np.diff(self.offsets))

    def path(self, image: int) -> Path:
        """The file of image number ``image``."""
        return self.root / self.file_names[image]

    def paths(self) -> list[Path]:
        """The files of all images."""
        return [self.path(image) for image in range(self.num_images)]

    def decode(self, image: int) -> NDArray[np.uint8]:
        """The pixels of image number ``image``, (H, W, 3) uint8 RGB, as :func:`~lw_retinanet.data.images.decode` gives them."""
        return decode(self.path(image), max_pixels=self.max_pixels)

    def subset(self, images: NDArray[np.int64]) -> "Records":
        """The images of the given numbers (0..I-1), in that order, with their boxes; ids and classes stay."""
        rows = np.concatenate([np.arange(0), *(np.arange(self.offsets[image], self.offsets[image + 1]) for image in images)])
        return replace(
            self,
            file_names=[self.file_names[image] for image in images],
            image_ids=[self.image_ids[image] for image in images],
            sizes_hw=self.sizes_hw[images],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[images])]).astype(np.int64),
            **{name: getattr(self, name)[rows] for name in BOX_COLUMNS},
        )

    def shared_images(self, other: "Records") -> int:
        """How many images of other records are the same files as images of these."""
        own = {f"{self.root}/{name}" for name in self.file_names}
        return sum(f"{other.root}/{name}" in own for name in other.file_names)

    def joined(self) -> "Records":
        """One entry a file: boxes of later entries go to the first one of the same file, each box once; `remarks` says how many did."""
        first: dict[str, int] = {}
        names = (posixpath.normpath(name) if "./" in name or "//" in name else name for name in self.file_names)
        home = np.array([first.setdefault(name, row) for row, name in enumerate(names)], dtype=np.int64)
        later = [self.file_names[row] for row in np.flatnonzero(home != np.arange(self.num_images)).tolist()]
        if not later:
            return self
        problems = Problems(self.root)
        problems.merge(self.remarks)
        problems.add_many("duplicate_file_name", len(later), later)
        images = home[self.image_of_box]
        columns = np.column_stack([images, self.labels, self.is_ignored, self.boxes_xywh])
        kept_rows = np.sort(np.unique(columns, axis=0, return_index=True)[1])
        is_shared = np.isin(images, home[home != np.arange(self.num_images)])
        rows = np.union1d(kept_rows, np.flatnonzero(~is_shared))
        rows = rows[np.argsort(images[rows], kind="stable")]
        counts = np.bincount(images[rows], minlength=self.num_images)
        columns_of_boxes: dict[str, Any] = {name: getattr(self, name)[rows] for name in BOX_COLUMNS}
        merged = replace(self, offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), **columns_of_boxes)
        return replace(merged.subset(np.unique(home)), remarks=tuple(problems.found()))

    def fingerprint(self) -> str:
        """sha256 of everything but the root folder, so that a run can be resumed after its data set was moved."""
        digest = hashlib.sha256()
        categories = [(category.id, category.name, category.supercategory) for category in self.categories]
        digest.update(json.dumps([list(self.file_names), list(self.image_ids), categories]).encode())
        for name in ("sizes_hw", "offsets", *BOX_COLUMNS):
            array: NDArray[np.generic] = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def summary(self) -> str:
        """One line for logs: ``448 images, 3,323 boxes, 7 classes``."""
        return f"{self.num_images:,} images, {self.num_boxes:,} boxes, {len(self.categories):,} classes"


def build_records(
    *,
    root: Path,
    file_names: Sequence[str],
    sizes_hw: ArrayLike,
    image_of_box: ArrayLike,
    boxes_xywh: ArrayLike,
    labels: ArrayLike,
    categories: Sequence[Category],
    image_ids: Sequence[Id] | None = None,
    areas: NDArray[np.float64] | None = None,
    is_crowd: ArrayLike | None = None,
    is_difficult: ArrayLike | None = None,
    annotation_ids: NDArray[np.int64] | None = None,
) -> Records:
    """Make `Records` of columns in any order: boxes are sorted by image, and keep their order within an image.

    Args:
        root, file_names, sizes_hw, boxes_xywh, labels, categories, is_crowd, is_difficult: See `Records`; flags are False if not given.
        image_of_box: (B,) number 0..I-1 of each box's image.
        image_ids: The ids of the images; 1..I if not given.
        areas: The areas of the objects; width times height if not given.
        annotation_ids: The ids of the boxes; 1..B in the sorted order if not given.
    """
    num_images = len(file_names)
    image_rows = np.asarray(image_of_box, dtype=np.int64).reshape(-1)
    num_boxes = len(image_rows)
    order = np.argsort(image_rows, kind="stable")
    boxes = np.asarray(boxes_xywh, dtype=np.float64).reshape(-1, 4)[order]
    offsets = np.zeros(num_images + 1, dtype=np.int64)
    np.cumsum(np.bincount(image_rows, minlength=num_images), out=offsets[1:])

    def flags(values: ArrayLike | None) -> NDArray[np.bool_]:
        return np.zeros(num_boxes, dtype=np.bool_) if values is None else np.asarray(values, dtype=np.bool_).reshape(-1)[order]

    return Records(
        root=root,
        file_names=tuple(file_names),
        image_ids=tuple(range(1, num_images + 1)) if image_ids is None else tuple(image_ids),
        sizes_hw=np.asarray(sizes_hw, dtype=np.int32).reshape(-1, 2),
        offsets=offsets,
        boxes_xywh=boxes,
        labels=np.asarray(labels, dtype=np.int32).reshape(-1)[order],
        is_crowd=flags(is_crowd),
        is_difficult=flags(is_difficult),
        areas=boxes[:, 2] * boxes[:, 3] if areas is None else areas[order],
        annotation_ids=np.arange(1, num_boxes + 1, dtype=np.int64) if annotation_ids is None else annotation_ids[order],
        categories=tuple(categories),
    )
