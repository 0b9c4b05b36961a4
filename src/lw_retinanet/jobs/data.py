"""Look at a data set before training on it: check it, draw it, convert it."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.data.check import look_at, report_on
from lw_retinanet.data.check_report import DataReport
from lw_retinanet.data.convert import DataConversion, Turned, convert
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.formats.annotation_format import WHOLE
from lw_retinanet.data.formats.table import load_format
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.preview import preview
from lw_retinanet.data.split import divide
from lw_retinanet.errors import DataError, ImageError, shown
from lw_retinanet.files import existing
from lw_retinanet.progress import Progress
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
            lines += [*([f"{shown(split)}:"] if split else []), *recall.lines()]
        return lines


def check_data(
    data: Path,
    *,
    split: str | None = None,
    classes: Sequence[str] = (),
    image_size: int = 640,
    quick: bool = False,
    progress: Progress | None = None,
) -> DataCheck:
    """List the problems of a data set.

    Args:
        data: The data set.
        split: The only split to check; None checks all.
        classes: Names of the only classes that are read; () reads all.
        image_size: The longer side of the resized images in pixels, for the anchor recall.
        quick: Whether only the headers of the images are read; else every image is decoded.
        progress: Wraps the images, for instance to show a bar.

    Raises:
        DataError: if there is no such data set or split. Other problems are in the report.
    """
    dataset = Dataset.open(existing(data, "data set"), classes=classes)
    found = look_at(dataset, split, quick=quick, progress=progress)
    recalls: dict[str | None, AnchorRecall] = {}
    for name, one in found.items():
        if one.is_sound:
            with suppress(ImageError):  # the report names the problem
                recalls[None if name == WHOLE else name] = anchor_recall(with_sizes(one.records.joined()), image_size)
    return DataCheck(report=report_on(dataset, found), anchor_recall=recalls)


def preview_data(
    data: Path, out: Path, *, split: str | None = None, classes: Sequence[str] = (), count: int = 16, seed: int = 0
) -> list[Path]:
    """Draw the boxes of some images, with every class among them if ``count`` allows.

    Args:
        data: The data set.
        out: The folder for the figures.
        split: The split to draw; None takes the first one.
        classes: As for :func:`check_data`.
        count: The number of images.
        seed: Seed for the choice of images.

    Returns:
        The figures; the last one shows all images on one sheet.
    """
    dataset = Dataset.open(existing(data, "data set"), classes=classes)
    return preview(dataset.read(split or next(iter(dataset.splits), None)), out, count=count, seed=seed)


def convert_data(
    data: Path, out: Path, *, to: str, classes: Sequence[str] = (), copy_images: bool = True, turned: Turned | None = None
) -> DataConversion:
    """Write a data set in another annotation format; parameters and errors as :func:`lw_retinanet.data.convert.convert`.

    ``classes`` are the names of the only classes that are read; () reads all.
    """
    load_format(to)  # an unknown format is the first thing to be told
    dataset = Dataset.open(existing(data, "data set"), classes=classes)
    records = {split: dataset.read(split) for split in dataset.splits} or dataset.read()
    return convert(records, to, out, copy_images=copy_images, turned=turned)


def split_data(
    data: str | Path,
    out: str | Path,
    *,
    val: float = 0.2,
    group: str | None = None,
    seed: int = 0,
    copy_images: bool = True,
    classes: Sequence[str] = (),
) -> DataConversion:
    """Divide a data set that has no validation split, by images, and write it as COCO files.

    Args:
        data: The data set: undivided, or with a split ``train`` and maybe ``test``, which stays as it is.
        out: New or empty folder for ``train.json``, ``val.json`` and ``images/``.
        val: The share of the images for ``val``. Every class has about this share of its images there.
        group: Regular expression, searched in each file name; images with the same match stay together, for instance frames of one video.
        seed: Seed for the choice of images.
        copy_images: Whether to copy the images, too.
        classes: Names of the only classes that are read; () reads all.

    Returns:
        What was written.

    Raises:
        InputError: if the data set cannot be read, has a validation split already, or the folder cannot be used.

    Example:
        >>> import lw_retinanet as lw
        >>> divided = lw.split_data("my_data/train.json", "divided", val=0.25)
        >>> divided.images
        8
        >>> lw.train(divided.out, out="runs/divided", config={"train": {"steps": 1}})  # doctest: +SKIP
    """
    dataset = Dataset.open(existing(Path(data), "data set"), classes=classes)
    if "val" in dataset.splits:
        raise DataError(f"{data}: has a split val already; pass the training annotations alone to divide them anew")
    whole = dataset.read("train" if dataset.splits else None)
    splits = divide(whole, val, group=group, seed=seed)
    if "test" in dataset.splits:
        splits["test"] = dataset.read("test")
    return convert(splits, "coco", Path(out), copy_images=copy_images)
