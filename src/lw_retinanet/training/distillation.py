"""Losses of a student network against the answers of a teacher network; they need no labels."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lw_retinanet.boxes import decode
from lw_retinanet.structures import Predictions
from lw_retinanet.training.losses import giou_loss

# Generalised IoU does not change when x and y are moved or stretched, so boxes may be compared relative to any one anchor.
UNIT_ANCHOR = (-0.5, -0.5, 0.5, 0.5)
BOX_WEIGHT = 2.0  # weight of the box loss beside the class loss
SURE = 0.02  # the box of an anchor counts only if the teacher's best score for it is above this
_LEAST_DISTANCE = 1e-3  # added to FCOS's distances, so that no box is empty
_EMPTY_SLOPE = 0.01  # of the gradient where FCOS's ReLU gives 0


def class_distillation(logits: Tensor, taught_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's scores from the teacher's, for each anchor and class by itself.

    Weighting each divergence by the distance of the scores, as quality focal losses do, was tried and learns more slowly: a lightened head
    starts close to its teacher, so most distances are small.

    Args:
        logits: (N, A, K) logits of the student.
        taught_logits: (N, A, K) logits of the teacher.

    Returns:
        The sum over everything, divided by the sum of the teacher's scores (at least 1); 0 where both agree. fp32.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015), for independent classes.
    """
    logits, taught_logits = logits.float(), taught_logits.float()
    scores = taught_logits.sigmoid()
    # The least possible loss is taken off term by term: the difference of two sums would be lost in their rounding.
    least = F.binary_cross_entropy_with_logits(taught_logits, scores, reduction="none")
    losses = F.binary_cross_entropy_with_logits(logits, scores, reduction="none") - least
    return losses.sum() / scores.sum().clamp(min=1)


def box_distillation(deltas: Tensor, taught_deltas: Tensor, taught_logits: Tensor) -> Tensor:
    """Generalised IoU loss against the teacher's boxes, weighted by the teacher's best score for the anchor.

    Args:
        deltas: (N, A, 4) dx, dy, dw, dh of the student.
        taught_deltas: (N, A, 4) those of the teacher.
        taught_logits: (N, A, K) logits of the teacher.

    Returns:
        The sum over the anchors with a score above ``SURE``, divided as in :func:`class_distillation`. fp32.
    """
    anchor = unit_anchor(deltas.device)
    return _sure_giou(decode(deltas.float(), anchor), decode(taught_deltas.float(), anchor), taught_logits)


def distance_distillation(distances: Tensor, taught_distances: Tensor, taught_logits: Tensor) -> Tensor:
    """As :func:`box_distillation`, for FCOS: (N, A, 4) distances of the left, top, right and bottom side, before their ReLU."""
    distances = distances.float()
    # The value is that of the ReLU. The gradient keeps a slope below 0, so that a side of length 0 can grow again.
    sloped = F.leaky_relu(distances, _EMPTY_SLOPE)
    sides = sloped + (distances.relu() - sloped).detach() + _LEAST_DISTANCE
    return _sure_giou(_around_origin(sides), _around_origin(taught_distances.float().relu() + _LEAST_DISTANCE), taught_logits)


def _around_origin(distances: Tensor) -> Tensor:
    return torch.cat([-distances[..., :2], distances[..., 2:]], dim=-1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def unit_anchor(device: torch.device) -> Tensor:
    """(4,) ``UNIT_ANCHOR`` on a device. Made once, since the host would wait for a copy to a CUDA device at every step."""
    return torch.tensor(UNIT_ANCHOR, device=device)


def _sure_giou(boxes: Tensor, taught: Tensor, taught_logits: Tensor) -> Tensor:
    scores = taught_logits.float().sigmoid()
    best = scores.amax(dim=2)
    losses = giou_loss(boxes, taught)
    return torch.where(best > SURE, best * losses, 0.0).sum() / scores.sum().clamp(min=1)


def distillation(predictions: Predictions, taught: Predictions) -> Tensor:
    """Loss () of a whole network against its teacher: the class loss, and the box loss times ``BOX_WEIGHT``."""
    boxes = box_distillation(predictions.deltas, taught.deltas, taught.logits)
    return class_distillation(predictions.logits, taught.logits) + BOX_WEIGHT * boxes
