"""Adaptive training sample selection (ATSS): each object sets the overlap that an anchor must reach to be positive."""

import torch
from torch import Tensor

from lw_retinanet.models.anchors import feature_sizes
from lw_retinanet.structures import Targets
from lw_retinanet.training.matching import BACKGROUND, IGNORED, AnchorMatches, in_region, paired_iou

CANDIDATES = 9  # cells a level; the paper's k, for which 7 to 17 make no difference
INSIDE = 0.01  # least distance in pixels of a positive anchor's centre from the sides of its object, as in the authors' code


def match_adaptively(anchors: Tensor, targets: Targets, *, size_hw: tuple[int, int], num_anchors: int) -> AnchorMatches:
    """Assign objects to anchors by the statistics of their overlaps.

    The candidates of an object are, on each level, the anchors of the nine cells nearest to its centre, or of all cells where a level has
    fewer. Cells at equal distance are taken in the order of the anchors. A candidate is positive if its IoU is at least the mean plus the
    (unbiased) standard deviation of the IoUs of all candidates, and if its centre lies inside the object. An anchor that several objects
    claim goes to the one with the highest IoU, then to the first in ``targets``. Every other anchor is background, or ignored if half of
    it lies in an ignored region. An object that contains no cell's centre gets no anchor.

    Args:
        anchors: (A, 4) xyxy of all levels; the anchors of one cell share one centre.
        targets: Padded objects; rows with label -1 match nothing.
        size_hw: Padded size that the anchors are for.
        num_anchors: Anchors a cell. Several are candidates together, as in the authors' code.

    Source: Zhang et al. 2020, Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive Training Sample Selection,
    algorithm 1. Only the ignored regions need a tensor as large as anchors times objects.
    """
    boxes, labels = targets.boxes, targets.labels
    candidates = _candidates(anchors, (boxes[..., :2] + boxes[..., 2:]) / 2, size_hw, num_anchors)
    of_candidates = anchors[candidates]
    overlaps = paired_iou(of_candidates, boxes[:, :, None])
    threshold = overlaps.mean(dim=2, keepdim=True) + overlaps.std(dim=2, keepdim=True)
    centres = (of_candidates[..., :2] + of_candidates[..., 2:]) / 2
    to_sides = torch.cat([centres - boxes[:, :, None, :2], boxes[:, :, None, 2:] - centres], dim=-1)
    is_object = (labels >= 0) & ~targets.is_ignored
    is_claim = (overlaps >= threshold) & (to_sides.amin(dim=-1) > INSIDE) & is_object[..., None]

    owners = _owners(candidates, torch.where(is_claim, overlaps, -1.0), num_objects=labels.shape[1], total=len(anchors))
    is_positive = owners >= 0
    rows = owners.clamp(min=0)
    is_region = (labels >= 0) & targets.is_ignored
    # One image at a time bounds the memory by A x M. The number of rounds is a shape, not a value, so the device is not waited for.
    is_excused = torch.stack([in_region(anchors, one, is_region=is_one) for one, is_one in zip(boxes, is_region, strict=True)])
    return AnchorMatches(
        torch.where(is_positive, labels.gather(1, rows), torch.where(is_excused, IGNORED, BACKGROUND)),
        torch.where(is_positive[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), anchors),
    )


def _candidates(anchors: Tensor, centres: Tensor, size_hw: tuple[int, int], num_anchors: int) -> Tensor:
    """(N, M, C) numbers of the anchors in the cells nearest to the (N, M, 2) centres, for every level."""
    of_cell = torch.arange(num_anchors, device=anchors.device)
    numbers, first = [], 0
    for height, width in feature_sizes(size_hw):
        end = first + height * width * num_anchors
        level = anchors[first:end].view(height, width, num_anchors, 4)
        columns = (level[0, :, 0, 0] + level[0, :, 0, 2]) / 2
        rows = (level[:, 0, 0, 1] + level[:, 0, 0, 3]) / 2
        cells = _nearest_cells(centres, columns, rows)
        numbers.append((first + cells[..., None] * num_anchors + of_cell).flatten(2))
        first = end
    assert first == len(anchors)
    return torch.cat(numbers, dim=2)


def _nearest_cells(centres: Tensor, columns: Tensor, rows: Tensor) -> Tensor:
    """(N, M, at most ``CANDIDATES``) numbers of the cells nearest to the centres, the nearest first.

    They all lie where the nine nearest columns cross the nine nearest rows, since a cell in any other column has nine nearer cells in its
    own row. So the distances to all cells need not be sorted, and cells at equal distance have the same order on every device.

    Args:
        centres: (N, M, 2) x and y.
        columns: (W,) x of the cells.
        rows: (H,) y of the cells.
    """
    near_columns, across = _nearest(centres[..., 0], columns)
    near_rows, down = _nearest(centres[..., 1], rows)
    cells = (near_rows[..., :, None] * len(columns) + near_columns[..., None, :]).flatten(2)
    distances = (down[..., :, None] + across[..., None, :]).flatten(2)
    return cells.gather(2, distances.argsort(dim=2, stable=True)[..., :CANDIDATES])


def _nearest(values: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The places nearest to each value: their numbers in rising order, and their squared distances."""
    squares = (places - values[..., None]) ** 2
    numbers = squares.argsort(dim=-1, stable=True)[..., :CANDIDATES].sort(dim=-1).values
    return numbers, squares.gather(-1, numbers)


def _owners(candidates: Tensor, claims: Tensor, *, num_objects: int, total: int) -> Tensor:
    """(N, total) number of the object with the highest claim on each anchor, the first of equals; -1 without a claim.

    Args:
        candidates: (N, M, C) numbers of anchors.
        claims: (N, M, C) strength of each object's claim on each of its candidates; below 0 is no claim.
        num_objects: M.
        total: Number of anchors.
    """
    count = len(candidates)
    anchors, claims = candidates.flatten(1), claims.flatten(1)
    best = claims.new_full((count, total), -1.0).scatter_reduce(1, anchors, claims, "amax")
    objects = torch.arange(num_objects, device=anchors.device)[:, None].expand(-1, candidates.shape[2]).flatten()
    wins = (claims >= 0) & (claims == best.gather(1, anchors))
    first = anchors.new_full((count, total), num_objects).scatter_reduce(1, anchors, torch.where(wins, objects, num_objects), "amin")
    return torch.where(first < num_objects, first, -1)
