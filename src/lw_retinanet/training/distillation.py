"""A student network learns what a teacher network says, without labels."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lw_retinanet.boxes import decode
from lw_retinanet.structures import Predictions
from lw_retinanet.training.losses import giou_loss

# (0, 0) is the anchor's centre and its sides are 1: generalised IoU does not change when x and y are stretched, so any anchor will do.
UNIT_ANCHOR = (-0.5, -0.5, 0.5, 0.5)
BOX_WEIGHT = 2.0  # of the box loss beside the class loss
SURE = 0.02  # boxes of anchors that the teacher is less sure of do not count
_LEAST_DISTANCE = 1e-3  # of FCOS's sides from the point, so that no box vanishes
_EMPTY_SLOPE = 0.01


def class_distillation(logits: Tensor, taught_logits: Tensor) -> Tensor:
    """How far the student's scores are from the teacher's: Kullback-Leibler divergence of the two, anchor by anchor and class by class.

    Weighting each by its distance, as quality focal losses do, was tried and is slower here: a lightened head starts close, and what
    remains are many small distances.

    Args:
        logits: (N, A, K) student's.
        taught_logits: (N, A, K) teacher's.

    Returns:
        The sum over everything, divided by the sum of the teacher's scores (at least 1); 0 where both say the same. fp32.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network (2015), for independent classes.
    """
    logits, taught_logits = logits.float(), taught_logits.float()
    scores = taught_logits.sigmoid()
    # Term by term: the difference of the sums would drown in their rounding.
    least = F.binary_cross_entropy_with_logits(taught_logits, scores, reduction="none")
    losses = F.binary_cross_entropy_with_logits(logits, scores, reduction="none") - least
    return losses.sum() / scores.sum().clamp(min=1)


def box_distillation(deltas: Tensor, taught_deltas: Tensor, taught_logits: Tensor) -> Tensor:
    """Generalised IoU loss against the teacher's boxes, weighted by the teacher's best score for the anchor.

    Args:
        deltas: (N, A, 4) student's dx, dy, dw, dh.
        taught_deltas: (N, A, 4) teacher's.
        taught_logits: (N, A, K) teacher's.

    Returns:
        The sum over anchors that the teacher is sure of, divided as :func:`class_distillation`. fp32.
    """
    anchor = _unit_anchor(deltas.device)
    return _sure_giou(decode(deltas.float(), anchor), decode(taught_deltas.float(), anchor), taught_logits)


def distance_distillation(distances: Tensor, taught_distances: Tensor, taught_logits: Tensor) -> Tensor:
    """The same for FCOS, whose boxes are (N, A, 4) distances to the left, top, right and bottom side, before their ReLU."""
    distances = distances.float()
    # The value is the ReLU's, as in use, but the gradient has a slope below 0, so that a side that is empty can grow again.
    sloped = F.leaky_relu(distances, _EMPTY_SLOPE)
    sides = sloped + (distances.relu() - sloped).detach() + _LEAST_DISTANCE
    return _sure_giou(_around_origin(sides), _around_origin(taught_distances.float().relu() + _LEAST_DISTANCE), taught_logits)


def _around_origin(distances: Tensor) -> Tensor:
    return torch.cat([-distances[..., :2], distances[..., 2:]], dim=-1)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _unit_anchor(device: torch.device) -> Tensor:
    # Kept, since a copy to a CUDA device would be waited for at every step.
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
