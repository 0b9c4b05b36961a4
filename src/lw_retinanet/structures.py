"""Named groups of tensors that the parts of a detector pass to one another."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """The network's output before decoding, for N images, A anchors of all levels and K classes.

    Args:
        logits: (N, A, K) class logits.
        deltas: (N, A, 4) values dx, dy, dw, dh relative to the anchors.
    """

    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Ground truth of a batch. All images are padded to the same number of boxes M, so that no computation depends on a count.

    Args:
        boxes: (N, M, 4) xyxy, in pixels of the resized image.
        labels: (N, M) int64 classes; -1 in padding.
        is_ignored: (N, M) bool, true for crowd regions and difficult objects. Anchors inside them are neither positive nor negative.
    """

    boxes: Tensor
    labels: Tensor
    is_ignored: Tensor

    @classmethod
    def padded(cls, per_image: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Self:
        """Join boxes (B, 4), labels (B,) and is_ignored (B,) of each image. M is at least 1, so that no shape is empty."""
        most = max([1, *(len(labels) for _, labels, _ in per_image)])
        targets = cls(
            boxes=torch.zeros((len(per_image), most, 4)),
            labels=torch.full((len(per_image), most), -1, dtype=torch.int64),
            is_ignored=torch.zeros((len(per_image), most), dtype=torch.bool),
        )
        for row, (boxes, labels, is_ignored) in enumerate(per_image):
            number = len(labels)
            targets.boxes[row, :number], targets.labels[row, :number], targets.is_ignored[row, :number] = boxes, labels, is_ignored
        return targets

    def to(self, device: torch.device) -> Self:
        """The same targets on another device."""
        return type(self)(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images of one forward pass, for training or evaluation.

    Args:
        images: (N, 3, H, W) uint8 RGB, padded at the right and the bottom. They are normalised later, on the device.
        sizes_hw: (N, 2) int64 height and width of each image inside the padding.
        scales_xy: (N, 2) float32 factors from original to resized pixels.
        targets: Ground truth, or None when predicting.
        indices: Numbers of the N images in the records.
    """

    images: Tensor
    sizes_hw: Tensor
    scales_xy: Tensor
    targets: Targets | None
    indices: tuple[int, ...]

    def pin_memory(self) -> Self:
        """The same batch with its images in page-locked memory. PyTorch's data loader calls this method by its name."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes after NMS, padded to D boxes for each image.

    Args:
        boxes: (N, D, 4) xyxy, in pixels of the original image or of the padded input, as the caller of ``detect`` chose; 0 in padding.
        scores: (N, D) in descending order; 0 in padding.
        labels: (N, D) int64; -1 in padding.
        counts: (N,) int64 number of detections of each image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
