"""How well anchors cover the boxes of a dataset at a given image size. A box that no anchor overlaps is hardly ever learned."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lw_retinanet.conventions import STRIDES, AnchorRule, InputRule
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.preprocess import resized_size
from lw_retinanet.data.records import Records
from lw_retinanet.models.anchors import cell_anchors, feature_sizes

FOREGROUND_IOU = 0.5
FORCED_IOU = 0.2  # below this even a forced match teaches little


@dataclass(frozen=True, kw_only=True)
class AnchorRecall:
    """How many boxes have an anchor that overlaps them enough.

    Args:
        image_size: Longer side of the resized images, pixels.
        boxes: Number of boxes, without crowds, difficult objects and boxes under a pixel.
        covered: Share of the boxes with a best IoU of at least 0.5, which are matched in the usual way.
        lost: Share of the boxes with a best IoU under 0.2, which are matched by force only, and badly.
        mean_iou: Mean best IoU.
        by_size: Share covered among small, medium and large boxes of the resized images (COCO's limits); None where there are none.
    """

    image_size: int
    boxes: int
    covered: float
    lost: float
    mean_iou: float
    by_size: dict[str, float | None]

    def as_dict(self) -> dict[str, object]:
        """The fields by name."""
        return dict(vars(self))

    def lines(self) -> list[str]:
        """One line for people, and a second one with advice if boxes are lost."""
        sizes = ", ".join(f"{name} {'-' if share is None else f'{share:.1%}'}" for name, share in self.by_size.items())
        lines = [
            f"anchors at image size {self.image_size}: {self.covered:.1%} of {self.boxes:,} boxes overlap an anchor by IoU 0.5 ({sizes}); "
            f"mean best IoU {self.mean_iou:.2f}"
        ]
        if self.lost > 0.01:
            lines.append(f"  {self.lost:.1%} have no anchor even at IoU 0.2: try a larger image size")
        return lines


def anchor_recall(records: Records, image_size: int, rule: AnchorRule = AnchorRule()) -> AnchorRecall:
    """Measure the best IoU of every box with any anchor.

    Args:
        records: Images with known sizes, and their boxes.
        image_size: Longer side of the resized images, pixels.
        rule: Shapes and places of the anchors.
    """
    images = records.image_of_box
    rows = np.flatnonzero(usable(records) & ~records.is_ignored & (records.sizes_hw[images] > 0).all(axis=1))
    sizes, resized = records.sizes_hw[images[rows]], _resized(records, image_size)[images[rows]]
    factors = (resized / np.maximum(sizes, 1))[:, ::-1]
    boxes = records.boxes_xywh[rows].reshape(-1, 2, 2) * factors[:, None, :]
    best = best_ious(boxes.reshape(-1, 4), resized, rule)
    areas = boxes[:, 1].prod(axis=1)
    groups = {"small": areas < 32**2, "medium": (areas >= 32**2) & (areas < 96**2), "large": areas >= 96**2}
    return AnchorRecall(
        image_size=image_size,
        boxes=len(rows),
        covered=float((best >= FOREGROUND_IOU).mean()) if len(best) else 0.0,
        lost=float((best < FORCED_IOU).mean()) if len(best) else 0.0,
        mean_iou=float(best.mean()) if len(best) else 0.0,
        by_size={name: float((best[group] >= FOREGROUND_IOU).mean()) if group.any() else None for name, group in groups.items()},
    )


def best_ious(boxes_xywh: NDArray[np.float64], sizes_hw: NDArray[np.int64], rule: AnchorRule) -> NDArray[np.float64]:
    """(B,) best IoU of each box with the anchors of its own image.

    Among anchors of one shape, the one of the nearest cell overlaps most. So one cell a level is looked at: 45 anchors a box.

    Args:
        boxes_xywh: (B, 4) boxes in pixels of the resized image.
        sizes_hw: (B, 2) size of the resized image of each box.
        rule: Shapes and places of the anchors.
    """
    centres = boxes_xywh[:, :2] + boxes_xywh[:, 2:] / 2
    best = np.zeros(len(boxes_xywh))
    for level, stride in enumerate(STRIDES):
        last_cell = np.array([feature_sizes((int(h), int(w)))[level] for h, w in np.unique(sizes_hw, axis=0)]) - 1
        row_of_size = np.unique(sizes_hw, axis=0, return_inverse=True)[1].reshape(-1)
        limits = last_cell[row_of_size][:, ::-1] if len(boxes_xywh) else np.zeros((0, 2))
        cells = np.clip(np.rint(centres / stride - rule.centre), 0, limits)
        places = (cells + rule.centre) * stride
        for anchor in cell_anchors(stride, rule).to(torch.float64).numpy():
            corners = places[:, None, :] + anchor.reshape(2, 2)
            upper_left = np.maximum(corners[:, 0], boxes_xywh[:, :2])
            lower_right = np.minimum(corners[:, 1], boxes_xywh[:, :2] + boxes_xywh[:, 2:])
            shared = np.clip(lower_right - upper_left, 0, None).prod(axis=1)
            union = boxes_xywh[:, 2:].prod(axis=1) + (anchor[2:] - anchor[:2]).prod() - shared
            best = np.maximum(best, shared / union)
    return best


def _resized(records: Records, image_size: int) -> NDArray[np.int64]:
    """(I, 2) sizes after resizing; (1, 1) where the original size is unknown."""
    distinct, rows = np.unique(np.maximum(records.sizes_hw, 1), axis=0, return_inverse=True)
    rule = InputRule(size=image_size)
    return np.array([resized_size((int(h), int(w)), rule) for h, w in distinct]).reshape(-1, 2)[rows.reshape(-1)]
