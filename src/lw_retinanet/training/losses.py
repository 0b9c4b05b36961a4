"""Class losses (focal, quality focal) and box losses, in fp32 or better. They are sums for each image; the caller divides them."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lw_retinanet.boxes import decode, encode
from lw_retinanet.conventions import BoxRule
from lw_retinanet.training.matching import IGNORED, AnchorMatches, paired_iou

ALPHA = 0.25
GAMMA = 2.0
BETA = 0.11
_CACHED_PAIRS = 2**18  # three fp32 tensors of so many numbers take 3 MB, which a CPU's cache holds
BoxLoss = Literal["smooth_l1", "l1", "giou"]


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = ALPHA, gamma: float = GAMMA) -> Tensor:
    """Focal loss of class ids without a one-hot tensor: all pairs count as negative at first, then the positive pairs are corrected.

    Args:
        logits: (N, A, K) logits of the classes.
        labels: (N, A) class, ``BACKGROUND`` or ``IGNORED``.
        alpha: Weight of positives; negatives weigh ``1 - alpha``.
        gamma: Focusing exponent.

    Returns:
        (N,) sums over the anchors that are not ignored, fp32 (float64 for float64).

    Source: Lin et al., Focal Loss for Dense Object Detection, equation 5.
    """
    negatives, positive_logits = _negatives_and_label(logits, labels, gamma)
    negative = ((1 - alpha) * negatives * (labels != IGNORED)).sum(dim=1)
    correction = alpha * _modulated(-positive_logits, gamma) - (1 - alpha) * _modulated(positive_logits, gamma)
    return negative + torch.where(labels >= 0, correction, 0.0).sum(dim=1)


def quality_focal_loss(logits: Tensor, labels: Tensor, qualities: Tensor, *, beta: float = GAMMA) -> Tensor:
    """Focal loss that teaches a score p to be the quality q of the box: ``|q - p|^beta`` times the cross entropy of p with q.

    q is the anchor's quality for the class of its object and 0 for every other pair. Positives and negatives weigh alike. With all
    qualities 1 it is twice the focal loss with alpha 0.5; with beta 0, the cross entropy with soft targets.

    Args:
        logits: (N, A, K) logits of the classes.
        labels: (N, A) class, ``BACKGROUND`` or ``IGNORED``.
        qualities: (N, A) qualities in 0..1. Only those of positive anchors are read; they must be finite.
        beta: Focusing exponent, 0 or at least 1.

    Returns:
        (N,) sums over the anchors that are not ignored, fp32 (float64 for float64).

    Source: Li et al. 2020, Generalized Focal Loss, equation 4.
    """
    negatives, positive_logits = _negatives_and_label(logits, labels, beta)
    negative = (negatives * (labels != IGNORED)).sum(dim=1)
    entropy = F.softplus(positive_logits) - qualities * positive_logits
    correction = (qualities - torch.sigmoid(positive_logits)).abs() ** beta * entropy - _modulated(positive_logits, beta)
    return negative + torch.where(labels >= 0, correction, 0.0).sum(dim=1)


@torch.no_grad()
def box_qualities(deltas: Tensor, anchors: Tensor, matches: AnchorMatches, *, rule: BoxRule = BoxRule()) -> Tensor:
    """How well each predicted box fits: the ``qualities`` of :func:`quality_focal_loss`. No gradient flows through them.

    Args:
        deltas: (N, A, 4) predicted deltas.
        anchors: (A, 4) xyxy.
        matches: Matches of these anchors.
        rule: Coding of boxes as deltas.

    Returns:
        (N, A) IoU of the decoded box with its object, 0 without an object; fp32 (float64 for float64).
    """
    is_positive = matches.is_positive
    decoded = decode(torch.where(is_positive[..., None], _at_least_fp32(deltas), 0.0), anchors, rule)
    return torch.where(is_positive, paired_iou(decoded, matches.boxes), 0.0)


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _modulated(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma * -ln(1 - p): the loss of a negative pair before its weight."""
    return torch.sigmoid(logits) ** gamma * F.softplus(logits)


