"""Whether an exported network answers as its model does, which is checked before anybody else can see the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.graph import TRACED_BATCH, TRACED_SIZE_HW, RawGraph, example_inputs, full_sizes
from lw_retinanet.exporting.matches import MIN_SHARE, Detected, match_lists, share_found
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.models.postprocess import detect
from lw_retinanet.structures import Detections, Predictions

CASES: tuple[tuple[int, tuple[int, int]], ...] = ((1, (128, 224)), (3, (224, 160)))
assert all(batch != TRACED_BATCH and size_hw != TRACED_SIZE_HW for batch, size_hw in CASES)
FP32_TOLERANCE = 1e-4  # of logits and deltas, relative to the largest of them; measured: some 1e-6
SCORE_TOLERANCE, BOX_TOLERANCE = 1e-4, 0.05  # of detections; pixels
MAX_MISSING = 0.01  # of the detections: two boxes whose IoU is just at the limit may fall either way
# Root of the mean squared error over the standard deviation. Measured on a trained ResNet-50: fp16 weights 0.0006, bf16 0.04, int8 0.1.
RMS_LIMITS = {"half": 0.01, "bf16": 0.15, "int8": 0.8}
_WANTED = 50  # detections in an image at least, so that there is something to compare


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was compared, and the largest differences.

    Args:
        cases: Batch, height and width of each input; the last one is an image without detections.
        largest: Largest absolute difference of logits and deltas; None for a network that gives boxes.
        rms: Root of the mean squared difference over the standard deviation; None as above.
        compared: Number of detections.
        missing: Detections of either side without a match on the other.
        empty: Whether the model found nothing in the last case at its own threshold.
    """

    cases: tuple[tuple[int, int, int], ...]
    largest: float | None
    rms: float | None
    compared: int
    missing: int
    empty: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "cases": [list(case) for case in self.cases]}


def check_agreement(reference: RawGraph, runtime: ExportedRuntime, *, images: Sequence[Tensor] = ()) -> Agreement:
    """Compare a network with its model at batches and sizes other than the traced ones, and on an image in which nothing is found.

    In fp32 every logit, delta and detection must agree. In lower precision only the error as a whole is limited;
    :mod:`lw_retinanet.exporting.gate` measures what it costs.

    Args:
        reference: The model.
        runtime: Runs the exported network.
        images: (1, 3, H, W) inputs to make the cases from; none takes smooth noise. An int8 network needs images like those of its
            calibration.

    Raises:
        ExportError: If they differ by more than they may.
    """
    manifest = runtime.manifest
    comparison = _Comparison(runtime)
    inputs = [_case(reference, batch, size_hw, images, seed) for seed, (batch, size_hw) in enumerate(CASES)]
    empty, is_empty = _without_detections(reference, manifest.record.conventions)
    for each in inputs:
        comparison.add(each, _predict(reference, each))
    comparison.add(empty, _predict(reference, empty), is_plain=True, is_empty=is_empty)
    missing, compared = comparison.missing, comparison.compared
    if comparison.rms_limit is None and missing > max(1, MAX_MISSING * compared):
        raise ExportError(
            f"{missing} of {compared} detections of the exported file are not the model's (score within {SCORE_TOLERANCE}, box within "
            f"{BOX_TOLERANCE} pixels); nothing was written"
        )
    return Agreement(
        cases=tuple((len(each), int(each.shape[2]), int(each.shape[3])) for each in (*inputs, empty)),
        largest=None if runtime.gives_boxes else comparison.largest,
        rms=None if runtime.gives_boxes else comparison.rms,
        compared=compared,
        missing=missing,
        empty=is_empty,
    )


