"""Predictions -> detections: the best candidates of each level, decoding, NMS."""

import torch
from torch import Tensor
from torchvision.ops import nms

from lw_retinanet.boxes import clip, decode
from lw_retinanet.conventions import Conventions
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.structures import Detections, Predictions


def detect(predictions: Predictions, *, size_hw: tuple[int, int], sizes_hw: Tensor, conventions: Conventions) -> Detections:
    """Turn predictions into boxes.

    Args:
        predictions: of a padded input of ``size_hw``.
        size_hw: height and width of the padded input.
        sizes_hw: (N, 2) height and width of each picture inside it; boxes are clipped to these.
        conventions: of the weights.

    Returns:
        Detections in pixels of the padded input, the best first.
    """
    logits, deltas = predictions.logits.float(), predictions.deltas.float()
    anchors = make_anchors(size_hw, conventions.anchors, logits.device)
    candidates = conventions.output.candidates_per_level
    scores, labels, chosen = [], [], []
    start = 0
    for count in anchors_per_level(size_hw, conventions.anchors):
        level_scores, level_labels, level_anchors = _best_pairs(logits[:, start : start + count], candidates)
        scores.append(level_scores)
        labels.append(level_labels)
        chosen.append(level_anchors + start)
        start += count
    anchor_rows = torch.cat(chosen, dim=1)
    boxes = decode(deltas.gather(1, anchor_rows[..., None].expand(-1, -1, 4)), anchors[anchor_rows], conventions.boxes)
    if conventions.output.clip == "before_nms":
        boxes = clip(boxes, sizes_hw)
    result = _suppress(boxes, torch.cat(scores, dim=1).sigmoid(), torch.cat(labels, dim=1), conventions)
    if conventions.output.clip == "after_nms":
        result = Detections(boxes=clip(result.boxes, sizes_hw), scores=result.scores, labels=result.labels, counts=result.counts)
    return result


def _best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best (anchor, class) pairs of each image: logits, classes, anchors, each (N, count) or fewer.

    In two steps: every one of the best k pairs lies in one of the k anchors with the best maxima, so only those are looked at twice.
    """
    num_classes = logits.shape[2]
    best_anchors = logits.amax(dim=2).topk(min(count, logits.shape[1]), dim=1).indices
    pairs = logits.gather(1, best_anchors[..., None].expand(-1, -1, num_classes)).flatten(1)
    best = pairs.topk(min(count, pairs.shape[1]), dim=1)
    return best.values, best.indices % num_classes, best_anchors.gather(1, best.indices // num_classes)


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, conventions: Conventions) -> Detections:
    rule = conventions.output
    num_images, device = boxes.shape[0], boxes.device
    detections = Detections(
        boxes=torch.zeros((num_images, rule.max_detections, 4), device=device),
        scores=torch.zeros((num_images, rule.max_detections), device=device),
        labels=torch.full((num_images, rule.max_detections), -1, dtype=torch.int64, device=device),
        counts=torch.zeros(num_images, dtype=torch.int64, device=device),
    )
    for image in range(num_images):
        # A box of a diverged network may be NaN or infinite: no detection, and no poison for the comparisons of NMS.
        passed = (scores[image] > rule.score_threshold) & boxes[image].isfinite().all(dim=1)
        image_boxes, image_scores, image_labels = boxes[image][passed], scores[image][passed], labels[image][passed]
        if len(image_boxes) == 0:
            continue
        # Classes are moved apart, so that one NMS serves all; in double precision the move costs no accuracy.
        apart = image_boxes.double()
        apart = apart + (image_labels * (2 * apart.abs().max() + 2))[:, None]
        apart[:, 2:] += float(conventions.boxes.legacy_plus_one)
        kept = nms(apart, image_scores.double(), rule.nms_iou)[: rule.max_detections]
        number = len(kept)
        detections.boxes[image, :number] = image_boxes[kept]
        detections.scores[image, :number] = image_scores[kept]
        detections.labels[image, :number] = image_labels[kept]
        detections.counts[image] = number
    return detections