def _negatives_and_label(logits: Tensor, labels: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """(N, A) sums over the classes of :func:`_modulated`, and (N, A) logit of each anchor's class (an arbitrary class if it has none)."""
    negatives, label_logits = _NegativesAndLabel.apply(logits, labels.clamp(min=0)[..., None], gamma)
    return negatives, label_logits


class _NegativesAndLabel(torch.autograd.Function):
    """Both results with their gradient written out, to save memory: the logits are the largest tensors of a step.

    Only the logits are kept for the backward pass, and only their gradient is made in their size. Computing the rest again costs less than
    writing and reading it. On a CPU this is done in parts that stay in its cache.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, rows: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, rows)
        ctx.gamma = gamma
        sums = [_modulated(_at_least_fp32(part), gamma).sum(dim=1) for part in _parts(logits.flatten(0, 1))]
        return torch.cat(sums).view(logits.shape[:2]), _at_least_fp32(logits.gather(2, rows).squeeze(2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        logits, rows = ctx.saved_tensors
        of_negatives, of_label = gradients
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        parts = zip(_parts(gradient.flatten(0, 1)), _parts(logits.flatten(0, 1)), _parts(of_negatives.flatten(), logits), strict=True)
        for result, part, factor in parts:
            values = _at_least_fp32(part)
            scores, slopes = torch.sigmoid(values), F.softplus(values)
            # p^gamma * (gamma * (1 - p) * -ln(1 - p) + p)
            slopes.addcmul_(slopes, scores, value=-1).mul_(ctx.gamma).add_(scores).mul_(scores.pow_(ctx.gamma)).mul_(factor[:, None])
            result.copy_(slopes)
        # An anchor has one class, so no place is added to twice, and the result does not depend on the order of additions.
        sums = gradient.gather(2, rows) + of_label[..., None]
        return gradient.scatter_(2, rows, sums.to(gradient.dtype)), None, None


def _parts(rows: Tensor, like: Tensor | None = None) -> tuple[Tensor, ...]:
    """Views of consecutive rows that fit into a CPU's cache. On other devices, where each call costs more, one view of all rows."""
    if rows.device.type != "cpu":
        return (rows,)
    return rows.split(max(1, _CACHED_PAIRS // (rows if like is None else like).shape[-1]))


def box_loss(
    deltas: Tensor, anchors: Tensor, matches: AnchorMatches, *, kind: BoxLoss, rule: BoxRule = BoxRule(), beta: float = BETA
) -> Tensor:
    """Loss of the boxes of positive anchors.

    Args:
        deltas: (N, A, 4) predicted deltas.
        anchors: (A, 4) xyxy.
        matches: Matches of these anchors.
        kind: ``smooth_l1`` and ``l1`` compare deltas, ``giou`` compares decoded boxes.
        rule: Coding of boxes as deltas.
        beta: Difference at which smooth L1 turns from square to linear.

    Returns:
        (N,) sums over positive anchors and coordinates, fp32 (float64 for float64).
    """
    deltas = _at_least_fp32(deltas)
    is_positive = matches.is_positive
    if kind == "giou":
        # Other anchors are matched with themselves; decoding zeros for them keeps every number and gradient finite.
        decoded = decode(torch.where(is_positive[..., None], deltas, 0.0), anchors, rule)
        losses = giou_loss(decoded, matches.boxes)
    else:
        wanted = encode(matches.boxes, anchors, rule)
        losses = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=beta if kind == "smooth_l1" else 0.0).sum(dim=2)
    return torch.where(is_positive, losses, 0.0).sum(dim=1)


def giou_loss(boxes: Tensor, wanted: Tensor, *, epsilon: float = 1e-7) -> Tensor:
    """(...) 1 - GIoU of the boxes in the same place; both (..., 4).

    torchvision.ops computes the same, but it indexes with a mask, which makes the host wait for the device. So would the gradient of
    ``prod``.
    """
    shared = _area(torch.maximum(boxes[..., :2], wanted[..., :2]), torch.minimum(boxes[..., 2:], wanted[..., 2:]))
    union = _area(boxes[..., :2], boxes[..., 2:]) + _area(wanted[..., :2], wanted[..., 2:]) - shared
    hull = _area(torch.minimum(boxes[..., :2], wanted[..., :2]), torch.maximum(boxes[..., 2:], wanted[..., 2:]))
    return 1 - shared / (union + epsilon) + (hull - union) / (hull + epsilon)


def _area(upper_left: Tensor, lower_right: Tensor) -> Tensor:
    width, height = (lower_right - upper_left).clamp(min=0).unbind(dim=-1)
    return width * height
