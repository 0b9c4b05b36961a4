"""Predict on files: drawn images, one JSON file, one COCO results file."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_files import find_images
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.display_score import DISPLAY_SCORE
from lw_retinanet.detection.result import Result, TiledResult
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.devices import Precision
from lw_retinanet.errors import DiskFullError, ImageError, InputError
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.files import output_folder, write_text
from lw_retinanet.progress import Progress, tracked

if TYPE_CHECKING:
    from lw_retinanet.detection.detector import Source


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
    model: str | Path | Detector,
    sources: Sequence[str | Path],
    *,
    out: Path | None = None,
    score: float | None = DISPLAY_SCORE,
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
        model, score, head, precision, device, batch_size, max_pixels: As for :func:`lw_retinanet.predict`.
        sources: Image files, folders and globs.
        output: Arguments of :meth:`lw_retinanet.Detector.with_output`.
        out: Folder for images with boxes, ``predictions.json`` and ``results.json`` (COCO results, file names as image ids); None writes
            nothing.
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
    outcomes = predict_into(
        out,
        model,
        find_images(sources),
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
    model: str | Path | Detector,
    images: "Sequence[Source]",
    *,
    score: float | None,
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

    Raises:
        InputError: If one of the images lies in the folder, where it could be overwritten.
    """
    files = [image for image in images if isinstance(image, Path)]
    collection = Collection(out, files, wgs84=tiling is not None and tiling.wgs84) if out else None
    detector = open_detector(model, head=head, device=device, precision=precision).with_output(**(output or {}))
    of_tiles, of_images = (progress, None) if tiling and len(images) == 1 else (None, progress)
    outcomes = detector.predict_files(images, score=score, batch_size=batch_size, max_pixels=max_pixels, tiling=tiling, progress=of_tiles)
    for outcome in tracked(outcomes, len(images), "predict", of_images):
        if collection and isinstance(outcome, Result):
            collection.add(outcome)
        yield outcome
    if collection:
        collection.write()


class Collection:
    """Draws results into a folder, and gathers their plain values.

    Args:
        folder: Where everything is written.
        sources: The images that are read, which must not lie there.
        wgs84: Whether GeoJSON files have longitude and latitude rather than a raster's own coordinates.
    """

    def __init__(self, folder: Path, sources: Sequence[Path] = (), *, wgs84: bool = False) -> None:
        inside = next((source for source in sources if os.path.realpath(source.parent) == os.path.realpath(folder)), None)
        if inside:
            raise InputError(f"{inside} lies in the folder {folder} that results go to and could be overwritten; choose another folder")
        self.folder = output_folder(folder)
        self.images: list[dict[str, Any]] = []
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
        self._coco += result.to_coco(result.file or str(len(self.images) - 1))
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
