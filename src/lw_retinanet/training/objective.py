"""What the labels ask of the network: which anchor answers for what, and what its answer costs."""

import torch
from torch import Tensor

from lw_retinanet.config import TrainConfig
from lw_retinanet.conventions import AnchorRule, Conventions
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.structures import Predictions, Targets
from lw_retinanet.training.atss import match_adaptively
from lw_retinanet.training.losses import box_loss, box_qualities, focal_loss, quality_focal_loss
from lw_retinanet.training.matching import Matches, match


def assign(size_hw: tuple[int, int], targets: Targets, *, config: TrainConfig, rule: AnchorRule) -> tuple[Tensor, Matches]:
    """Anchors and what each of them should say.

    Args:
        size_hw: height and width of the padded input.
        targets: of its pictures, on the device of the answer.
        config: its ``assignment`` says by which rule; None: one anchor a cell by ATSS, more by fixed overlaps.
        rule: of the model's anchors.

    Returns:
        (A, 4) anchors and their matches.
    """
    anchors = make_anchors(size_hw, rule, targets.boxes.device)
    if (config.assignment or ("atss" if rule.num_anchors == 1 else "iou")) == "atss":
        return anchors, match_adaptively(anchors, targets, size_hw=size_hw, num_anchors=rule.num_anchors)
    return anchors, match(anchors, targets)


def label_losses(predictions: Predictions, anchors: Tensor, matches: Matches, *, config: TrainConfig, conventions: Conventions) -> Tensor:
    """What the answers cost.

    Boxes weigh alike, whatever the rules: ATSS weighs them by centerness and generalized focal loss by their scores, and both then divide
    by the sum of these weights; here the divisor is the number of positives, which is known before the first forward pass.

    Args:
        predictions: of N images.
        anchors: (A, 4) xyxy.
        matches: of these anchors, for these images.
        config: resolved settings.
        conventions: of the model.

    Returns:
        (2, N) sums an image of the class loss and of the weighted box loss, fp32 (float64 for float64), not divided by any number of
        anchors.
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
