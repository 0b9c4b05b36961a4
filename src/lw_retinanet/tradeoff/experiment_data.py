"""The images of an experiment: what is trained on and what is measured, over the data set's own splits or over folds."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.data.records import Records
from lw_retinanet.data.split import choose_folds, join_splits
from lw_retinanet.errors import DataError
from lw_retinanet.evaluation.paired import MIN_IMAGES
from lw_retinanet.jobs.train import open_training_data
from lw_retinanet.tradeoff.experiment import Experiment


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """One way to divide the images.

    Args:
        number: Number of the fold; None for the data set's own splits.
        records: Images to train on.
        held_out: Images to measure on.
        images: (I,) row of each of these in :attr:`ExperimentData.held_out`.
    """

    number: int | None
    records: Records
    held_out: Records
    images: NDArray[np.int64]

    @property
    def suffix(self) -> str:
        """Part of names of folders: ``-fold-2``, or nothing."""
        return "" if self.number is None else f"-fold-{self.number}"


@dataclass(frozen=True, kw_only=True, eq=False)
class ExperimentData:
    """All images of an experiment.

    Args:
        records: The training images; with folds all images.
        held_out: Every image that AP is measured on; with folds all images.
        folds: How the images are divided.
    """

    records: Records
    held_out: Records
    folds: tuple[Fold, ...]

    def fingerprints(self) -> dict[str, str]:
        """What tells these images and folds from others."""
        found = {"data": self.records.fingerprint(), "validation": self.held_out.fingerprint()}
        if len(self.folds) > 1:
            digest = hashlib.sha256(b"".join(fold.images.astype("<i8").tobytes() + b"|" for fold in self.folds))
            found["folds"] = digest.hexdigest()
        return found

    def said(self) -> str:
        """How the images are divided, in words; empty without folds."""
        if len(self.folds) == 1:
            return ""
        sizes = ", ".join(str(fold.held_out.num_images) for fold in self.folds)
        return f"training and validation images together in {len(self.folds)} folds of {sizes} images; each is scored once"


def open_data(experiment: Experiment) -> ExperimentData:
    """Read the data of an experiment, and divide it into folds if it says so.

    Raises:
        DataError: if the data cannot be used, or there are too few images for an interval.
    """
    settings = experiment.config(experiment.baseline, experiment.seeds[0]).data
    records, held_out = open_training_data(Path(experiment.data), max_pixels=settings.max_pixels, classes=settings.classes)
    if held_out is None:
        raise DataError(f"{experiment.data} has no val split to measure AP on; make one")
    whole = join_splits(records, held_out) if experiment.folds else held_out
    if whole.num_images < MIN_IMAGES:
        what = "images in all folds" if experiment.folds else "validation images"
        raise DataError(f"{experiment.data}: {whole.num_images} {what} are too few for an interval; use {MIN_IMAGES} or more")
    if experiment.folds is None:
        single = Fold(number=None, records=records, held_out=held_out, images=np.arange(held_out.num_images))
        return ExperimentData(records=records, held_out=held_out, folds=(single,))
    chosen = choose_folds(whole, experiment.folds, group=experiment.fold_group, seed=experiment.fold_seed)
    folds = []
    for number in range(experiment.folds):
        images = np.flatnonzero(chosen == number)
        folds.append(
            Fold(number=number, records=whole.subset(np.flatnonzero(chosen != number)), held_out=whole.subset(images), images=images)
        )
    return ExperimentData(records=whole, held_out=whole, folds=tuple(folds))
