"""A converted model beside the origin's own program, where that is installed: numbers for how far the two are apart."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lw_retinanet.conventions import STRIDES, Conventions
from lw_retinanet.data.sample import draw_scene
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.weights.foreign.conversion import Conversion, Origin, Parity
from lw_retinanet.weights.foreign.origins import TORCHVISION_V1
from lw_retinanet.weights.model_file import LoadedModel

Picture = NDArray[np.uint8]
MADE_UP_HW = ((240, 320), (331, 217))
SIDE = 320  # made-up pictures are compared at this shorter side: at full size two networks take a minute on two cores
_TIE = 1e-4  # scores as close as this to a cut may stand on either side of it
_SAME_PX, _SAME_SCORE = 2.0, 0.01  # detections further apart than this are two different ones
_TIED_PX = 0.05  # at a cut, a neighbour may have taken a detection's place
_SILENT = -1e4


class Answer(Protocol):
    """Detections of one picture, the best first."""

    @property
    def boxes(self) -> NDArray[np.float32]: ...

    @property
    def scores(self) -> NDArray[np.float32]: ...

    @property
    def labels(self) -> NDArray[np.int64]: ...


Predict = Callable[[LoadedModel, Sequence[Picture]], Sequence[Answer]]


def check_parity(conversion: Conversion, predict: Predict, pictures: Sequence[Picture] = ()) -> Conversion:
    """Ask the origin's program and the converted model the same, and note how far their answers are apart.

    Args:
        conversion: of a file.
        predict: the converted model's answers to pictures, each by itself, as people get them.
        pictures: (H, W, 3) uint8 RGB, compared at the model's full size; beside them two made-up ones are, at a smaller size.

    Returns:
        The conversion with the comparison in its report and notes, or with the reason why there is none.
    """
    origin = conversion.origin
    if conversion.report.framework != "torchvision" or origin is None:
        reason = (
            "the classes are others than the origin's" if conversion.report.framework == "torchvision" else "its own library was not asked"
        )
        return conversion.with_parity(Parity(status=reason, differences={}))
    conventions = conversion.loaded.model.conventions
    if _as_torchvisions(conventions) != TORCHVISION_V1:
        return conversion.with_parity(Parity(status="a --set asks for something that torchvision cannot do", differences={}))
    reference = torchvision_model(origin, conventions)
    return conversion.with_parity(compare(reference, conversion.loaded, origin.rows, predict, pictures))


def compare(reference: nn.Module, loaded: LoadedModel, rows: Sequence[int], predict: Predict, pictures: Sequence[Picture] = ()) -> Parity:
    """Compare a torchvision RetinaNet with its converted form.

    Args:
        reference: stays as it is.
        loaded: the converted form.
        rows: class rows of the reference that became classes.
        predict: the converted form's answers.
        pictures: as in :func:`check_parity`.
    """
    silenced = _with_rows_silenced(reference, rows, loaded.model.num_classes)
    rng = np.random.default_rng(0)
    rule = loaded.model.conventions.input
    small = _at_size(loaded, min(SIDE, rule.size))
    differences = dict.fromkeys(("logits", "deltas", "anchors", "boxes", "scores", "unmatched"), 0.0)
    detections = 0
    cases = [(small, draw_scene(rng, size_hw).image) for size_hw in MADE_UP_HW] + [(loaded, picture) for picture in pictures]
    for case, picture in cases:
        size = case.model.conventions.input
        transform: Any = silenced.transform
        transform.min_size, transform.max_size = (size.size,), size.max_size
        found, number = _compare_one(silenced, case, rows, predict, picture)
        detections += number
        for name, value in found.items():
            differences[name] = differences[name] + value if name == "unmatched" else max(differences[name], value)
    sizes = f"{len(MADE_UP_HW)} made-up pictures at {small.model.conventions.input.size} pixels"
    if pictures:
        sizes += f" and {len(pictures)} given ones at {rule.size}"
    return Parity(status="checked", pictures=sizes, differences=differences, detections=detections)


def torchvision_model(origin: Origin, conventions: Conventions) -> nn.Module:
    """torchvision's own model with the file's own tensors, in evaluation mode."""
    import torchvision
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.retinanet import RetinaNetHead
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    structure = origin.structure
    body: Any = getattr(torchvision.models, structure.backbone)(
        weights=None, norm_layer=partial(FrozenBatchNorm2d, eps=conventions.norm_eps)
    )
    if conventions.stride_in == "1x1":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    c5 = body.fc.in_features
    backbone = BackboneWithFPN(
        body,
        {"layer2": "0", "layer3": "1", "layer4": "2"},
        [c5 // 4, c5 // 2, c5],
        structure.width,
        extra_blocks=LastLevelP6P7(c5 if conventions.p6_source == "C5" else structure.width, structure.width),
    )
    anchors = conventions.anchors
    sizes = tuple(tuple(int(stride * anchors.base_size * scale + 1e-6) for scale in anchors.octave_scales) for stride in STRIDES)
    if anchors == TORCHVISION_V1.anchors:  # as torchvision writes it, so that a mistake in ours is seen
        sizes = tuple((x, int(x * 2 ** (1.0 / 3)), int(x * 2 ** (2.0 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, (tuple(anchors.aspect_ratios),) * len(sizes))
    has_norm = structure.plan.shared.units[0].endswith("-gn")
    head = RetinaNetHead(
        structure.width, structure.num_anchors, structure.num_rows, norm_layer=partial(nn.GroupNorm, 32) if has_norm else None
    )
    model = RetinaNet(
        backbone,
        structure.num_rows,
        min_size=conventions.input.size,
        max_size=conventions.input.max_size,
        image_mean=list(conventions.input.mean),
        image_std=list(conventions.input.std),
        anchor_generator=generator,
        head=head,
        score_thresh=conventions.output.score_threshold,
        nms_thresh=conventions.output.nms_iou,
        detections_per_img=conventions.output.max_detections,
        topk_candidates=conventions.output.candidates_per_level,
        size_divisible=conventions.input.pad_multiple,
    )
    names = {name for name in origin.file.tensors if origin.blueprint.reason_to_drop(name) is None}
    # torchvision itself brings older names up to date.
    model.load_state_dict({name: origin.file.tensors[name].float() for name in names})
    return model.eval()


def _as_torchvisions(conventions: Conventions) -> Conventions:
    """The same, with torchvision's values wherever torchvision leaves a choice."""
    usual = TORCHVISION_V1
    free = {
        "norm_eps": usual.norm_eps,
        "p6_source": usual.p6_source,
        "stride_in": usual.stride_in,
        "anchors": _like(conventions.anchors, usual.anchors, "base_size", "octave_scales", "aspect_ratios"),
        "input": _like(conventions.input, usual.input, "size", "max_size", "pad_multiple", "mean", "std"),
        "output": _like(conventions.output, usual.output, "score_threshold", "candidates_per_level", "nms_iou", "max_detections"),
    }
    return conventions.model_copy(update=free)


