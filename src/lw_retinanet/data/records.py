"""The one form in which annotations live inside the program: arrays, sorted by image, whatever file they came from."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Id = int | str
_BOX_COLUMNS = ("boxes_xywh", "labels", "is_crowd", "is_difficult", "areas", "annotation_ids")  # the arrays of one row a box


@dataclass(frozen=True, kw_only=True)
class Category:
    """One class of a data set.

    Args:
        id: the data set's own id (COCO's have gaps; some tools write strings).
        name: what people read.
        supercategory: COCO's optional group name, kept so that a conversion loses nothing.
    """

    id: Id
    name: str
    supercategory: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Records:
    """Images and their boxes as flat arrays: a COCO-sized data set is a few dozen megabytes, shared by all loader workers.

    I images, B boxes. The boxes of image ``i`` are the rows ``offsets[i]:offsets[i + 1]`` of every array of length B, in file order.

    Args:
        root: folder that ``file_names`` are relative to.
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

    @property
    def num_images(self) -> int:
        return len(self.file_names)

    @property
    def num_boxes(self) -> int:
        return len(self.labels)

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.categories)

    @property
    def category_ids(self) -> tuple[Id, ...]:
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

    def path(self, image: int) -> Path:
        return self.root / self.file_names[image]

    def subset(self, images: NDArray[np.int64]) -> "Records":
        """The images of the given numbers (0..I-1), in that order, with their boxes; ids and classes stay."""
        rows = np.concatenate([np.arange(0), *(np.arange(self.offsets[image], self.offsets[image + 1]) for image in images)])
        return replace(
            self,
            file_names=[self.file_names[image] for image in images],
            image_ids=[self.image_ids[image] for image in images],
            sizes_hw=self.sizes_hw[images],
            offsets=np.concatenate([[0], np.cumsum(np.diff(self.offsets)[images])]).astype(np.int64),
            **{name: getattr(self, name)[rows] for name in _BOX_COLUMNS},
        )

    def fingerprint(self) -> str:
        """sha256 of everything but the root folder: equal for equal data, so a moved data set can still be resumed on."""
        digest = hashlib.sha256()
        categories = [(category.id, category.name, category.supercategory) for category in self.categories]
        digest.update(json.dumps([list(self.file_names), list(self.image_ids), categories]).encode())
        for name in ("sizes_hw", "offsets", *_BOX_COLUMNS):
            array: NDArray[np.generic] = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def summary(self) -> str:
        """One line for logs: ``448 images, 3,323 boxes, 7 classes``."""
        return f"{self.num_images:,} images, {self.num_boxes:,} boxes, {len(self.categories):,} classes"
