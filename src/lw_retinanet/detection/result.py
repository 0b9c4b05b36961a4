"""What a detector found in one image."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet import __version__
from lw_retinanet.data.georeference import Georeference
from lw_retinanet.data.records import Category
from lw_retinanet.detection.display_score import DISPLAY_SCORE
from lw_retinanet.detection.result_formats import as_csv, as_fiftyone, as_label_studio, as_pandas, as_yolo
from lw_retinanet.drawing import draw_boxes, encoded_jpeg, save_image
from lw_retinanet.errors import InputError, MissingExtraError
from lw_retinanet.page import captioned, image

_NOTEBOOK_SIDE = 1000  # pixels, at most


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The D detections of one image, the best first.

    Args:
        file: Where the image came from, or None.
        image: (H, W, 3) uint8 RGB as displayed.
        boxes: (D, 4) float32 xyxy pixels of ``image``.
        scores: (D,) float32 in 0..1.
        labels: (D,) int64 indices into ``categories``.
        categories: The model's classes.
    """

    file: str | None
    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    categories: tuple[Category, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width of the image that the boxes are in."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def names(self) -> list[str]:
        """Class name of each box."""
        return [self.categories[label].name for label in self.labels]

    def plot(self, *, score: float = 0.0) -> NDArray[np.uint8]:
        """The image with boxes, names and scores drawn, (H, W, 3) uint8 RGB; detections below ``score`` are left out."""
        shown = self.scores >= score
        return draw_boxes(self.image, self.boxes[shown], self.labels[shown], [c.name for c in self.categories], self.scores[shown])

    def _repr_html_(self) -> str:
        """What a notebook shows: the image with its detections, without those of low scores, as :meth:`save` draws it."""
        number = int((self.scores >= DISPLAY_SCORE).sum())
        said = f"{self.file or 'image'}: {number:,} detections of score {DISPLAY_SCORE:g} and more"
        return captioned(said, image(encoded_jpeg(self.plot(score=DISPLAY_SCORE), longest=_NOTEBOOK_SIDE), said))

    def save(self, path: str | Path, *, score: float = DISPLAY_SCORE) -> Path:
        """Write :meth:`plot` to a file, in the format of its suffix; returns the path. As ``predict``, it leaves low scores out."""
        save_image(self.plot(score=score), Path(path))
        return Path(path)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``file, width, height, detections: [{box, score, label, name, category_id}]``."""
        detections = detection_dicts(self.boxes, self.scores, self.labels, self.categories)
        height, width = self.size_hw
        return {"file": self.file, "width": width, "height": height, "detections": detections}

    def to_json(self) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict())

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """COCO results: ``image_id, category_id, bbox`` (x, y, width, height) and ``score``, with the data set's own category ids."""
        return [
            {"image_id": image_id, "category_id": self.categories[label].id, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), score, label in zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        ]

    def to_csv(self) -> str:
        """A table with a header, as DeepForest writes it: ``xmin, ymin, xmax, ymax, label, score, image_path``."""
        return as_csv(self.boxes, self.names, self.scores, self.file)

    def to_pandas(self) -> Any:
        """The table of :meth:`to_csv` as a ``pandas.DataFrame`` (needs the package ``pandas``)."""
        return as_pandas(self.boxes, self.names, self.scores, self.file)

    def to_yolo(self) -> str:
        """YOLO's text with confidences: ``label cx cy w h confidence``, in shares of the image's sides."""
        return as_yolo(self.boxes, self.labels, self.scores, self.size_hw)

    def to_label_studio(self, image: str | None = None) -> dict[str, Any]:
        """A task with pre-annotations for Label Studio.

        Args:
            image: Where Label Studio finds the image; None is ``file``.
        """
        where = image or self.file or ""
        return as_label_studio(self.boxes, self.names, self.scores, self.size_hw, image=where, version=f"lw_retinanet {__version__}")

    def to_fiftyone(self) -> Any:
        """A ``fiftyone.Detections`` (needs the package ``fiftyone``)."""
        return as_fiftyone(self.boxes, self.names, self.scores, self.size_hw)

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` (needs the package ``supervision``)."""
        try:
            import supervision
        except ImportError:
            raise MissingExtraError("to_supervision needs supervision; install it with: pip install 'lw-retinanet[supervision]'") from None
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": np.array(self.names, dtype=object)}
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TiledResult(Result):
    """What was found in an image tile by tile.

    Args:
        image: The image. Of a raster that was read by windows, a reduced copy, which :meth:`plot` draws on.
        boxes: (D, 4) float32 xyxy pixels of the image in its full size.
        full_hw: The full height and width.
        num_tiles: The number of tiles.
        num_empty: How many of them have no data and were left out.
        georeference: Where the image lies on the ground, if that is known.
    """

    full_hw: tuple[int, int]
    num_tiles: int
    num_empty: int
    georeference: Georeference | None = None

    @property
    def size_hw(self) -> tuple[int, int]:
        """The full height and width."""
        return self.full_hw

    def plot(self, *, score: float = 0.0) -> NDArray[np.uint8]:
        """``image`` with boxes, names and scores drawn, (H, W, 3) uint8 RGB."""
        factors = np.array([self.image.shape[1] / self.full_hw[1], self.image.shape[0] / self.full_hw[0]] * 2)
        shown = self.scores >= score
        names = [c.name for c in self.categories]
        return draw_boxes(self.image, self.boxes[shown] * factors, self.labels[shown], names, self.scores[shown])

    def to_dict(self) -> dict[str, Any]:
        """As of :class:`Result`, with ``tiles`` and ``empty_tiles``, two numbers."""
        return {**super().to_dict(), "tiles": self.num_tiles, "empty_tiles": self.num_empty}

    def to_geojson(self, *, wgs84: bool = False) -> dict[str, Any]:
        """A GeoJSON ``FeatureCollection`` with a polygon for each box.

        Args:
            wgs84: Longitude and latitude, as RFC 7946 has it. Otherwise the raster's own reference system, which the member ``crs`` names.

        Raises:
            InputError: If the image has no georeference, or its reference system cannot be turned into WGS 84.
        """
        if self.georeference is None:
            raise InputError(f"{self.file or 'the image'} has no georeference, so its boxes are in pixels only; read them from to_dict()")
        rings = self.georeference.rings(self.boxes, wgs84=wgs84).tolist()
        features = [
            {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}
            for ring, properties in zip(rings, detection_dicts(self.boxes, self.scores, self.labels, self.categories), strict=True)
        ]
        system = {} if wgs84 else {"crs": {"type": "name", "properties": {"name": self.georeference.name}}}
        return {"type": "FeatureCollection", **system, "features": features}


def detection_dicts(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.int64], categories: Sequence[Category]
) -> list[dict[str, Any]]:
    """Plain values of D detections: ``box, score, label, name, category_id``; the arrays are those of :class:`Result`."""
    rows = zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True)
    return [
        {"box": box, "score": score, "label": label, "name": categories[label].name, "category_id": categories[label].id}
        for box, score, label in rows
    ]
