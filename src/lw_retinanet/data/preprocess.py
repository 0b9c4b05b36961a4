"""From a decoded image to the network's input; training and prediction share this code."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lw_retinanet.conventions import InputRule


def resize_scale(size_hw: tuple[int, int], rule: InputRule) -> float:
    """The factor from pixels of the original image to pixels of the network's input, before the sides are rounded."""
    shorter, longer = min(size_hw), max(size_hw)
    if rule.resize == "long_side":
        return rule.size / longer
    scale = rule.size / shorter
    # Detectron compares the rounded side: 1333.4 pixels are not more than 1333.
    is_too_long = round(scale * longer) > rule.max_size if rule.rounding == "detectron" else scale * longer > rule.max_size
    return rule.max_size / longer if is_too_long else scale


def resized_size(size_hw: tuple[int, int], rule: InputRule, jitter: float = 1.0) -> tuple[int, int]:
    """Height and width of an image after resizing, each at least 1.

    Args:
        size_hw: The size of the original image.
        rule: How the model's images are resized.
        jitter: A factor on top, for augmentation.
    """
    scale = resize_scale(size_hw, rule) * jitter
    sides = (size_hw[0] * scale, size_hw[1] * scale)
    if rule.rounding == "round":
        return max(1, math.floor(sides[0] + 0.5)), max(1, math.floor(sides[1] + 0.5))
    if rule.rounding == "detectron":
        return max(1, round(sides[0])), max(1, round(sides[1]))
    # As in torchvision, whose models need it: a side of 97 scaled by 800 / 97 is 799.99... and becomes 799.
    return max(1, int(sides[0])), max(1, int(sides[1]))


def padded_size(sizes_hw: Sequence[tuple[int, int]], multiple: int) -> tuple[int, int]:
    """The smallest common height and width that are multiples of ``multiple``."""
    height, width = max(size[0] for size in sizes_hw), max(size[1] for size in sizes_hw)
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def to_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) array -> (3, H, W) uint8 tensor, without a copy if the array is writable."""
    return torch.from_numpy(np.require(image, requirements=["W"])).permute(2, 0, 1)


def resize(image: Tensor, size_hw: tuple[int, int], rule: InputRule) -> Tensor:
    """Resize a (3, H, W) uint8 image bilinearly to (3, *size_hw). The rule says whether with a low-pass filter, and in uint8 or float32."""
    if rule.resample_as == "float32":
        image = image.float()
    original = (int(image.shape[1]), int(image.shape[2]))
    if original == size_hw:
        return image
    if rule.rounding == "detectron" and size_hw == resized_size(original, rule):
        # The step between samples is the exact scale. The ratio of the rounded sides would be off by half a pixel at the far border.
        scale = resize_scale(original, rule)
        resized: Tensor = torch.ops.aten.upsample_bilinear2d(image[None], list(size_hw), False, scale, scale)[0]
        return resized
    return F.resize(image, list(size_hw), antialias=rule.antialias)


def pad_to(images: Sequence[Tensor], size_hw: tuple[int, int]) -> Tensor:
    """Stack (3, h, w) images into (N, 3, *size_hw) with zeros at the right and the bottom, channels last in memory."""
    batch = torch.zeros((len(images), *size_hw, 3), dtype=images[0].dtype, device=images[0].device).permute(0, 3, 1, 2)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


def normalise(images: Tensor, sizes_hw: Tensor, rule: InputRule) -> Tensor:
    """Scale, subtract the mean, divide by the deviation, and set the padding to zero, as torchvision, Detectron2 and MMDetection do.

    Args:
        images: (N, 3, H, W) RGB, uint8 or float of the same range.
        sizes_hw: (N, 2) the image sizes inside the padding.
        rule: The scale, mean, deviation and channel order of the model.

    Returns:
        (N, 3, H, W) float32, channels last in memory.
    """
    device, width = images.device, images.shape[3]
    if rule.channel_order == "bgr":
        images = images.flip(1)
    # Whole rows of pixels, since an operation along the three channels alone is not vectorised.
    values = torch.div(images.permute(0, 2, 3, 1).contiguous().flatten(2), rule.scale)
    rows = torch.arange(images.shape[2], device=device) < sizes_hw[:, :1].to(device)
    columns = torch.arange(width, device=device) < sizes_hw[:, 1:].to(device)
    mean, std = mean_and_std(rule.mean, rule.std, device)
    # In this order, to the last bit: a run that was begun with it goes on with it.
    values.sub_(mean.repeat(width)).div_(std.repeat(width))
    values.mul_(columns.repeat_interleave(3, dim=1)[:, None].float()).mul_(rows[..., None].float())
    return values.unflatten(2, (width, 3)).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # tensors made in inference mode could not be used in training
def mean_and_std(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(3,) each; cached, because every copy to a CUDA device waits for the device."""
    return torch.tensor(mean, device=device), torch.tensor(std, device=device)
