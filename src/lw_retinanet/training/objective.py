"""The training objective: which anchor should predict which object, and the loss of the predictions."""

import torch
from torch import Tensor

from lw_retinanet.config import TrainConfig
from lw_retinanet.conventions import AnchorRule, Conventions
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.structures import Predictions, Targets
from lw_retinanet.training.atss import match_adaptively
from lw_retinanet.training.losses import box_loss, box_qualities, focal_loss, quality_focal_loss
from lw_retinanet.training.matching import AnchorMatches, match


def assign(size_hw: tuple[int, int], targets: Targets, *, config: TrainConfig, rule: AnchorRule) -> tuple[Tensor, AnchorMatches]:
    """Anchors of a batch, and what each of them should predict.

    Args:
        size_hw: Padded size of the batch.
        targets: Objects of its images, on the device to compute on.
        config: Resolved settings. ``assignment`` None is ATSS with one anchor a cell, and fixed overlaps with more.
        rule: Shapes and places of the anchors.

    Returns:
        (A, 4) anchors and their matches.
    """
    anchors = make_anchors(size_hw, rule, targets.boxes.device)
    if (config.assignment or ("atss" if rule.num_anchors == 1 else "iou")) == "atss":
        return anchors, match_adaptively(anchors, targets, size_hw=size_hw, num_anchors=rule.num_anchors)
    return anchors, match(anchors, targets)


def label_losses(
    predictions: Predictions, anchors: Tensor, matches: AnchorMatches, *, config: TrainConfig, conventions: Conventions
) -> Tensor:
    """Class and box loss of predictions.

    All boxes weigh the same. The authors of ATSS weigh them by centerness, those of generalized focal loss by their scores, and both divide
    by the sum of the weights. Here the caller divides by the number of positive anchors, which is known before the first forward pass.

    Args:
        predictions: Predictions for N images.
        anchors: (A, 4) xyxy.
        matches: Matches of these anchors with the objects of these images.
        config: Resolved settings.
        conventions: Conventions of the model.

    Returns:
        (2, N) class loss and weighted box loss of each image, summed over its anchors and not divided; fp32 (float64 for float64).
    """
    assert config.box_loss is not None
    assert config.box_weight is not None
    if config.class_loss == "quality":
        qualities = box_qualities(predictions.deltas, anchors, matches, rule=conventions.boxes)
        classes = quality_focal_loss(predictions.logits, matches.labels, qualities)
    else:
        classes = focal_loss(predictions.logits, matches.labels)
    boxes = box_loss(predictions.deltas, anchors, matches, kind=config.box_loss, rule=conventions.boxes)
    return torch.stack([classes, config.box_weight * boxes])