class _Comparison:
    """Differences of a network from its model, over several inputs."""

    def __init__(self, runtime: ExportedRuntime) -> None:
        manifest = runtime.manifest
        self.runtime = runtime
        self.conventions = manifest.record.conventions
        self.rms_limit = RMS_LIMITS.get("half" if manifest.half_weights and manifest.precision == "fp32" else manifest.precision)
        self.largest = self.rms = 0.0
        self.compared = self.missing = 0

    def add(self, images: Tensor, wanted: Predictions, *, is_plain: bool = False, is_empty: bool = False) -> None:
        """Compare one input.

        Args:
            images: The input.
            wanted: What the model says.
            is_plain: The images have one colour.
            is_empty: The model finds nothing in them.
        """
        if self.runtime.gives_boxes:
            conventions = self.conventions
            given = self.runtime.detect(images, full_sizes(images))
        else:
            found = self.runtime.forward(images)
            for name, one, other in (("logits", wanted.logits, found.logits), ("deltas", wanted.deltas, found.deltas)):
                largest, rms = _difference(one, other, name, images, self.rms_limit)
                self.largest, self.rms = max(self.largest, largest), max(self.rms, 0.0 if is_plain else rms)
            conventions = _with_threshold(wanted, self.conventions, none=is_plain)
            given = _detected(found, images, conventions)
        expected = _detected(wanted, images, conventions)
        if is_empty and self.rms_limit is None and int(given.counts.sum()) > 0:
            raise ExportError(f"the exported file finds {int(given.counts.sum())} objects in an image in which the model finds none")
        self._match(expected, given, conventions.output.score_threshold)

    def _match(self, expected: Detections, given: Detections, threshold: float) -> None:
        most = expected.scores.shape[1]
        for row in range(len(expected.counts)):
            one, other = Detected.of_row(expected, row), Detected.of_row(given, row)
            matches = match_lists(one, other, most=most, box=BOX_TOLERANCE, score=SCORE_TOLERANCE, threshold=threshold)
            self.missing += matches.missing
            if self.rms_limit is not None and self.runtime.gives_boxes and (share := share_found(one, other)) < MIN_SHARE:
                raise ExportError(f"the exported file shares only {share:.0%} of the model's detections in an image; nothing was written")
        self.compared += int(expected.counts.sum())


def _difference(wanted: Tensor, found: Tensor, name: str, images: Tensor, rms_limit: float | None) -> tuple[float, float]:
    """Largest and relative mean difference, where both are within their limits."""
    shape = tuple(images.shape)
    if wanted.shape != found.shape or not bool(found.isfinite().all()):
        what = "are not all finite" if wanted.shape == found.shape else f"have the shape {tuple(found.shape)}, not {tuple(wanted.shape)}"
        raise ExportError(f"the {name} of the exported file {what} for an input of {shape}; nothing was written")
    error = (wanted - found).double()
    largest, limit = float(error.abs().max()), FP32_TOLERANCE * max(1.0, float(wanted.abs().max()))
    rms = float(error.square().mean().sqrt() / wanted.double().std().clamp(min=1e-6))
    problem = ""
    if rms_limit is None and largest > limit:
        problem = f"differ from the model's by {largest:.2g}, more than {limit:.2g},"
    elif rms_limit is not None and rms > rms_limit and bool(images.std() > 0):  # a plain image has no signal to compare with
        problem = f"have a relative error of {rms:.2g}, more than {rms_limit},"
    if problem:
        raise ExportError(f"the {name} of the exported file {problem} for an input of {shape}; nothing was written")
    return largest, rms


def _predict(reference: RawGraph, images: Tensor) -> Predictions:
    with torch.no_grad():
        return Predictions(*reference(images))


def _case(graph: RawGraph, batch: int, size_hw: tuple[int, int], images: Sequence[Tensor], seed: int) -> Tensor:
    if not images:
        return example_inputs(graph, batch, size_hw, seed=seed + 1)[0]
    return torch.cat([nn.functional.interpolate(images[row % len(images)], size=size_hw, mode="bilinear") for row in range(batch)])


def _without_detections(reference: RawGraph, conventions: Conventions) -> tuple[Tensor, bool]:
    """An image of one colour, and whether the model finds nothing in it at its own threshold."""
    plain = [torch.full((1, 3, 128, 192), value) for value in (0.0, -2.0, 2.0)]
    for images in plain:
        if int(_detected(_predict(reference, images), images, conventions).counts.sum()) == 0:
            return images, True
    return plain[0], False


def _with_threshold(predictions: Predictions, conventions: Conventions, *, none: bool) -> Conventions:
    """Conventions with a threshold that many candidates pass, so that detections can be compared, or none at all."""
    scores = predictions.logits.amax(dim=2).flatten().sigmoid()
    if none:
        score = min(0.99, max(conventions.output.score_threshold, float(scores.max()) + 0.02))
    else:
        score = min(conventions.output.score_threshold, float(scores.topk(min(_WANTED, len(scores))).values[-1]))
    output = conventions.output.model_copy(update={"score_threshold": score, "last_level_score_threshold": None})
    return conventions.model_copy(update={"output": output})


def with_low_threshold(reference: RawGraph, conventions: Conventions) -> Conventions:
    """Conventions with a threshold that candidates in noise pass, for a model that finds too little to compare at its own."""
    (images, *_) = example_inputs(reference, *CASES[0], seed=1)
    return _with_threshold(_predict(reference, images), conventions, none=False)


def _detected(predictions: Predictions, images: Tensor, conventions: Conventions) -> Detections:
    size_hw = (int(images.shape[2]), int(images.shape[3]))
    with torch.no_grad():
        return detect(predictions, size_hw=size_hw, sizes_hw=full_sizes(images), conventions=conventions)
