"""Predict on files: drawn images, one JSON file, one COCO results file."""

import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.records import Category, Records
from lw_retinanet.detection.display_score import DISPLAY_SCORE, SmallestScore
from lw_retinanet.detection.result import Result, TiledResult
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.devices import Precision
from lw_retinanet.errors import DiskFullError, ImageError, InputError, shown
from lw_retinanet.exporting.load import AnyModel, open_detector
from lw_retinanet.files import existing, output_folder, write_text
from lw_retinanet.progress import Progress, tracked

if TYPE_CHECKING:
    from lw_retinanet.detection.detector import Source

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was found.

    Args:
        images: A dictionary for each image, as :meth:`lw_retinanet.Result.to_dict` gives it.
        folder: Where drawn images, ``predictions.json`` and ``results.json`` were written; None if nothing was.
        errors: Images that cannot be read.
    """

    images: tuple[dict[str, Any], ...]
    folder: Path | None
    errors: tuple[ImageError, ...]

    @property
    def num_detections(self) -> int:
        """Number of detections in all images."""
        return sum(len(image["detections"]) for image in self.images)

    def as_dict(self) -> dict[str, Any]:
        """``{"images": [...]}``."""
        return {"images": list(self.images)}


def run_prediction(
    model: AnyModel,
    sources: Sequence[str | Path],
    *,
    data: Path | None = None,
    split: str | None = None,
    out: Path | None = None,
    score: SmallestScore | None = DISPLAY_SCORE,
    head: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int = 1,
    max_pixels: int = MAX_PIXELS,
    output: Mapping[str, Any] | None = None,
    tiling: Tiling | None = None,
    on_error: Callable[[ImageError], None] = lambda _: None,
    progress: Progress | None = None,
) -> Predicted:
    """Detect in many files. An image that cannot be read does not stop the others.

    Args:
        model, data, split, score, head, precision, device, batch_size, max_pixels: As for :func:`lw_retinanet.predict`.
        sources: Image files, folders and globs; none are the images of ``data``.
        output: Arguments of :meth:`lw_retinanet.Detector.with_output`.
        out: Folder for images with boxes, ``predictions.json`` and ``results.json`` (COCO results, with file names as image ids unless
            there is ``data``); None writes nothing.
        tiling: How large images are cut; their boxes also go into a GeoJSON file each if they have a georeference.
        on_error: Called for each image that cannot be read, as soon as its turn comes.
        progress: Shows how far it is.

    Raises:
        InputError: If a source yields no image, or ``out`` holds images that are to be read.
        WeightsError: If the model cannot be read.
        DiskFullError: If the disk is full. What was found until then is written.
        OutputError: If ``out`` cannot be written to.
    """
    images, errors = [], []
    records = labelled_images(data, split)
    outcomes = predict_into(
        out,
        model,
        find_images(sources) if sources else images_of(records),
        records=records,
        score=score,
        head=head,
        precision=precision,
        device=device,
        batch_size=batch_size,
        max_pixels=max_pixels,
        output=output,
        tiling=tiling,
        progress=progress,
    )
    for outcome in outcomes:
        if isinstance(outcome, ImageError):
            errors.append(outcome)
            on_error(outcome)
        else:
            images.append(outcome.to_dict())
    return Predicted(images=tuple(images), folder=out, errors=tuple(errors))


def predict_into(
    out: Path | None,
    model: AnyModel,
    images: "Sequence[Source]",
    *,
    records: Records | None = None,
    score: SmallestScore | None,
    head: str | None,
    precision: Precision,
    device: str,
    batch_size: int,
    max_pixels: int,
    output: Mapping[str, Any] | None = None,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Iterator[Result | ImageError]:
    """The outcome of each image, in order, which is also drawn into a folder; both JSON files are written after the last one.

    Args:
        records: The data set whose ids ``results.json`` has; other arguments as for :func:`run_prediction`.

    Raises:
        InputError: If one of the images lies in the folder, where it could be overwritten.
    """
    files = [image for image in images if isinstance(image, Path)]
    collection = Collection(out, files, wgs84=tiling is not None and tiling.wgs84) if out else None
    detector = open_detector(model, head=head, device=device, precision=precision).with_output(**(output or {}))
    if collection and records is not None:
        collection.ids = DataIds(records, detector.categories)
    of_tiles, of_images = (progress, None) if tiling and len(images) == 1 else (None, progress)
    outcomes = detector.predict_files(images, score=score, batch_size=batch_size, max_pixels=max_pixels, tiling=tiling, progress=of_tiles)
    for outcome in tracked(outcomes, len(images), "predict", of_images):
        if collection and isinstance(outcome, Result):
            collection.add(outcome)
        yield outcome
    if collection:
        collection.write()


def labelled_images(data: Path | None, split: str | None) -> Records | None:
    """The images of a data set, which need no boxes; None without one.

    Raises:
        DataError: If it cannot be read or has no such split.
        InputError: If a split is named without a data set.
    """
    if data is None:
        if split is not None:
            raise InputError(f"split {shown(split)} is that of a data set, and none is given; name data, too")
        return None
    dataset = Dataset.open(existing(data, "data set"))
    return dataset.part(split or dataset.or_whole("val")).read().joined()


def images_of(records: Records | None) -> list[Path]:
    """The files of a data set, where nothing else says what to predict on.

    Raises:
        InputError: If there is no data set.
    """
    if records is None:
        raise InputError("there is nothing to predict on; name images, or a data set")
    return records.paths()


class DataIds:
    """Writes results with the ids of a data set.

    Args:
        records: The data set.
        categories: The classes of the model, which are matched with those of the data set as in an evaluation.

    Raises:
        DataError: If no class of the model is in the data set.
    """

    def __init__(self, records: Records, categories: Sequence[Category]) -> None:
        match = match_categories(categories, records)
        for note in match.notes:
            log.warning("%s", note)
        self._labels = match.labels
        self._categories = records.categories
        self._ids = {os.path.realpath(path): image_id for path, image_id in zip(records.paths(), records.image_ids, strict=True)}
        self._is_outside_known = False

    def to_coco(self, result: Result) -> list[dict[str, Any]]:
        """COCO results; classes that the data set does not have are left out, and an image that it does not have goes by its file name."""
        file = result.file or ""
        image_id = self._ids.get(os.path.realpath(file))
        if image_id is None and not self._is_outside_known:
            self._is_outside_known = True
            log.warning("%s and perhaps others are not in the data set; results.json has their file names as ids", file)
        labels = self._labels[result.labels].astype(np.int64)
        known = labels >= 0
        matched = replace(result, boxes=result.boxes[known], scores=result.scores[known], labels=labels[known], categories=self._categories)
        return matched.to_coco(file if image_id is None else image_id)


class Collection:
    """Draws results into a folder, and gathers their plain values.

    Args:
        folder: Where everything is written.
        sources: The images that are read, which must not lie there.
        wgs84: Whether GeoJSON files have longitude and latitude rather than a raster's own coordinates.

    Attributes:
        ids: The ids for ``results.json``; None are file names and the model's own ids of classes.
    """

    def __init__(self, folder: Path, sources: Sequence[Path] = (), *, wgs84: bool = False) -> None:
        inside = next((source for source in sources if os.path.realpath(source.parent) == os.path.realpath(folder)), None)
        if inside:
            raise InputError(f"{inside} lies in the folder {folder} that results go to and could be overwritten; choose another folder")
        self.folder = output_folder(folder)
        self.images: list[dict[str, Any]] = []
        self.ids: DataIds | None = None
        self._coco: list[dict[str, Any]] = []
        self._names: set[str] = set()
        self._drawn: list[Path] = []
        self._wgs84 = wgs84

    def add(self, result: Result) -> None:
        """Take one result in, and draw it into the folder.

        Raises:
            DiskFullError: If the disk is full. Both JSON files then hold what was found so far, and the newest drawn images make room for
                them.
        """
        self.images.append(result.to_dict())
        self._coco += self.ids.to_coco(result) if self.ids else result.to_coco(result.file or str(len(self.images) - 1))
        path = self.folder / self._free_name(Path(result.file or "picture").stem)
        try:
            result.save(path, score=0.0)  # the caller has chosen
            if isinstance(result, TiledResult) and result.georeference:
                write_text(path.with_suffix(".geojson"), json.dumps(result.to_geojson(wgs84=self._wgs84)) + "\n")
        except DiskFullError as error:
            removed = self._write_on_full_disk()
            raise DiskFullError(
                f"{error}. predictions.json and results.json hold the {len(self.images)} images until then; "
                f"{removed} drawn images were removed to make room for them"
            ) from None
        self._drawn.append(path)

    def _write_on_full_disk(self) -> int:
        """Write both JSON files, and remove as many drawn images as that takes; their number."""
        removed = 0
        while True:
            try:
                self.write()
                return removed
            except DiskFullError:
                if not self._drawn:
                    raise
                self._drawn.pop().unlink(missing_ok=True)
                removed += 1

    def write(self) -> None:
        """Write both JSON files."""
        write_text(self.folder / "predictions.json", json.dumps({"images": self.images}, indent=1) + "\n")
        write_text(self.folder / "results.json", json.dumps(self._coco) + "\n")

    def _free_name(self, stem: str) -> str:
        """A name that no earlier image has: several folders may hold the same names."""
        clean = re.sub(r"[^\w.-]+", "_", stem)[:100] or "picture"
        name, number = clean, 2
        while name.casefold() in self._names:  # some file systems do not tell A.jpg from a.jpg
            name, number = f"{clean}-{number}", number + 1
        self._names.add(name.casefold())
        return f"{name}.jpg"
