"""The few typed values that tensors travel in."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Predictions(NamedTuple):
    """What the network says, before any decoding. N images, A anchors of all levels, K classes.

    Args:
        logits: (N, A, K).
        deltas: (N, A, 4) dx, dy, dw, dh relative to the anchors.
    """

    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Ground truth of a batch, padded to one number of boxes M so that no step depends on a count.

    Args:
        boxes: (N, M, 4) xyxy pixels of the resized image.
        labels: (N, M) int64 class, -1 in padding.
        is_ignored: (N, M) bool, crowd regions and difficult objects: anchors inside are neither positive nor negative.
    """

    boxes: Tensor
    labels: Tensor
    is_ignored: Tensor

    @classmethod
    def padded(cls, per_image: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Self:
        """Of boxes (M, 4), labels (M,) and is_ignored (M,) of each image; at least one row, so that no box gives the usual shapes."""
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
        return type(self)(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One micro-batch of training or evaluation.

    Args:
        images: (N, 3, H, W) uint8 RGB, padded at the right and the bottom; normalised on the device.
        sizes_hw: (N, 2) int64 height and width of the picture inside the padding.
        scales_xy: (N, 2) float32 factors from original to resized pixels.
        targets: None when predicting.
        indices: N image numbers in the records.
    """

    images: Tensor
    sizes_hw: Tensor
    scales_xy: Tensor
    targets: Targets | None
    indices: tuple[int, ...]

    def pin_memory(self) -> Self:
        """The same batch with its pictures in page-locked memory; torch's loader calls this by name."""
        return replace(self, images=self.images.pin_memory())


@dataclass(frozen=True, kw_only=True)
class Detections:
    """Boxes after NMS, padded to D an image.

    Args:
        boxes: (N, D, 4) xyxy pixels, of the picture or of the padded network input as the caller of ``detect`` chose; zeros in padding.
        scores: (N, D) in falling order; 0 in padding.
        labels: (N, D) int64; -1 in padding.
        counts: (N,) int64 detections of each image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: Tensor