def _like(record: Any, usual: Any, *fields: str) -> Any:
    return record.model_copy(update={field: getattr(usual, field) for field in fields})


def _with_rows_silenced(reference: nn.Module, rows: Sequence[int], num_classes: int) -> nn.Module:
    """A copy in which rows that became no class are never detected, since the converted model lacks them."""
    model: Any = copy.deepcopy(reference).eval()
    predictor = model.head.classification_head.cls_logits
    others = torch.ones(model.head.classification_head.num_classes, dtype=torch.bool)
    others[list(rows)] = False
    with torch.no_grad():
        predictor.weight.view(-1, len(others), *predictor.weight.shape[1:])[:, others] = 0
        predictor.bias.view(-1, len(others))[:, others] = _SILENT
    assert len(rows) == num_classes
    module: nn.Module = model
    return module


def _at_size(loaded: LoadedModel, size: int) -> LoadedModel:
    """The same weights for smaller pictures."""
    conventions = loaded.model.conventions
    longest = max(1, conventions.input.max_size * size // conventions.input.size)
    rule = conventions.input.model_copy(update={"size": size, "max_size": longest})
    model = copy.copy(loaded.model)
    model.conventions = conventions.model_copy(update={"input": rule})
    return LoadedModel(model=model, record=loaded.record)


@torch.inference_mode()
def _compare_one(
    reference: Any, loaded: LoadedModel, rows: Sequence[int], predict: Predict, picture: Picture
) -> tuple[dict[str, float], int]:
    image = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    conventions = loaded.model.conventions
    images, _ = reference.transform([image])
    features = list(reference.backbone(images.tensors).values())
    theirs = reference.head(features)
    ours = loaded.model(images.tensors)
    their_anchors = reference.anchor_generator(images, features)[0]
    height, width = images.tensors.shape[-2:]
    our_anchors = make_anchors((height, width), conventions.anchors, their_anchors.device)
    answer = predict(loaded, [picture])[0]
    expected = reference([image])[0]
    labels = {row: label for label, row in enumerate(rows)}
    boxes, scores, unmatched = _match(
        (expected["boxes"].numpy(), expected["scores"].numpy(), np.array([labels[row] for row in expected["labels"].tolist()], np.int64)),
        (answer.boxes, answer.scores, answer.labels),
        conventions,
    )
    differences = {
        "logits": _largest(theirs["cls_logits"][..., list(rows)], ours.logits),
        "deltas": _largest(theirs["bbox_regression"], ours.deltas),
        "anchors": _largest(their_anchors, our_anchors),
        "boxes": boxes,
        "scores": scores,
        "unmatched": float(unmatched),
    }
    return differences, len(expected["scores"])


def _largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).abs().max()) if a.shape == b.shape else float("inf")


Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def _match(expected: Arrays, answer: Arrays, conventions: Conventions) -> tuple[float, float, int]:
    """Largest box and score difference of pairs, and how many have no counterpart though no cut is near."""
    boxes, scores, labels = answer
    cuts = [conventions.output.score_threshold]
    cuts += [float(found.min()) for found in (scores, expected[1]) if len(found) == conventions.output.max_detections]

    def is_at_a_cut(score: float) -> bool:
        return any(abs(score - cut) <= _TIE for cut in cuts)

    free = np.ones(len(scores), bool)
    box_difference = score_difference = 0.0
    alone: list[float] = []
    for box, score, label in zip(*expected, strict=True):
        candidates = np.flatnonzero(free & (labels == label) & (np.abs(scores - score) <= _SAME_SCORE))
        distances = np.abs(boxes[candidates] - box).max(axis=1) if len(candidates) else np.zeros(0)
        if len(candidates) == 0 or distances.min() > (_TIED_PX if is_at_a_cut(score) else _SAME_PX):
            alone.append(float(score))
            continue
        best = candidates[distances.argmin()]
        free[best] = False
        box_difference = max(box_difference, float(distances.min()))
        score_difference = max(score_difference, float(abs(scores[best] - score)))
    alone += scores[free].tolist()
    return box_difference, score_difference, sum(not is_at_a_cut(score) for score in alone)
