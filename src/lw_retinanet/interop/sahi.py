"""A detector in the form that SAHI (sliced inference) expects of its models. Importing this module imports SAHI."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import MissingExtraError
from lw_retinanet.exporting.load import AnyModel, open_detector

try:
    from sahi.models.base import DetectionModel
    from sahi.prediction import ObjectPrediction
except ImportError:
    raise MissingExtraError("lw_retinanet.interop.sahi needs SAHI; install it with: pip install sahi") from None


class SahiModel(DetectionModel):
    """SAHI's ``DetectionModel`` with a detector of this package, as in ``get_sliced_prediction(image, SahiModel(model_path=FILE))``.

    ``model`` is whatever :func:`lw_retinanet.predict` takes, ``model_path`` a model file, run folder or exported file. SAHI's other
    parameters (``confidence_threshold``, ``device``, ``category_remapping``, ...) keep their meaning; ``image_size`` replaces the size that
    the model resizes to. Categories are the labels, from 0.
    """

    model: Detector
    category_mapping: dict[str, str]

    def load_model(self) -> None:
        """Open ``model_path``."""
        self.set_model(self.model_path)

    def set_model(self, model: AnyModel, **_: Any) -> None:
        """Take a model; SAHI passes no further arguments."""
        detector = open_detector(model, device=str(self.device))
        if self.image_size is not None:
            rule = detector.conventions.input.model_copy(update={"size": self.image_size})
            detector = detector.with_conventions(detector.conventions.model_copy(update={"input": rule}))
        self.model = detector
        self.category_mapping = self.category_mapping or {str(label): name for label, name in enumerate(detector.class_names)}

    def perform_inference(self, image: NDArray[np.uint8]) -> None:
        """Detect in one slice, (H, W, 3) RGB."""
        self._original_predictions = self.model.predict_arrays([image], score=self.confidence_threshold)

    @property
    def num_categories(self) -> int:
        """Number of classes."""
        return len(self.category_mapping)

    @property
    def category_names(self) -> list[str]:
        """Names of the classes."""
        return list(self.category_mapping.values())

    @property
    def has_mask(self) -> bool:
        """Whether there are masks."""
        return False

    def _create_object_prediction_list_from_original_predictions(
        self, shift_amount_list: list[Any] | None = None, full_shape_list: list[Any] | None = None
    ) -> None:
        found: list[Result] = self._original_predictions
        shifts, shapes = (_per_image(values, len(found)) for values in (shift_amount_list or [0, 0], full_shape_list))
        self._object_prediction_list_per_image = [
            [
                ObjectPrediction(
                    bbox=box.tolist(),
                    score=float(score),
                    category_id=int(label),
                    category_name=self.category_mapping[str(int(label))],
                    shift_amount=shift,
                    full_shape=shape,
                )
                for box, score, label in zip(result.boxes, result.scores, result.labels, strict=True)
            ]
            for result, shift, shape in zip(found, shifts, shapes, strict=True)
        ]


def _per_image(values: list[Any] | None, count: int) -> list[Any]:
    """SAHI gives one pair of numbers for a single image, or a list of pairs."""
    if values is None:
        return [None] * count
    return values if isinstance(values[0], list | tuple) else [values] * count
