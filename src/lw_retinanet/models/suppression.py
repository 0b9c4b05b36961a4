"""Greedy NMS, class by class, that stops when it has what is asked for."""

import torch
from torch import Tensor
from torchvision.ops import nms

PREFIX = 1024  # of the best candidates that are looked at first
_PARTS = 8
_STEPS = 24
_PAIRS_AT_A_TIME = 2**25


def suppress(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> Tensor:
    """Keep each box that overlaps no kept box before it, of its own class, by more than ``iou``.

    What is kept of the first candidates does not depend on later ones. So the first few are enough wherever they hold ``most`` survivors.

    Args:
        boxes: (N, S, 4) xyxy, finite where ``is_real``, the best first.
        labels: (N, S) class.
        is_real: (N, S) bool; others are neither kept nor do they suppress.
        iou: overlap.
        most: kept in one image.

    Returns:
        (N, most) int64 places in S, rising; -1 behind the last one. On the device of the boxes; this waits for the device.
    """
    kept = torch.full((len(boxes), most), -1, dtype=torch.int64, device=boxes.device)
    for image in range(len(boxes)):
        places = is_real[image].nonzero().flatten()
        survivors = places[_survivors(boxes[image, places], labels[image, places], iou, most)]
        kept[image, : len(survivors)] = survivors
    return kept


def _survivors(boxes: Tensor, labels: Tensor, iou: float, most: int) -> Tensor:
    """Places of the first ``most``."""
    if len(boxes) == 0:
        return labels[:0]
    # Classes are moved apart, so that one NMS serves many; whole numbers in double precision, so that the move costs no accuracy.
    apart = boxes.double()
    spacing = torch.ceil(2 * apart.abs().amax() + 2)
    apart = apart + (labels * spacing)[:, None]
    ranks = torch.arange(len(apart), 0, -1, dtype=torch.float64, device=apart.device)
    # A CPU kernel compares every kept box with all behind it, so there some classes go at a time.
    is_large = len(apart) > PREFIX and not apart.is_cuda
    parts = [places for part in range(_PARTS) if len(places := (labels % _PARTS == part).nonzero().flatten())] if is_large else []
    looked_at = max(PREFIX, 2 * most) * max(1, len(parts))
    while True:
        if len(parts) > 1:
            heads = [places[places < looked_at] for places in parts]
            kept = torch.cat([places[nms(apart[places], ranks[places], iou)] for places in heads]).sort().values
        else:
            kept = nms(apart[:looked_at], ranks[:looked_at], iou)
        if len(kept) >= most or looked_at >= len(boxes):
            return kept[:most]
        looked_at *= 4


def suppress_without_waiting(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float, most: int) -> tuple[Tensor, Tensor]:
    """:func:`suppress` in a fixed number of steps of fixed shapes.

    Whether a box is kept follows from those before it that overlap it. Starting from "all are kept", every step settles one more link of
    such chains, and chains are short.

    Returns:
        What :func:`suppress` returns, and (N,) bool: whether that is so. False where a chain is longer than the steps, or the first
        candidates hold fewer than ``most`` survivors and there are more candidates.
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
    # The r-th survivor goes to column r; everything else to a column that is cut off.
    column = torch.where(is_kept, is_kept.cumsum(dim=1) - 1, most).clamp(max=most)
    places = torch.full((len(boxes), most + 1), -1, dtype=torch.int64, device=boxes.device)
    places.scatter_(1, column, torch.arange(looked_at, device=boxes.device).expand_as(column))
    return places[:, :most], is_complete


def _fixed_point(boxes: Tensor, labels: Tensor, is_real: Tensor, iou: float) -> tuple[Tensor, Tensor]:
    """(n, M) bool: what is kept; (n,) bool: whether another step would change nothing."""
    apart = boxes.double()
    areas = (apart[..., 2] - apart[..., 0]) * (apart[..., 3] - apart[..., 1])
    upper_left = torch.maximum(apart[:, :, None, :2], apart[:, None, :, :2])
    lower_right = torch.minimum(apart[:, :, None, 2:], apart[:, None, :, 2:])
    common = (lower_right - upper_left).clamp(min=0).prod(dim=3)
    overlaps = common / (areas[:, :, None] + areas[:, None, :] - common) > iou  # NaN, of two empty boxes, does not overlap
    overlaps &= (labels[:, :, None] == labels[:, None, :]) & is_real[:, :, None]
    suppresses = overlaps.triu(diagonal=1).to(torch.float16 if boxes.is_cuda else torch.float32)
    is_kept, before = is_real, is_real
    for _ in range(_STEPS):
        before = is_kept
        is_kept = is_real & (torch.bmm(is_kept[:, None].to(suppresses.dtype), suppresses)[:, 0] == 0)
    return is_kept, (is_kept == before).all(dim=1)
