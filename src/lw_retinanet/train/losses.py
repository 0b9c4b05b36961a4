"""Focal loss and box losses as sums an image, in fp32 or better; the caller divides."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from lw_retinanet.boxes import decode, encode
from lw_retinanet.conventions import BoxRule
from lw_retinanet.train.matching import IGNORED, Matches

ALPHA = 0.25
GAMMA = 2.0
BETA = 0.11
BoxLoss = Literal["smooth_l1", "l1", "giou"]


def focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = ALPHA, gamma: float = GAMMA) -> Tensor:
    """Focal loss of class ids, without a one-hot tensor: every pair counts as negative, then the positive ones are put right.

    Args:
        logits: (N, A, K).
        labels: (N, A) class, ``BACKGROUND`` or ``IGNORED``.
        alpha: weight of positives; negatives weigh ``1 - alpha``.
        gamma: focusing exponent.

    Returns:
        (N,) sums over the anchors that are not ignored, fp32 (float64 for float64).

    Source: Lin et al., Focal Loss for Dense Object Detection, equation 5.
    """
    logits = _at_least_fp32(logits)
    counted = labels != IGNORED
    negative = ((1 - alpha) * _modulated(logits, gamma).sum(dim=2) * counted).sum(dim=1)
    positive_logits = logits.gather(2, labels.clamp(min=0)[..., None]).squeeze(2)
    correction = alpha * _modulated(-positive_logits, gamma) - (1 - alpha) * _modulated(positive_logits, gamma)
    return negative + torch.where(labels >= 0, correction, 0.0).sum(dim=1)


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _modulated(logits: Tensor, gamma: float) -> Tensor:
    """p^gamma * -ln(1 - p): the loss of a negative pair before its weight."""
    return torch.sigmoid(logits) ** gamma * F.softplus(logits)


def box_loss(deltas: Tensor, anchors: Tensor, matches: Matches, *, kind: BoxLoss, rule: BoxRule = BoxRule(), beta: float = BETA) -> Tensor:
    """Loss of the boxes of positive anchors.

    Args:
        deltas: (N, A, 4).
        anchors: (A, 4) xyxy.
        matches: of these anchors.
        kind: ``smooth_l1`` and ``l1`` on deltas, ``giou`` on decoded boxes.
        rule: of deltas.
        beta: where smooth L1 turns from square to linear.

    Returns:
        (N,) sums over positive anchors and coordinates, fp32 (float64 for float64).
    """
    deltas = _at_least_fp32(deltas)
    is_positive = matches.is_positive
    if kind == "giou":
        # Elsewhere the matched box is the anchor: decoding zeros there keeps every number and gradient finite.
        decoded = decode(torch.where(is_positive[..., None], deltas, 0.0), anchors, rule)
        losses = generalized_box_iou_loss(decoded, matches.boxes)
    else:
        wanted = encode(matches.boxes, anchors, rule)
        losses = F.smooth_l1_loss(deltas, wanted, reduction="none", beta=beta if kind == "smooth_l1" else 0.0).sum(dim=2)
    return torch.where(is_positive, losses, 0.0).sum(dim=1)
