"""Detection as a step of Ray Data."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_list import need_pyarrow, read_listed
from lw_retinanet.detection.display_score import DISPLAY_SCORE, SmallestScore
from lw_retinanet.detection.table import PredictedRow, predictions_table
from lw_retinanet.devices import Precision
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.load import open_detector

if TYPE_CHECKING:
    import pyarrow


class Predict:
    """A callable class for ``ray.data.Dataset.map_batches``: a batch with the column ``file`` in, a table of predictions out.

    The table has a row for each row of the batch: ``file, width, height, error, detections``. An image that cannot be read is a row with
    the reason in ``error``. Every actor opens the model once.

    Args:
        model, score, head, precision, device, batch_size, max_pixels: As for :func:`lw_retinanet.predict`. The model must lie where every
            node of the cluster finds it.
        output: Arguments of :meth:`lw_retinanet.Detector.with_output`.
        folders: Where relative paths are looked for, in this order; none is the working folder of the actor.

    Example::

        files = ray.data.read_parquet("s3://bucket/list.parquet")
        found = files.map_batches(Predict, fn_constructor_args=["/shared/light.safetensors"], concurrency=(1, 8), num_cpus=2)
        found.write_parquet("s3://bucket/found")
    """

    def __init__(
        self,
        model: str | Path,
        *,
        score: SmallestScore | None = DISPLAY_SCORE,
        head: str | None = None,
        precision: Precision = "fp32",
        device: str = "auto",
        batch_size: int = 1,
        max_pixels: int = MAX_PIXELS,
        output: Mapping[str, Any] | None = None,
        folders: Sequence[str | Path] = (),
    ) -> None:
        need_pyarrow("prediction with Ray Data")
        self.detector = open_detector(model, head=head, device=device, precision=precision).with_output(**(output or {}))
        self._read = partial(read_listed, folders=[*map(Path, folders)], max_pixels=max_pixels)
        self._options: dict[str, Any] = {"score": score, "batch_size": batch_size}

    def rows(self, files: Iterable[str]) -> list[PredictedRow]:
        """A row for each image, in order."""
        names = list(files)
        outcomes = self.detector.predict_each(names, self._read, **self._options)
        return [PredictedRow.of(name, outcome) for name, outcome in zip(names, outcomes, strict=True)]

    def __call__(self, batch: Mapping[str, Any]) -> "pyarrow.Table":
        """The table of a batch.

        Raises:
            InputError: If the batch has no column ``file``.
        """
        if "file" not in batch:
            raise InputError(f"the data has no column file (it has {', '.join(map(str, batch))}); rename the one that holds the paths")
        return predictions_table(self.rows(map(str, batch["file"])), self.detector.categories)
