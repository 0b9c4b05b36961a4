"""Predictions -> detections: the best candidates of each level, decoding, clipping, NMS, and back to the picture's pixels."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torchvision.ops import nms

from lw_retinanet.boxes import clip, decode
from lw_retinanet.conventions import Conventions, OutputRule
from lw_retinanet.data.preprocess import resize_scale
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.structures import Detections, Predictions


def detect(
    predictions: Predictions,
    *,
    size_hw: tuple[int, int],
    sizes_hw: Tensor,
    conventions: Conventions,
    pictures_hw: Sequence[tuple[int, int]] | None = None,
) -> Detections:
    """Turn predictions into boxes.

    Args:
        predictions: of a padded input of ``size_hw``.
        size_hw: height and width of the padded input.
        sizes_hw: (N, 2) height and width of each resized picture inside it.
        conventions: of the weights.
        pictures_hw: N original heights and widths; None where pictures and input have the same pixels.

    Returns:
        Detections, the best first, in pixels of the original pictures where ``pictures_hw`` is given, else of the padded input. Corners
        x2, y2 are where the last pixel ends, also for origins whose own corners are that pixel.
    """
    rule = conventions.output
    logits, deltas = predictions.logits.float(), predictions.deltas.float()
    anchors = make_anchors(size_hw, conventions.anchors, logits.device)
    scores, labels, chosen, thresholds = [], [], [], []
    start = 0
    counts = anchors_per_level(size_hw, conventions.anchors)
    for level, count in enumerate(counts):
        level_scores, level_labels, level_anchors = _best_pairs(logits[:, start : start + count], rule.candidates_per_level)
        is_own = level == len(counts) - 1 and rule.last_level_score_threshold is not None
        threshold = rule.last_level_score_threshold if is_own else rule.score_threshold
        scores.append(level_scores)
        labels.append(level_labels)
        chosen.append(level_anchors + start)
        thresholds += [threshold] * level_scores.shape[1]
        start += count
    anchor_rows = torch.cat(chosen, dim=1)
    boxes = decode(deltas.gather(1, anchor_rows[..., None].expand(-1, -1, 4)), anchors[anchor_rows], conventions.boxes)
    probabilities = torch.cat(scores, dim=1).sigmoid()
    passed = probabilities > torch.tensor(thresholds, device=logits.device)
    # Where the origin's corners are its boxes' last pixels, those are what it clips and scales.
    last_pixel = torch.tensor([0.0, 0.0, 1.0, 1.0], device=logits.device) * float(conventions.boxes.legacy_plus_one)
    factors, limits_hw = torch.ones((), device=logits.device), _limits(rule, size_hw, sizes_hw)
    if pictures_hw is not None:
        factors = _factors_to_pictures(pictures_hw, sizes_hw, conventions)[:, None]
        if rule.frame == "picture":
            boxes = (boxes - last_pixel) * factors + last_pixel
            limits_hw = _limits(rule, size_hw, torch.tensor(pictures_hw, device=logits.device))
    if rule.clip == "before_nms":
        boxes = clip(boxes - last_pixel, limits_hw) + last_pixel
        passed &= _is_filled(boxes) | (not rule.drop_empty)
    # A box of a diverged network may be NaN or infinite: no detection, and no poison for the comparisons of NMS.
    result = _suppress(boxes, probabilities, torch.cat(labels, dim=1), passed & boxes.isfinite().all(dim=2), rule)
    if rule.clip == "after_nms":
        result = replace(result, boxes=clip(result.boxes - last_pixel, limits_hw) + last_pixel)
        if rule.drop_empty:
            result = _without_empty(result)
    if rule.frame == "input":
        result = replace(result, boxes=(result.boxes - last_pixel) * factors + last_pixel)
    return replace(result, boxes=result.boxes * (result.labels >= 0)[..., None])


def _best_pairs(logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` best (anchor, class) pairs of each image: logits, classes, anchors, each (N, count) or fewer.

    In two steps: every one of the best k pairs lies in one of the k anchors with the best maxima, so only those are looked at twice.
    """
    num_classes = logits.shape[2]
    best_anchors = logits.amax(dim=2).topk(min(count, logits.shape[1]), dim=1).indices
    pairs = logits.gather(1, best_anchors[..., None].expand(-1, -1, num_classes)).flatten(1)
    best = pairs.topk(min(count, pairs.shape[1]), dim=1)
    return best.values, best.indices % num_classes, best_anchors.gather(1, best.indices // num_classes)


def _limits(rule: OutputRule, size_hw: tuple[int, int], sizes_hw: Tensor) -> Tensor:
    """(N, 2) largest y and x that corners may have."""
    if rule.clip_to == "padded_minus_one":
        return (torch.tensor(size_hw, device=sizes_hw.device) - 1).expand_as(sizes_hw)
    return sizes_hw - 1 if rule.clip_to == "picture_minus_one" else sizes_hw


def _factors_to_pictures(pictures_hw: Sequence[tuple[int, int]], sizes_hw: Tensor, conventions: Conventions) -> Tensor:
    """(N, 4) factors of x1, y1, x2, y2 from input to picture pixels."""
    if conventions.output.scale_back == "uniform":
        factors = [1 / resize_scale(picture_hw, conventions.input) for picture_hw in pictures_hw]
        return torch.tensor(factors, dtype=torch.float32, device=sizes_hw.device)[:, None].expand(-1, 4)
    return (torch.tensor(pictures_hw, device=sizes_hw.device) / sizes_hw).float()[:, [1, 0, 1, 0]]


def _is_filled(boxes: Tensor) -> Tensor:
    """(N, D) bool: wider and higher than nothing."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, passed: Tensor, rule: OutputRule) -> Detections:
    """NMS class by class over the candidates that ``passed``."""
    num_images, device = boxes.shape[0], boxes.device
    detections = Detections(
        boxes=torch.zeros((num_images, rule.max_detections, 4), device=device),
        scores=torch.zeros((num_images, rule.max_detections), device=device),
        labels=torch.full((num_images, rule.max_detections), -1, dtype=torch.int64, device=device),
        counts=torch.zeros(num_images, dtype=torch.int64, device=device),
    )
    for image in range(num_images):
        image_boxes, image_scores, image_labels = boxes[image][passed[image]], scores[image][passed[image]], labels[image][passed[image]]
        if len(image_boxes) == 0:
            continue
        # Classes are moved apart, so that one NMS serves all; in double precision the move costs no accuracy.
        apart = image_boxes.double()
        apart = apart + (image_labels * (2 * apart.abs().max() + 2))[:, None]
        kept = nms(apart, image_scores.double(), rule.nms_iou)[: rule.max_detections]
        number = len(kept)
        detections.boxes[image, :number] = image_boxes[kept]
        detections.scores[image, :number] = image_scores[kept]
        detections.labels[image, :number] = image_labels[kept]
        detections.counts[image] = number
    return detections


def _without_empty(detections: Detections) -> Detections:
    """The rest moves up, in order."""
    is_kept = _is_filled(detections.boxes) & (detections.labels >= 0)
    order = torch.argsort(is_kept.int(), dim=1, descending=True, stable=True)
    is_kept = is_kept.gather(1, order)
    return Detections(
        boxes=detections.boxes.gather(1, order[..., None].expand(-1, -1, 4)) * is_kept[..., None],
        scores=detections.scores.gather(1, order) * is_kept,
        labels=detections.labels.gather(1, order).where(is_kept, -1),
        counts=is_kept.sum(dim=1),
    )
