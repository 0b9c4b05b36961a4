"""Predictions of a converted model compared with those of its original framework, where that is installed."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.ops import nms

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.sample import draw_scene
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.weights.foreign import torchvision
from lw_retinanet.weights.foreign.convention_overrides import apply_overrides
from lw_retinanet.weights.foreign.conversion import ConvertedModel, FrameworkComparison
from lw_retinanet.weights.foreign.torchvision_twin import torchvision_conventions, torchvision_of_file
from lw_retinanet.weights.foreign.weights_format import WeightsFormat
from lw_retinanet.weights.model_file import LoadedModel

Image = NDArray[np.uint8]
DRAWN_HW = ((240, 320), (331, 217))
SIDE = 320  # drawn images are compared at this shorter side: at full size two networks take a minute on two cores
_SHOWN = 5  # detections without a match that are listed
_TIE = 1e-4  # rounding decides on which side of a threshold a score as close as this lies
_SAME_PX, _SAME_SCORE = 2.0, 0.01  # detections that are further apart than this are different ones
_TIED_PX = 0.05  # the same at a threshold, where another detection of almost this score may have been kept instead
_NEVER = -1e4  # logit of a class row that is never detected


# Boxes, scores and labels of one image, sorted by descending score.
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]
Predict = Callable[[LoadedModel, Sequence[Image]], Sequence[Arrays]]


def compare_with_framework(converted: ConvertedModel, predict: Predict, images: Sequence[Image] = ()) -> ConvertedModel:
    """Run the original framework and the converted model on the same images, and note how far their predictions are apart.

    Args:
        converted: The result of :func:`~lw_retinanet.weights.foreign.convert.convert`.
        predict: Returns what the converted model detects in images: boxes, scores and labels of each.
        images: (H, W, 3) uint8 RGB, compared at the model's full size. Two drawn images are always compared, at a smaller size.

    Returns:
        The converted model with the comparison in its report and notes, or with the reason why there is none.
    """
    source = converted.source
    if converted.report.framework != torchvision.NAME:
        return converted.with_comparison(FrameworkComparison(status="its own library was not asked", differences={}))
    if source is None:
        return converted.with_comparison(FrameworkComparison(status="its classes differ from the original's", differences={}))
    conventions = converted.loaded.model.conventions
    if source.architecture.plan.cls or source.architecture.plan.bbox:
        return converted.with_comparison(FrameworkComparison(status="torchvision itself has no light heads", differences={}))
    if torchvision_conventions(conventions) != _by_class(conventions):
        status = "a convention was set to something that torchvision cannot do"
        return converted.with_comparison(FrameworkComparison(status=status, differences={}))
    reference = torchvision_of_file(source, _with_own_thresholds(conventions, source.layout))
    return converted.with_comparison(compare_with_torchvision(reference, converted.loaded, source.rows, predict, images))


def _by_class(conventions: Conventions) -> Conventions:
    return conventions.model_copy(update={"output": conventions.output.model_copy(update={"class_agnostic": False})})


def _with_own_thresholds(conventions: Conventions, layout: WeightsFormat) -> Conventions:
    """The conventions with the thresholds that the file states, also where the caller chose others for the converted model."""
    stated = {setting: each.value for setting, each in layout.statements.conventions.items() if setting.startswith("output.")}
    return apply_overrides(conventions, stated)


def compare_with_torchvision(
    reference: nn.Module, loaded: LoadedModel, rows: Sequence[int], predict: Predict, images: Sequence[Image] = ()
) -> FrameworkComparison:
    """Compare a torchvision RetinaNet with its converted form.

    Args:
        reference: The torchvision network, which stays as it is.
        loaded: The converted model.
        rows: The class rows of the reference that became classes.
        predict: As in :func:`compare_with_framework`.
        images: As in :func:`compare_with_framework`.
    """
    silenced = _with_rows_silenced(reference, rows, loaded.model.num_classes)
    rng = np.random.default_rng(0)
    rule = loaded.model.conventions.input
    small = _at_size(loaded, min(SIDE, rule.size))
    differences = dict.fromkeys(("logits", "deltas", "anchors", "boxes", "scores", "unmatched"), 0.0)
    detections = 0
    unmatched: list[str] = []
    cases = [(small, draw_scene(rng, size_hw).image) for size_hw in DRAWN_HW] + [(loaded, image) for image in images]
    for number_of_image, (case, image) in enumerate(cases, start=1):
        size = case.model.conventions.input
        transform: Any = silenced.transform
        transform.min_size, transform.max_size = (size.size,), size.max_size
        found, number, alone = _compare_one(silenced, case, rows, predict, image)
        detections += number
        unmatched += [f"image {number_of_image}: {text}" for text in alone]
        for name, value in found.items():
            differences[name] = differences[name] + value if name == "unmatched" else max(differences[name], value)
    compared = f"{len(DRAWN_HW)} drawn images at {small.model.conventions.input.size} pixels"
    if images:
        compared += f" and {len(images)} given ones at {rule.size}"
    return FrameworkComparison(
        status="checked", images=compared, differences=differences, detections=detections, unmatched=unmatched[:_SHOWN]
    )


def _with_rows_silenced(reference: nn.Module, rows: Sequence[int], num_classes: int) -> nn.Module:
    """A copy that never detects the class rows that the converted model lacks."""
    model: Any = copy.deepcopy(reference).eval()
    predictor = model.head.classification_head.cls_logits
    others = torch.ones(model.head.classification_head.num_classes, dtype=torch.bool)
    others[list(rows)] = False
    with torch.no_grad():
        predictor.weight.view(-1, len(others), *predictor.weight.shape[1:])[:, others] = 0
        predictor.bias.view(-1, len(others))[:, others] = _NEVER
    assert len(rows) == num_classes
    module: nn.Module = model
    return module


def _at_size(loaded: LoadedModel, size: int) -> LoadedModel:
    """The same weights with images resized to a smaller side."""
    conventions = loaded.model.conventions
    longest = max(1, conventions.input.max_size * size // conventions.input.size)
    rule = conventions.input.model_copy(update={"size": size, "max_size": longest})
    model = copy.copy(loaded.model)
    model.conventions = conventions.model_copy(update={"input": rule})
    return LoadedModel(model=model, record=loaded.record)


@torch.inference_mode()
def _compare_one(
    reference: Any, loaded: LoadedModel, rows: Sequence[int], predict: Predict, image: Image
) -> tuple[dict[str, float], int, list[str]]:
    """The differences on one image, the number of the reference's detections, and detections without a match as text."""
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    conventions = loaded.model.conventions
    inputs, _ = reference.transform([tensor])
    features = list(reference.backbone(inputs.tensors).values())
    theirs = reference.head(features)
    ours = loaded.model(inputs.tensors)
    their_anchors = reference.anchor_generator(inputs, features)[0]
    height, width = inputs.tensors.shape[-2:]
    our_anchors = make_anchors((height, width), conventions.anchors, their_anchors.device)
    expected = reference([tensor])[0]
    if conventions.output.class_agnostic:  # programs around torchvision's class do this after it
        kept = nms(expected["boxes"], expected["scores"], float(reference.nms_thresh))
        expected = {name: values[kept] for name, values in expected.items()}
    labels = {row: label for label, row in enumerate(rows)}
    names = [category.name for category in loaded.record.categories]
    boxes, scores, unmatched = _match(
        (expected["boxes"].numpy(), expected["scores"].numpy(), np.array([labels[row] for row in expected["labels"].tolist()], np.int64)),
        predict(loaded, [image])[0],
        conventions,
    )
    differences = {
        "logits": _largest(theirs["cls_logits"][..., list(rows)], ours.logits),
        "deltas": _largest(theirs["bbox_regression"], ours.deltas),
        "anchors": _largest(their_anchors, our_anchors),
        "boxes": boxes,
        "scores": scores,
        "unmatched": float(len(unmatched)),
    }
    return differences, len(expected["scores"]), [each.text(names) for each in unmatched]


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max()) if a.shape == b.shape else float("inf")


