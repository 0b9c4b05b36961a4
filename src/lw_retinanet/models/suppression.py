"""Greedy NMS for each class, which stops when it has kept as many boxes as asked for."""

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import nms

PREFIX = 1024  # number of best candidates that are looked at first
_EACH = 16  # usual number of candidates of one object, if many scores pass the threshold
_FEW_BOXES, _FEW_CLASSES = 400, 20  # below these a step for all classes at once saves no time
_PAIRS_A_CALL = 200_000  # pairs of boxes that the kernel compares in the time of one call, if one box in 16 is kept
STEPS = 24  # longest chain of boxes of which each suppresses the next
_PAIRS_AT_A_TIME = 2**25


def suppress(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> Tensor:
    """Keep each box that does not overlap a better kept box of its class by more than ``iou``.

    Whether a candidate is kept does not depend on later ones, so only the first candidates are looked at if ``most`` of them are kept.

    Args:
        boxes: (N, S, 4) xyxy, the best first, finite where ``is_real`` is true.
        labels: (N, S) classes.
        is_real: (N, S) bool. Boxes for which it is false are not kept and suppress nothing.
        iou: Largest allowed overlap.
        most: Largest number of kept boxes in one image.

    Returns:
        (N, most) int64 ascending places in S, then -1, on the device of the boxes. The host waits for the device.
    """
    kept = torch.full((len(boxes), most), -1, dtype=torch.int64, device=boxes.device)
    boxes = boxes.detach()
    for image in range(len(boxes)):
        places = is_real[image].nonzero().flatten()
        survivors = places[_survivors(boxes[image, places], labels[image, places], iou, most)]
        kept[image, : len(survivors)] = survivors
    return kept


def _survivors(boxes: Tensor, labels: Tensor, iou: float, most: int) -> Tensor:
    """Places of the first ``most`` kept boxes of one image."""
    kept, looked_at = labels[:0], 0
    while len(kept) < most and looked_at < len(boxes):
        before, looked_at = looked_at, min(len(boxes), max(PREFIX, _EACH * most, 4 * looked_at))
        # Boxes that were suppressed do not suppress others, so they are left out.
        places = torch.cat([kept, torch.arange(before, looked_at, device=boxes.device)])
        kept = places[_greedy(boxes[places].double(), labels[places], iou)]
    return kept[:most]


def _greedy(boxes: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Ascending places of all kept boxes among boxes (M, 4) float64 and labels (M,)."""
    if boxes.device.type == "cpu" and len(labels) >= _FEW_BOXES:
        return _class_by_class(boxes.numpy(), labels.numpy(), iou)
    return _all_at_once(boxes, labels, iou)


def _all_at_once(boxes: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Ascending places of all kept boxes. Only within a class must the boxes be sorted, the best first."""
    # Boxes of different classes are moved apart, so that one NMS serves all classes. Whole numbers in float64 cost no accuracy.
    spacing = torch.ceil(2 * boxes.abs().amax() + 2) if len(boxes) else 0
    return nms(boxes + (labels * spacing)[:, None], _falling(len(boxes), boxes.device), iou)


def _falling(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, 0, -1, dtype=torch.float64, device=device)


def _class_by_class(boxes: NDArray[np.float64], labels: NDArray[np.int64], iou: float) -> Tensor:
    """:func:`_greedy` on a CPU, where torchvision's kernel compares every kept box with all boxes after it, whatever their class.

    If there are many classes, every class keeps its best box and removes the boxes that this one suppresses, all classes in one step.
    This is repeated as long as it saves time. The rest goes to the kernel, one class at a time if many boxes are left.
    """
    order = np.argsort(labels.astype(np.min_scalar_type(labels.max())), kind="stable")  # a sort of bytes takes a sixth of the time
    labels, corners = labels[order], np.ascontiguousarray(boxes[order].T)
    areas = (corners[2] - corners[0]) * (corners[3] - corners[1])
    kept: list[NDArray[np.int64]] = []
    while True:
        is_best = np.ones(len(labels), dtype=np.bool_)
        np.not_equal(labels[1:], labels[:-1], out=is_best[1:])
        starts = np.flatnonzero(is_best)
        if len(labels) < _FEW_BOXES or len(starts) < _FEW_CLASSES:
            break
        best = starts[np.cumsum(is_best) - 1]
        rivals = corners.take(best, axis=1)
        sides = np.minimum(corners[2:], rivals[2:]) - np.maximum(corners[:2], rivals[:2])
        common = np.maximum(sides[0], 0) * np.maximum(sides[1], 0)
        with np.errstate(invalid="ignore", divide="ignore"):  # two empty boxes give NaN, which counts as no overlap
            is_settled = (common / (areas + areas[best] - common) > iou) | is_best
        kept.append(order[starts])
        left = np.flatnonzero(~is_settled)
        order, labels, corners, areas = order[left], labels[left], corners.take(left, axis=1), areas[left]
    rest = torch.from_numpy(corners.T)
    if len(labels) ** 2 < _PAIRS_A_CALL * len(starts):
        kept.append(order[_all_at_once(rest, torch.from_numpy(labels), iou).numpy()])
    else:
        ranks = _falling(len(labels), rest.device)
        for start, stop in pairwise([*starts.tolist(), len(labels)]):
            kept.append(order[start:stop][nms(rest[start:stop], ranks[: stop - start], iou).numpy()])
    return torch.from_numpy(np.sort(np.concatenate(kept)))


def suppress_on_device(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> Tensor:
    """:func:`suppress` by one kernel on a CUDA device with Triton, for which the host does not wait."""
    from lw_retinanet.models import kernels

    return kernels.suppress(boxes, labels, is_real, iou=iou, most=most)


def suppress_without_waiting(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> tuple[Tensor, Tensor]:
    """:func:`suppress` in a fixed number of steps with fixed shapes, so that the host never waits for the device.

    Whether a box is kept depends on the better boxes that overlap it, which form chains. The computation starts with all boxes kept, and
    every step settles one more link of the chains. Chains are short.

    Returns:
        The result of :func:`suppress`, and (N,) bool: whether it is correct. It is not if a chain has more links than there are steps, or
        if fewer than ``most`` of the first candidates were kept and there are more candidates.
    """
    looked_at = min(boxes.shape[1], max(PREFIX, 2 * most))
    at_a_time = max(1, _PAIRS_AT_A_TIME // looked_at**2)
    kept, is_settled = [], []
    for start in range(0, len(boxes), at_a_time):
        part = slice(start, start + at_a_time)
        one, settled = _fixed_point(boxes[part, :looked_at], labels[part, :looked_at], is_real[part, :looked_at], iou)
        kept.append(one)
        is_settled.append(settled)
    is_kept = torch.cat(kept)
    is_complete = torch.cat(is_settled) & ((is_kept.sum(dim=1) >= most) | ~is_real[:, looked_at:].any(dim=1))
    # The r-th kept box goes to column r, all others to a last column that is cut off.
    column = torch.where(is_kept, is_kept.cumsum(dim=1) - 1, most).clamp(max=most)
    places = torch.full((len(boxes), most + 1), -1, dtype=torch.int64, device=boxes.device)
    places.scatter_(1, column, torch.arange(looked_at, device=boxes.device).expand_as(column))
    return places[:, :most], is_complete


def _fixed_point(boxes: Tensor, labels: Tensor, is_real: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """(n, M) bool: which boxes are kept; (n,) bool: whether another step would change nothing."""
    apart = boxes.double()
    areas = (apart[..., 2] - apart[..., 0]) * (apart[..., 3] - apart[..., 1])
    upper_left = torch.maximum(apart[:, :, None, :2], apart[:, None, :, :2])
    lower_right = torch.minimum(apart[:, :, None, 2:], apart[:, None, :, 2:])
    common = (lower_right - upper_left).clamp(min=0).prod(dim=3)
    overlaps = common / (areas[:, :, None] + areas[:, None, :] - common) > iou  # two empty boxes give NaN, which counts as no overlap
    overlaps &= (labels[:, :, None] == labels[:, None, :]) & is_real[:, :, None]
    suppresses = overlaps.triu(diagonal=1).to(torch.float16 if boxes.is_cuda else torch.float32)
    is_kept, before = is_real, is_real
    for _ in range(STEPS):
        before = is_kept
        is_kept = is_real & (torch.bmm(is_kept[:, None].to(suppresses.dtype), suppresses)[:, 0] == 0)
    return is_kept, (is_kept == before).all(dim=1)
