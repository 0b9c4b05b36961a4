"""Anchors: the fixed reference boxes of every cell of the five levels."""

from functools import lru_cache

import torch
from torch import Tensor

from lw_retinanet.conventions import STRIDES, AnchorRule


def feature_sizes(size_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Heights and widths of P3..P7. Every layer of stride 2 rounds up."""
    return [(-(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in STRIDES]


def anchors_per_level(size_hw: tuple[int, int], rule: AnchorRule) -> list[int]:
    """Numbers of anchors of P3..P7 for a padded input of this size."""
    return [height * width * rule.num_anchors for height, width in feature_sizes(size_hw)]


def cell_anchors(stride: int, rule: AnchorRule) -> Tensor:
    """(num_anchors, 4) float32 xyxy, the anchors of a cell around (0, 0) in pixels, in the order of the head's channels."""
    ratios = torch.tensor(rule.aspect_ratios, dtype=torch.float32)
    sizes = [stride * rule.base_size * scale for scale in rule.octave_scales]
    if rule.rounding == "torchvision":
        sizes = [float(int(size + 1e-6)) for size in sizes]  # 32 * 2^0 must not become 31
    scales = torch.tensor(sizes, dtype=torch.float32)
    if rule.rounding == "detectron":
        # An anchor of the area of one cell has whole pixels; torch.round takes halves to the even number, as NumPy does.
        widths = torch.round(torch.sqrt(stride**2 / ratios))
        heights = torch.round(widths * ratios)
        widths, heights = widths / stride, heights / stride
    else:
        heights = torch.sqrt(ratios)
        widths = 1 / heights
    if rule.order == "ratio_major":
        w, h = (widths[:, None] * scales[None]).flatten(), (heights[:, None] * scales[None]).flatten()
    else:
        w, h = (scales[:, None] * widths[None]).flatten(), (scales[:, None] * heights[None]).flatten()
    corners = torch.stack([-w, -h, w, h], dim=1) / 2
    if rule.rounding == "torchvision":
        corners = corners.round()
    if rule.inclusive:
        corners[:, 2:] -= 1
    return corners


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # cached anchors of a prediction must be usable in training, too
def make_anchors(size_hw: tuple[int, int], rule: AnchorRule, device: torch.device) -> Tensor:
    """All anchors for a padded input size, cached for each size, rule and device.

    Returns:
        (A, 4) float32 xyxy in pixels, ordered by level, row, column and anchor of the cell. The caller must not change this tensor.
    """
    levels = []
    for stride, (height, width) in zip(STRIDES, feature_sizes(size_hw), strict=True):
        if rule.stride_rule == "padded_over_feature":
            step_y, step_x = size_hw[0] // height, size_hw[1] // width
        else:
            step_y = step_x = stride
        y = (torch.arange(height, dtype=torch.float32) + rule.centre) * step_y
        x = (torch.arange(width, dtype=torch.float32) + rule.centre) * step_x
        centres = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2).repeat(1, 1, 2)
        levels.append((centres + cell_anchors(stride, rule)[None]).reshape(-1, 4))
    return torch.cat(levels).to(device)
