"""Box arithmetic that torchvision.ops does not have: deltas, overlap with crowd regions, clipping of batches."""

import math

import torch
from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.conventions import BoxRule

MAX_LOG_SCALE = math.log(1000 / 16)


def _centres_and_sizes(boxes: Tensor, plus_one: float) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2] + plus_one
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode(boxes: Tensor, anchors: Tensor, rule: BoxRule = BoxRule()) -> Tensor:
    """Express boxes relative to their anchors.

    Args:
        boxes: (..., 4) xyxy, positive width and height. x2 and y2 are the end of the last pixel, whatever the rule.
        anchors: (..., 4) xyxy in the same pixels, broadcast against ``boxes``.
        rule: Decides how the anchors' widths are computed.

    Returns:
        (..., 4) deltas (dx, dy, dw, dh): dx, dy in anchor widths and heights, dw, dh natural logarithms.

    Source: R-CNN (Girshick et al. 2014), appendix C.
    """
    centres, sizes = _centres_and_sizes(boxes, 0.0)
    anchor_centres, anchor_sizes = _centres_and_sizes(anchors, float(rule.legacy_plus_one))
    return torch.cat([(centres - anchor_centres) / anchor_sizes, torch.log(sizes / anchor_sizes)], dim=-1)


def decode(deltas: Tensor, anchors: Tensor, rule: BoxRule = BoxRule()) -> Tensor:
    """The inverse of :func:`encode`, with dw and dh limited as ``rule.clamp`` says.

    Args:
        deltas: (..., 4) values dx, dy, dw, dh.
        anchors: (..., 4) xyxy, broadcast against ``deltas``.
        rule: Decides how the anchors' widths are computed, and the clamp.

    Returns:
        (..., 4) xyxy in the anchors' pixels, not clipped. x2 and y2 are the end of the last pixel, whatever the rule.
    """
    anchor_centres, anchor_sizes = _centres_and_sizes(anchors, float(rule.legacy_plus_one))
    log_scales = deltas[..., 2:]
    if rule.clamp == "max":
        log_scales = log_scales.clamp(max=MAX_LOG_SCALE)
    elif rule.clamp == "both":
        log_scales = log_scales.clamp(-MAX_LOG_SCALE, MAX_LOG_SCALE)
    centres = anchor_centres + deltas[..., :2] * anchor_sizes
    half_sizes = 0.5 * torch.exp(log_scales) * anchor_sizes
    return torch.cat([centres - half_sizes, centres + half_sizes], dim=-1)


def iou(boxes_a: Tensor, boxes_b: Tensor) -> Tensor:
    """(A, B) intersection over union. Two empty boxes, as in padding, give 0 instead of NaN."""
    return torch.nan_to_num(box_iou(boxes_a, boxes_b), nan=0.0)


def coverage(boxes: Tensor, regions: Tensor) -> Tensor:
    """(A, B) share of each box's area that is inside each region. COCO uses this overlap for crowd regions."""
    upper_left = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    lower_right = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    intersection = (lower_right - upper_left).clamp(min=0).prod(dim=-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=-1)
    return intersection / area[:, None].clamp(min=torch.finfo(boxes.dtype).tiny)


def clip(boxes: Tensor, sizes_hw: Tensor) -> Tensor:
    """Limit boxes (N, D, 4), xyxy, to the heights and widths (N, 2) of their images."""
    height, width = sizes_hw[:, 0, None], sizes_hw[:, 1, None]
    limits = torch.stack([width, height, width, height], dim=-1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)
