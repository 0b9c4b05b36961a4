"""Does the exported file answer as the model does? Asked before anybody else can see the file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.partners import MIN_SHARE, Detected, partners, shared
from lw_retinanet.exporting.raw_graph import RawGraph
from lw_retinanet.exporting.runtimes import manifest_of
from lw_retinanet.exporting.tracing import TRACED_BATCH, TRACED_SIZE_HW, example_inputs
from lw_retinanet.models.postprocess import detect
from lw_retinanet.structures import Detections, Predictions

CASES: tuple[tuple[int, tuple[int, int]], ...] = ((1, (128, 224)), (3, (224, 160)))
assert all(batch != TRACED_BATCH and size_hw != TRACED_SIZE_HW for batch, size_hw in CASES)
FP32_TOLERANCE = 1e-4  # of logits and deltas, relative to the largest of them; measured: some 1e-6
SCORE_TOLERANCE, BOX_TOLERANCE = 1e-4, 0.05  # of detections; pixels
MAX_MISSING = 0.01  # of the detections: two boxes that overlap by just the limit may fall either way
# Root of the mean squared error over the standard deviation. Measured on a trained ResNet-50: fp16 weights 0.0006, bf16 0.04, int8 0.1.
RMS_LIMITS = {"half": 0.01, "bf16": 0.15, "int8": 0.8}
_WANTED = 50  # detections in an image at least, so that there is something to compare


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What was compared, and how far both were apart at most.

    Args:
        cases: batch, height, width of each input; the last is the picture without detections.
        largest: of the absolute differences of logits and deltas; None for a file that gives boxes.
        rms: root of the mean squared difference over the standard deviation; None as above.
        compared: detections.
        missing: those of either that the other does not have within tolerance.
        empty: whether the last case had no detections at the model's own threshold.
    """

    cases: tuple[tuple[int, int, int], ...]
    largest: float | None
    rms: float | None
    compared: int
    missing: int
    empty: bool

    def as_dict(self) -> dict[str, Any]:
        return {**vars(self), "cases": [list(case) for case in self.cases]}


def check_agreement(reference: RawGraph, detector: Detector, *, half_weights: bool = False, pictures: Sequence[Tensor] = ()) -> Agreement:
    """Compare a file with its model at batches and sizes other than the traced ones, and on a picture in which nothing is found.

    In fp32 every logit, delta and detection has to agree; in less than that the error as a whole is limited, and what it costs is for
    :mod:`lw_retinanet.exporting.gate` to say.

    Args:
        reference: the model.
        detector: over the exported file.
        half_weights: its weights were rounded to fp16.
        pictures: (1, 3, H, W) inputs to make the cases of; None takes smooth noise. int8 knows only the values that it was calibrated on.

    Raises:
        ExportError: if they differ by more than they may.
    """
    manifest = manifest_of(detector)
    assert manifest is not None
    rounding = "half" if half_weights and manifest.precision == "fp32" else manifest.precision
    rms_limit = RMS_LIMITS.get(rounding)
    inputs = [_case(reference, batch, size_hw, pictures, seed) for seed, (batch, size_hw) in enumerate(CASES)]
    empty, is_empty = _without_detections(reference, detector.conventions)
    inputs.append(empty)
    largest, rms, compared, missing = 0.0, 0.0, 0, 0
    for images in inputs:
        is_last = images is empty
        with torch.no_grad():
            wanted = Predictions(*reference(images))
        if manifest.outputs == "raw":
            found = detector.network(images)
            for name, one, other in (("logits", wanted.logits, found.logits), ("deltas", wanted.deltas, found.deltas)):
                difference = _difference(one, other, name, images, rms_limit)
                largest, rms = max(largest, difference[0]), max(rms, difference[1] if not is_last else 0.0)
            conventions = _conventions(wanted, detector.conventions, none=is_last)
            expected, given = (_detected(predictions, images, conventions) for predictions in (wanted, found))
        else:
            conventions = detector.conventions
            expected = _detected(wanted, images, conventions)
            given = detector.runtime.detect(images, _sizes(images))
        if is_last and is_empty and rms_limit is None and int(given.counts.sum()) > 0:
            raise ExportError(f"the exported file finds {int(given.counts.sum())} objects in a picture in which the model finds none")
        number, lost = _missing(expected, given, conventions.output.score_threshold)
        compared, missing = compared + number, missing + lost
        if rms_limit is not None and manifest.outputs != "raw":
            _require_shared(expected, given)
    if rms_limit is None and missing > max(1, MAX_MISSING * compared):
        raise ExportError(
            f"{missing} of {compared} detections of the exported file are not the model's (score within {SCORE_TOLERANCE}, box within "
            f"{BOX_TOLERANCE} pixels); nothing was written"
        )
    is_raw = manifest.outputs == "raw"
    cases = tuple((len(images), int(images.shape[2]), int(images.shape[3])) for images in inputs)
    return Agreement(
        cases=cases, largest=largest if is_raw else None, rms=rms if is_raw else None, compared=compared, missing=missing, empty=is_empty
    )


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
    elif rms_limit is not None and rms > rms_limit and bool(images.std() > 0):  # on an empty picture there is no signal to compare with
        problem = f"have a relative error of {rms:.2g}, more than {rms_limit},"
    if problem:
        raise ExportError(f"the {name} of the exported file {problem} for an input of {shape}; nothing was written")
    return largest, rms


