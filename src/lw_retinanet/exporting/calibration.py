"""Calibration images: the ranges of int8 are measured on them."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.records import Records
from lw_retinanet.exporting.graph import with_sizes
from lw_retinanet.lightening.calibration_images import calibration_files, calibration_inputs


class Calibration:
    """Inputs of a network, one image at a time; read from the disk at each pass, since 300 of them fill gigabytes.

    Args:
        source: A data set, of which the training split is taken, or a folder of images; labels are not read.
        rule: Preprocessing of the model.
        count: Largest number of images; drawn at random if there are more.
        seed: Seed of the draw.

    Raises:
        InputError: If there are no images.
        ImageError: If an image that the annotations name is missing.
    """

    def __init__(self, source: Path, rule: InputRule, *, count: int, seed: int = 0) -> None:
        self.files = calibration_files(source, count=count, seed=seed)
        self.rule = rule

    def __len__(self) -> int:
        return len(self.files)

    def inputs(self, names: Sequence[str], *, count: int | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Values of a graph's inputs with these names, for the first ``count`` images or all."""
        for images in calibration_inputs(self.files[:count], self.rule, mirrored=False):
            values = with_sizes(names, images)
            yield {name: np.ascontiguousarray(value.numpy()) for name, value in zip(names, values, strict=True)}

    def shared_with(self, records: Records) -> int:
        """How many of these images are also among ``records``, by content: copies under other names count."""
        sizes: dict[int, list[Path]] = {}
        for image in range(records.num_images):
            path = records.path(image)
            sizes.setdefault(path.stat().st_size, []).append(path)
        digests: dict[int, set[str]] = {}
        number = 0
        for file in self.files:
            size = file.stat().st_size
            if size in sizes:
                if size not in digests:
                    digests[size] = {_digest(path) for path in sizes[size]}
                number += _digest(file) in digests[size]
        return number


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
