"""Random weights that give as many boxes as trained ones. Without boxes, post-processing would seem to cost nothing.

A network that was never trained finds nothing, or everything. Here every layer is scaled so that its output has a standard deviation of 1
(Mishkin & Matas 2016, "All you need is a good init"). Then the bias of the class prediction is set so that a given number of
(anchor, class) pairs of one image pass the score threshold. The boxes are random: the work is real, the answers are not.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.ssd import SSD

from lw_retinanet.errors import InputError
from lw_retinanet.models.retinanet import RetinaNet

CANDIDATES = 1000
LOGIT_DEVIATION, DELTA_DEVIATION = 1.5, 0.2  # about those of a trained RetinaNet
_FCOS_SCORE = 0.08  # with a centerness of 1/2, the geometric mean of the two then reaches FCOS's threshold of 0.2


@torch.no_grad()
def scale_layers(part: nn.Module, run: Callable[[], object]) -> None:
    """Scale each convolution and linear layer in ``part``, in place, so that its output has a standard deviation of 1.

    Args:
        part: A model or a part of one.
        run: Sends an image through the model. A layer that runs several times is scaled the first time.
    """
    seen: set[nn.Module] = set()

    def scale(layer: Any, _: Any, output: Tensor) -> Tensor | None:
        if layer in seen:
            return None
        seen.add(layer)
        deviation = float(output.float().std())
        if not (math.isfinite(deviation) and deviation > 0):
            return None
        layer.weight.div_(deviation)
        if layer.bias is not None:
            layer.bias.div_(deviation)
        return output / deviation

    with _hooked((layer for layer in part.modules() if isinstance(layer, nn.Conv2d | nn.Linear)), scale):
        run()


@torch.no_grad()
def make_realistic(model: RetinaNet, images: Tensor, *, candidates: int = CANDIDATES, head_only: bool = False) -> None:
    """Give a network with random weights realistic scores and boxes on one image, in place.

    Args:
        model: Network in evaluation mode.
        images: (1, 3, H, W) normalised.
        candidates: Number of (anchor, class) pairs that pass the score threshold, at most a tenth of all.
        head_only: Leave the backbone and the pyramid as they are.
    """
    scale_layers(model.head if head_only else model, lambda: model(images))
    for branch, deviation in ((model.head.cls, LOGIT_DEVIATION), (model.head.bbox, DELTA_DEVIATION)):
        for predict in _predictions(branch):
            predict.weight.mul_(deviation)
            _bias(predict).zero_()
    shift = _shift(model(images).logits.flatten(), _logit(model.conventions.output.score_threshold), candidates)
    for predict in _predictions(model.head.cls):
        _bias(predict).fill_(shift)


@torch.no_grad()
def make_detector_realistic(model: nn.Module, image: Tensor, *, candidates: int = CANDIDATES) -> None:
    """Give one of torchvision's detectors realistic scores and boxes on one image, in place.

    Args:
        model: RetinaNet, FCOS, an SSD or an R-CNN, in evaluation mode.
        image: (3, H, W) in 0..1.
        candidates: As for :func:`make_realistic`; for an R-CNN, (proposal, class) pairs.

    Raises:
        InputError: If the model is of another kind.
    """
    scale_layers(model, lambda: model([image]))
    scores = _class_scores(model)
    for layer in (*scores.layers, *scores.boxes):
        layer.weight.mul_(LOGIT_DEVIATION if layer in scores.layers else DELTA_DEVIATION)
        _bias(layer).zero_()
    outputs: list[Tensor] = []
    with _hooked(scores.layers, lambda _layer, _inputs, output: outputs.append(output)):
        model([image])
    rows = torch.cat([_in_rows(output, scores.columns) for output in outputs])
    if scores.has_background:
        shift = _background(rows, scores.threshold, candidates)
        for layer in scores.layers:
            _bias(layer).view(-1, scores.columns)[:, 0] = shift
    else:
        shift = _shift(rows.flatten(), _logit(scores.threshold), candidates)
        for layer in scores.layers:
            _bias(layer).fill_(shift)


@dataclass(frozen=True, kw_only=True)
class _ClassScores:
    """The layers of a detector that predict classes and boxes.

    Args:
        layers: Layers that predict ``columns`` classes for each anchor.
        boxes: Layers that predict deltas, which shall be small.
        columns: Number of classes, with the background if there is one.
        has_background: Whether column 0 is the background and scores are a softmax; else each score is a sigmoid.
        threshold: Score that candidates must pass.
    """

    layers: Sequence[Any]
    boxes: Sequence[Any]
    columns: int
    has_background: bool
    threshold: float


def _class_scores(model: Any) -> _ClassScores:
    if isinstance(model, TorchvisionRetinaNet | FCOS):
        head = model.head
        is_fcos = isinstance(model, FCOS)
        return _ClassScores(
            layers=[head.classification_head.cls_logits],
            boxes=[] if is_fcos else [head.regression_head.bbox_reg],  # FCOS's deltas are positive multiples of the stride
            columns=head.classification_head.num_classes,
            has_background=False,
            threshold=_FCOS_SCORE if is_fcos else model.score_thresh,
        )
    if isinstance(model, SSD):
        return _ClassScores(
            layers=[_last(part) for part in model.head.classification_head.module_list],
            boxes=[_last(part) for part in model.head.regression_head.module_list],
            columns=model.head.classification_head.num_columns,
            has_background=True,
            threshold=max(0.01, model.score_thresh),  # SSDLite's own 0.001 is meant for COCO's AP
        )
    if isinstance(model, GeneralizedRCNN):
        predictor = model.roi_heads.box_predictor
        return _ClassScores(
            layers=[predictor.cls_score],
            boxes=[model.rpn.head.bbox_pred],
            columns=predictor.cls_score.out_features,
            has_background=True,
            threshold=model.roi_heads.score_thresh,
        )
    raise InputError(f"a {type(model).__name__} cannot be given realistic scores; give one of torchvision's detectors")


def _predictions(branch: Any) -> list[Any]:
    """The prediction layers of a branch, each once."""
    return list(dict.fromkeys(_last(part) for part in (branch.shared_predict, *branch.own_predict.values()) if part is not None))


def _last(part: nn.Module) -> Any:
    return [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)][-1]


def _bias(layer: Any) -> Tensor:
    assert layer.bias is not None
    return layer.bias.data


def _logit(score: float) -> float:
    score = min(max(score, 1e-4), 1 - 1e-4)
    return math.log(score / (1 - score))


def _shift(logits: Tensor, threshold: float, candidates: int) -> float:
    """The number that must be added to the logits so that ``candidates`` of them pass."""
    count = max(1, min(candidates, len(logits) // 10))
    return threshold - float(logits.topk(count).values[-1])


def _background(rows: Tensor, threshold: float, candidates: int) -> float:
    """The logit of the background with which ``candidates`` softmax scores pass. A larger one lets fewer pass."""
    count = max(1, min(candidates, rows[:, 1:].numel() // 10))
    low, high = -20.0, 60.0
    for _ in range(40):
        middle = (low + high) / 2
        scores = torch.cat([rows[:, :1] + middle, rows[:, 1:]], dim=1).softmax(dim=1)[:, 1:]
        low, high = (middle, high) if int((scores > threshold).sum()) > count else (low, middle)
    return high


def _in_rows(output: Tensor, columns: int) -> Tensor:
    """(N, anchors * columns, H, W) -> (rows, columns). An output of (rows, columns) stays as it is."""
    return (output.permute(0, 2, 3, 1) if output.ndim == 4 else output).reshape(-1, columns).float()


@contextmanager
def _hooked(layers: Iterable[nn.Module], hook: Callable[[Any, Any, Tensor], Any]) -> Iterator[None]:
    """Layers call ``hook`` after each forward inside the ``with`` block."""
    handles = [layer.register_forward_hook(hook) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