@dataclass(frozen=True)
class _Alone:
    """A detection without a match."""

    side: str
    box: NDArray[Any]
    score: float
    label: int

    def text(self, names: Sequence[str]) -> str:
        """For people."""
        corners = ", ".join(f"{corner:.1f}" for corner in self.box)
        return f"{self.side} has {names[self.label]} {self.score:.3f} at ({corners})"


def _match(expected: Arrays, found: Arrays, conventions: Conventions) -> tuple[float, float, list[_Alone]]:
    """The largest box and score difference of matches, and the detections without a match, those at a threshold left out."""
    boxes, scores, labels = found
    thresholds = [conventions.output.score_threshold]
    thresholds += [float(kept.min()) for kept in (scores, expected[1]) if len(kept) == conventions.output.max_detections]

    def is_at_a_threshold(score: float) -> bool:
        return any(abs(score - threshold) <= _TIE for threshold in thresholds)

    free = np.ones(len(scores), bool)
    box_difference = score_difference = 0.0
    alone: list[_Alone] = []
    for box, score, label in zip(*expected, strict=True):
        candidates = np.flatnonzero(free & (labels == label) & (np.abs(scores - score) <= _SAME_SCORE))
        distances = np.abs(boxes[candidates] - box).max(axis=1) if len(candidates) else np.zeros(0)
        if len(candidates) == 0 or distances.min() > (_TIED_PX if is_at_a_threshold(score) else _SAME_PX):
            alone.append(_Alone("the original", box, float(score), int(label)))
            continue
        best = candidates[distances.argmin()]
        free[best] = False
        box_difference = max(box_difference, float(distances.min()))
        score_difference = max(score_difference, float(abs(scores[best] - score)))
    alone += [_Alone("the converted model", boxes[row], float(scores[row]), int(labels[row])) for row in np.flatnonzero(free)]
    return box_difference, score_difference, [each for each in alone if not is_at_a_threshold(each.score)]
