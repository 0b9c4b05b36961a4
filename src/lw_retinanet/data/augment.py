"""Augmentation of a training image: a pure function of (seed, epoch, index), so that a resumed run is the same run."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from lw_retinanet.config import DataConfig
from lw_retinanet.conventions import InputRule
from lw_retinanet.data.preprocess import resize, resized_size

MIN_VISIBLE = 0.25  # if cropping leaves less of a box, the rest is ignored: it is neither right nor wrong to detect it
_photometric = v2.RandomPhotometricDistort(p=0.5)


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What will be done to an image. It is decided before the image is read, so that every process knows the padded size of the batch.

    Args:
        flip: Whether left and right are mirrored.
        resized_hw: The size after resizing.
        crop: Top, left, height and width of the part that is kept, in pixels of the resized image.
    """

    flip: bool
    resized_hw: tuple[int, int]
    crop: tuple[int, int, int, int]

    @property
    def size_hw(self) -> tuple[int, int]:
        """The size of the augmented image."""
        return self.crop[2], self.crop[3]


def sample_generator(seed: int, epoch: int, index: int, stream: int) -> np.random.Generator:
    """A random generator that depends on these four numbers alone."""
    return np.random.default_rng((seed, epoch, index, stream))


def plan_geometry(size_hw: tuple[int, int], *, seed: int, epoch: int, index: int, config: DataConfig, rule: InputRule) -> Geometry:
    """Draw flip, scale and crop. An image that grows is cropped to its usual size, so that jitter makes no batch larger."""
    random = sample_generator(seed, epoch, index, stream=0)
    flip = config.augment != "none" and bool(random.random() < 0.5)
    usual = resized_size(size_hw, rule)
    if config.augment not in ("jitter", "full"):
        return Geometry(flip=flip, resized_hw=usual, crop=(0, 0, *usual))
    low, high = np.log(config.jitter)
    resized = resized_size(size_hw, rule, jitter=float(np.exp(random.uniform(low, high))))
    height, width = min(resized[0], usual[0]), min(resized[1], usual[1])
    top = int(random.integers(resized[0] - height + 1))
    left = int(random.integers(resized[1] - width + 1))
    return Geometry(flip=flip, resized_hw=resized, crop=(top, left, height, width))


def apply_geometry(image: Tensor, boxes: Tensor, geometry: Geometry, rule: InputRule) -> tuple[Tensor, Tensor, Tensor]:
    """Scale, crop and flip an image with its boxes.

    Args:
        image: (3, H, W) uint8.
        boxes: (M, 4) float32 xyxy pixels of the image.
        geometry: What :func:`plan_geometry` has drawn.
        rule: How the model's images are resized.

    Returns:
        The image, the boxes clipped to it, and (M,) the share of each box's area that is still visible.
    """
    height, width = image.shape[1:]
    scaled = boxes * torch.tensor([geometry.resized_hw[1] / width, geometry.resized_hw[0] / height] * 2)
    image = resize(image, geometry.resized_hw, rule)
    if image.is_floating_point():
        image = image.round().to(torch.uint8)  # colour distortion needs it, and it takes a quarter of the memory on the way to the device
    image = F.crop(image, *geometry.crop)
    tracked = tv_tensors.BoundingBoxes(scaled, format="XYXY", canvas_size=geometry.resized_hw)
    tracked = F.crop(tracked, *geometry.crop)
    if geometry.flip:
        image, tracked = F.horizontal_flip(image), F.horizontal_flip(tracked)
    clipped = torch.Tensor(F.clamp_bounding_boxes(tracked))
    full = (scaled[:, 2:] - scaled[:, :2]).prod(dim=1)
    visible = (clipped[:, 2:] - clipped[:, :2]).prod(dim=1) / full.clamp(min=1e-6)
    return image, clipped, visible


def apply_colours(image: Tensor, *, seed: int, epoch: int, index: int) -> Tensor:
    """Change brightness, contrast, saturation, hue and channel order as in SSD's photometric distortion."""
    number = int(sample_generator(seed, epoch, index, stream=1).integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        return _photometric(image)
