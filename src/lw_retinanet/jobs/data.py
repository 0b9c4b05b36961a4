"""Look at a data set before training on it: check it, draw it, convert it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.data.check import check
from lw_retinanet.data.check_report import DataReport
from lw_retinanet.data.convert import DataConversion, convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.preview import preview
from lw_retinanet.errors import DataError, ImageError
from lw_retinanet.files import existing
from lw_retinanet.training.anchor_recall import AnchorRecall, anchor_recall


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What is wrong with a data set, and how well anchors cover its boxes.

    Args:
        report: The problems, classes and box sizes of every split.
        anchor_recall: The anchor recall of every split that can be read; the key is None where there are no splits.
    """

    report: DataReport
    anchor_recall: Mapping[str | None, AnchorRecall]

    def as_dict(self) -> dict[str, Any]:
        """The JSON of ``data check``."""
        recalls = {split or "all": recall.as_dict() for split, recall in self.anchor_recall.items()}
        return {**self.report.as_dict(), "anchor_recall": recalls}

    def lines(self) -> list[str]:
        """The check as text, for people."""
        lines = list(self.report.lines())
        for split, recall in self.anchor_recall.items():
            lines += [*([f"{split}:"] if split else []), *recall.lines()]
        return lines


def check_data(data: Path, *, split: str | None = None, image_size: int = 640) -> DataCheck:
    """List the problems of a data set.

    Args:
        data: The data set.
        split: The only split to check; None checks all.
        image_size: The longer side of the resized images in pixels, for the anchor recall.

    Raises:
        DataError: if there is no such data set or split. Other problems are in the report.
    """
    dataset = Dataset.open(existing(data, "data set"))
    report = check(dataset, split)
    recalls: dict[str | None, AnchorRecall] = {}
    names: list[str | None] = [split] if split else [*dataset.splits] or [None]
    for name in names:
        try:
            recalls[name] = anchor_recall(with_sizes(dataset.read(name)), image_size)
        except (DataError, ImageError):
            continue  # the report names the problem
    return DataCheck(report=report, anchor_recall=recalls)


def preview_data(data: Path, out: Path, *, split: str | None = None, count: int = 16, seed: int = 0) -> list[Path]:
    """Draw the boxes of some images, with every class among them if ``count`` allows.

    Args:
        data: The data set.
        out: The folder for the figures.
        split: The split to draw; None takes the first one.
        count: The number of images.
        seed: Seed for the choice of images.

    Returns:
        The figures; the last one shows all images on one sheet.
    """
    dataset = Dataset.open(existing(data, "data set"))
    return preview(dataset.read(split or next(iter(dataset.splits), None)), out, count=count, seed=seed)


def convert_data(data: Path, out: Path, *, to: str, copy_images: bool = True) -> DataConversion:
    """Write a data set in another annotation format; parameters and errors as :func:`lw_retinanet.data.convert.convert`."""
    dataset = Dataset.open(existing(data, "data set"))
    records = {split: dataset.read(split) for split in dataset.splits} or dataset.read()
    return convert(records, to, out, copy_images=copy_images)