def _case(graph: nn.Module, batch: int, size_hw: tuple[int, int], pictures: Sequence[Tensor], seed: int) -> Tensor:
    if not pictures:
        return example_inputs(graph, batch, size_hw, seed=seed + 1)[0]
    rows = [nn.functional.interpolate(pictures[row % len(pictures)], size=size_hw, mode="bilinear") for row in range(batch)]
    return torch.cat(rows)


def _without_detections(reference: RawGraph, conventions: Conventions) -> tuple[Tensor, bool]:
    """A picture in which the model finds nothing at its own threshold, if one of some plain ones is such; else one of these."""
    plain = [torch.full((1, 3, 128, 192), value) for value in (0.0, -2.0, 2.0)]
    for images in plain:
        with torch.no_grad():
            found = _detected(Predictions(*reference(images)), images, conventions)
        if int(found.counts.sum()) == 0:
            return images, True
    return plain[0], False


def _conventions(predictions: Predictions, conventions: Conventions, *, none: bool) -> Conventions:
    """With a threshold that many candidates pass, so that detections can be compared, or none at all."""
    scores = predictions.logits.amax(dim=2).flatten().sigmoid()
    if none:
        score = min(0.99, max(conventions.output.score_threshold, float(scores.max()) + 0.02))
    else:
        score = min(conventions.output.score_threshold, float(scores.topk(min(_WANTED, len(scores))).values[-1]))
    output = conventions.output.model_copy(update={"score_threshold": score, "last_level_score_threshold": None})
    return conventions.model_copy(update={"output": output})


def talkative(reference: RawGraph, conventions: Conventions) -> Conventions:
    """The same with a threshold that candidates in noise pass, for a file whose own the model passes too rarely to compare anything."""
    (images, *_) = example_inputs(reference, *CASES[0], seed=1)
    with torch.no_grad():
        return _conventions(Predictions(*reference(images)), conventions, none=False)


def _detected(predictions: Predictions, images: Tensor, conventions: Conventions) -> Detections:
    size_hw = (int(images.shape[2]), int(images.shape[3]))
    return detect(predictions, size_hw=size_hw, sizes_hw=_sizes(images), conventions=conventions)


def _sizes(images: Tensor) -> Tensor:
    return torch.tensor([images.shape[2:]] * len(images))


def _missing(expected: Detections, given: Detections, threshold: float) -> tuple[int, int]:
    """Detections of ``expected``, and how many of either have no partner in the other; those at the edge of the list do not count."""
    lost, most = 0, expected.scores.shape[1]
    for row in range(len(expected.counts)):
        lost += partners(
            _of_row(expected, row), _of_row(given, row), most=most, box=BOX_TOLERANCE, score=SCORE_TOLERANCE, threshold=threshold
        ).missing
    return int(expected.counts.sum()), lost


def _require_shared(expected: Detections, given: Detections) -> None:
    """Of a rounded network that gives boxes, all that can be asked for; what it costs is for the gate to say."""
    for row in range(len(expected.counts)):
        share = shared(_of_row(expected, row), _of_row(given, row))
        if share < MIN_SHARE:
            raise ExportError(f"the exported file shares only {share:.0%} of the model's detections in a picture; nothing was written")


def _of_row(detections: Detections, row: int) -> Detected:
    count = int(detections.counts[row])
    return Detected(detections.boxes[row, :count], detections.scores[row, :count], detections.labels[row, :count])
