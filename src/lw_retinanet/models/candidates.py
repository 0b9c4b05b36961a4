"""Candidates for decoding and NMS: the best (anchor, class) pairs of each level whose score passes the threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lw_retinanet.conventions import OutputRule
from lw_retinanet.devices import has_triton

_RUN = 9  # usual number of anchors in a cell


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """S pairs for each of N images, the best first.

    Args:
        scores: (N, S) float32; 0 in padding.
        labels: (N, S) int64 classes.
        anchors: (N, S) int64 numbers of anchors, counted over all levels.
        is_real: (N, S) bool; false in padding.
    """

    scores: Tensor
    labels: Tensor
    anchors: Tensor
    is_real: Tensor


def best_candidates(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """The ``rule.candidates_per_level`` best pairs of each level whose score is greater than the threshold.

    The result is exact, also for equal scores: pairs of a level are ranked by logit, then anchor, then class; candidates of an image by
    score, then anchor, then class. NaN is never a candidate and replaces none.

    Each of the best k pairs belongs to one of the k anchors with the largest maxima over classes. Therefore one pass over all logits
    computes the maxima, and only the pairs of these anchors are compared. On a CPU, S is the largest number of candidates of an image; on
    other devices it depends on shapes alone, so that the host does not wait for the device.

    Args:
        logits: (N, A, K) of any floating type.
        anchors_per_level: Numbers of anchors, with the sum A.
        rule: Threshold and number of candidates.
    """
    if has_triton(logits.device.type):
        return _by_kernels(logits, anchors_per_level, rule)
    return (_passing if logits.device.type == "cpu" else _fixed)(logits, anchors_per_level, rule)


def _passing(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """For a CPU: first the pairs that pass the threshold, which are few with trained weights; then the best of them.

    After the pass over all logits NumPy does the rest. It compares and sorts several times as fast as PyTorch, and without threads.
    """
    levels = _levels(anchors_per_level, rule)
    found = [_of_image(image, levels, rule.candidates_per_level) for image in logits.detach()]
    if len(found) == 1:  # no padding, which would take 0.1 ms
        scores, anchors, labels = (column[None] for column in found[0])
        return Candidates(scores=scores, labels=labels, anchors=anchors, is_real=torch.ones_like(scores, dtype=torch.bool))
    scores, anchors, labels = (pad_sequence(list(column), batch_first=True) for column in zip(*found, strict=True))
    counts = torch.tensor([len(columns[0]) for columns in found])
    return Candidates(scores=scores, labels=labels, anchors=anchors, is_real=torch.arange(scores.shape[1]) < counts[:, None])


def _of_image(logits: Tensor, levels: Sequence[tuple[int, int, float]], number: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, anchors and classes, each (S,) and the best first, of one image's logits (A, K)."""
    # Maxima over runs of several anchors take half as long as maxima over single anchors.
    length = math.gcd(_RUN, *(start for start, _, _ in levels), len(logits))
    runs = logits.reshape(-1, length * logits.shape[1])
    maxima = runs.amax(dim=1).float().numpy()
    parts = [(maxima[start // length : stop // length], threshold) for start, stop, threshold in levels]
    near, floors = zip(*(_near(part, threshold, number) for part, threshold in parts), strict=True)
    near = tuple(places + start // length for places, (start, _, _) in zip(near, levels, strict=True))
    values = runs.index_select(0, torch.from_numpy(np.concatenate(near))).float().numpy()
    ends = [0, *accumulate(map(len, near))]
    found = [_best_of_runs(values[ends[level] : ends[level + 1]], near[level], floors[level], number) for level in range(len(levels))]
    pairs = np.concatenate([pairs for _, pairs in found])
    scores = _scores(torch.from_numpy(np.concatenate([values for values, _ in found]))).numpy()
    thresholds = np.array([threshold for _, _, threshold in levels], dtype=np.float32)
    passed = scores > thresholds.repeat([len(values) for values, _ in found])
    scores, pairs = scores[passed], pairs[passed]
    # The bits of non-negative floats are ordered as the floats. Among equal scores the lower pair is first. Pairs are below 2^32.
    order = np.argsort(pairs - (scores.view(np.int32).astype(np.int64) << 32))
    anchors, labels = np.divmod(pairs[order], logits.shape[1])
    return torch.from_numpy(scores[order]), torch.from_numpy(anchors), torch.from_numpy(labels)


def _near(maxima: NDArray[np.float32], threshold: float, number: int) -> tuple[NDArray[np.int64], np.float32]:
    """Runs of one level that may contain one of its best pairs, and the smallest logit that such a pair can have."""
    floor = np.float32(_logit_below(threshold))
    near = np.flatnonzero(~(maxima < floor))  # a run with NaN stays, since its other values may be good
    if len(near) > number:
        # ``number`` runs have a maximum of at least this value, so the best pairs have, too.
        floor = max(floor, _nth_largest(np.nan_to_num(maxima[near], nan=-np.inf, posinf=np.inf, neginf=-np.inf), number))
        near = near[~(maxima[near] < floor)]
    return near, floor


def _best_of_runs(
    values: NDArray[np.float32], runs: NDArray[np.int64], floor: np.float32, number: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits and ``anchor * K + class`` of the best pairs in these runs of one level, in any order.

    Pairs that do not pass the threshold can be among them.
    """
    length = values.shape[1]
    values = values.reshape(-1)
    cells = np.flatnonzero(values >= floor)
    values, run = values[cells], cells // length
    pairs = cells + (runs[run] - run) * length
    if len(values) > number:
        limit = _nth_largest(values, number)
        above, equal = np.flatnonzero(values > limit), np.flatnonzero(values == limit)  # of equal ones the first stay
        best = np.concatenate([above, equal[: number - len(above)]])
        values, pairs = values[best], pairs[best]
    return values, pairs


def _nth_largest(values: NDArray[np.float32], number: int) -> np.float32:
    return np.partition(values, -number)[-number]


def _by_kernels(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """For a CUDA device: :func:`_fixed` by three kernels, which look closer only at levels where too many pairs pass the threshold."""
    from lw_retinanet.models import kernels

    levels, num_classes = _levels(anchors_per_level, rule), logits.shape[2]
    number = min(rule.candidates_per_level, max(anchors_per_level) * num_classes)
    values, pairs = kernels.select(logits.contiguous(), *starts_and_floors(tuple(anchors_per_level), rule, logits.device), number)
    scores = _scores(values)
    passed = torch.cat([part > threshold for part, (_, _, threshold) in zip(scores.split(number, dim=1), levels, strict=True)], dim=1)
    scores, pairs = kernels.sort_by_score(scores * passed, pairs)
    return Candidates(scores=scores, labels=pairs % num_classes, anchors=pairs // num_classes, is_real=scores > 0)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def starts_and_floors(anchors_per_level: tuple[int, ...], rule: OutputRule, device: torch.device) -> tuple[Tensor, Tensor]:
    """First anchors of the levels (L + 1,) int32, ending with the number of all, and logits (L,) that a candidate reaches for certain."""
    starts = torch.tensor([0, *accumulate(anchors_per_level)], dtype=torch.int32)
    floors = torch.tensor([_logit_below(threshold) for _, _, threshold in _levels(anchors_per_level, rule)])
    return starts.to(device), floors.to(device)


def _fixed(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """For other devices than these: the best pairs with shapes that do not depend on values, and a mask of those that pass."""
    num_classes = logits.shape[2]
    logits = logits.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    maxima = logits.amax(dim=2).float()
    everyone = torch.arange(maxima.shape[1], device=logits.device)
    classes = torch.arange(num_classes, device=logits.device)
    columns = []
    for start, stop, threshold in _levels(anchors_per_level, rule):
        number = min(rule.candidates_per_level, stop - start)
        anchors = start + _keys(maxima[:, start:stop], everyone[: stop - start]).topk(number, dim=1).indices
        pairs = logits.gather(1, anchors[..., None].expand(-1, -1, num_classes)).float().flatten(1)
        flat = (anchors[..., None] * num_classes + classes).flatten(1)
        best = _keys(pairs, flat).topk(min(rule.candidates_per_level, pairs.shape[1]), dim=1).indices
        scores = _scores(pairs.gather(1, best))
        columns.append((scores, flat.gather(1, best), scores > threshold))
    scores, flat, is_real = (torch.cat(column, dim=1) for column in zip(*columns, strict=True))
    scores = scores * is_real
    order = _keys(scores, flat).sort(dim=1, descending=True).indices
    scores, flat, is_real = scores.gather(1, order), flat.gather(1, order), is_real.gather(1, order)
    return Candidates(scores=scores, labels=flat % num_classes, anchors=flat // num_classes, is_real=is_real)


def _levels(anchors_per_level: Sequence[int], rule: OutputRule) -> list[tuple[int, int, float]]:
    """First anchor, end and score threshold of each level. Thresholds are in single precision, as scores are."""
    levels, start = [], 0
    for number in anchors_per_level:
        levels.append((start, start + number, _single(rule.score_threshold)))
        start += number
    if rule.last_level_score_threshold is not None:
        levels[-1] = (*levels[-1][:2], _single(rule.last_level_score_threshold))
    return levels


def _scores(logits: Tensor) -> Tensor:
    """The sigmoid, computed in float64. In float32 equal logits can give unequal scores, depending on their place in a vector."""
    return logits.double().sigmoid().float()


def _single(threshold: float) -> float:
    return float(np.float32(threshold))


def _logit_below(score: float) -> float:
    """A logit whose score is certainly at most ``score``, whatever the rounding."""
    safe = score * (1 - 1e-6) - 1e-7
    return math.log(safe / (1 - safe)) if safe > 0 else -math.inf


def _keys(values: Tensor, places: Tensor) -> Tensor:
    """int64 keys: larger for larger ``values`` (float32, no NaN); for equal values, larger for smaller ``places`` (below 2^32)."""
    bits = (values + 0.0).view(torch.int32)  # -0 and 0 are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - places)
