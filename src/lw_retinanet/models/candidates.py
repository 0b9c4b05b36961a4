"""Which (anchor, class) pairs go on to decoding and NMS: the best of each level that pass the threshold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lw_retinanet.conventions import OutputRule

_RUN = 18  # anchors: those of two cells, as a rule
_MANY = 20  # times the candidates of a level: more anchors above the threshold are cut down before their classes are looked at


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """S pairs an image, the best first. N images.

    Args:
        scores: (N, S) float32; 0 in padding.
        labels: (N, S) int64.
        anchors: (N, S) int64, numbered over all levels.
        is_real: (N, S) bool; false in padding.
    """

    scores: Tensor
    labels: Tensor
    anchors: Tensor
    is_real: Tensor


def best_candidates(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """The ``rule.candidates_per_level`` best pairs of each level of which the score is greater than the threshold.

    Exact, ties included: pairs of a level rank by logit, then by anchor, then by class; candidates of an image by score, then by anchor,
    then by class. A NaN is no candidate, and takes no other one's place.

    Every one of the best k pairs lies in one of the k anchors with the best maxima. So one pass over all logits finds the maxima, and only
    what those leave is looked at again. On a CPU S is the largest number of candidates that an image has; elsewhere it is a constant of
    the shapes, and nothing waits for the device.

    Args:
        logits: (N, A, K), of any floating type.
        anchors_per_level: adds up to A.
        rule: of the weights.
    """
    return (_passing if logits.device.type == "cpu" else _fixed)(logits, anchors_per_level, rule)


def _passing(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """What passes the threshold first, which on trained weights is little; then the best of that."""
    num_images, num_anchors, num_classes = logits.shape
    number, levels = rule.candidates_per_level, _levels(anchors_per_level, rule)
    thresholds = torch.tensor([threshold for _, _, threshold in levels])
    floors = torch.tensor([_logit_below(threshold) for _, _, threshold in levels]).repeat(num_images, 1)
    ends = torch.tensor([stop for _, stop, _ in levels])
    rows = logits.reshape(-1, num_classes)  # an image's anchors, then the next one's

    def image_and_level(places: Tensor) -> tuple[Tensor, Tensor]:
        image = places // num_anchors
        return image, torch.bucketize(places - image * num_anchors, ends, right=True)

    places = _near_something(rows, num_images, levels, floors[0])
    values = rows.index_select(0, places)
    # NaN stays: other classes may be sound.
    kept = (~(values.amax(dim=1).float() < floors[image_and_level(places)])).nonzero().flatten()
    if len(kept) > _MANY * number * num_images:
        best = rows.amax(dim=1).float().view(num_images, -1)
        for column, (start, stop, _) in enumerate(levels):
            if stop - start > number:
                maxima = best[:, start:stop].nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
                floors[:, column] = torch.maximum(floors[:, column], maxima.topk(number, dim=1).values[:, -1])
        per_anchor = floors.repeat_interleave(torch.tensor(anchors_per_level), dim=1)
        places = (~(best < per_anchor)).flatten().nonzero().flatten()
        values = rows.index_select(0, places)
    else:
        places, values = places.index_select(0, kept), values.index_select(0, kept)
    image, level = image_and_level(places)
    values = values.float()
    cells = (values >= floors[image, level][:, None]).flatten().nonzero().flatten()
    pair = cells // num_classes
    values, image, level = values.flatten()[cells], image[pair], level[pair]
    flat = (places[pair] - image * num_anchors - pair) * num_classes + cells
    scores = _scores(values)
    chosen = scores > thresholds[level]
    counts = torch.bincount(image * len(levels) + level, minlength=num_images * len(levels)).tolist()
    end = 0
    for count in counts:  # pairs of one level of one image follow one another
        begin, end = end, end + count
        if count > number:
            among = torch.zeros(count, dtype=torch.bool)
            among[_keys(values[begin:end], flat[begin:end]).topk(number).indices] = True
            chosen[begin:end] &= among
    image, scores, flat = image[chosen], scores[chosen], flat[chosen]
    order = _keys(scores, flat).sort(descending=True).indices
    per_image = [order[image[order] == i] for i in range(num_images)] if num_images > 1 else [order]
    padded = torch.nn.utils.rnn.pad_sequence(per_image, batch_first=True, padding_value=-1)
    is_real = padded >= 0
    if not len(flat):
        flat, scores = flat.new_zeros(1), scores.new_zeros(1)
    flat = flat[padded] * is_real
    return Candidates(scores=scores[padded] * is_real, labels=flat % num_classes, anchors=flat // num_classes, is_real=is_real)


def _near_something(rows: Tensor, num_images: int, levels: Sequence[tuple[int, int, float]], floors: Tensor) -> Tensor:
    """Rows in whose neighbourhood a logit reaches its floor: maxima of whole runs of rows cost half of what maxima of rows cost."""
    num_anchors = levels[-1][1]
    whole = len(rows) // _RUN * _RUN
    runs = ~(rows[:whole].view(-1, _RUN * rows.shape[1]).amax(dim=1).float() < float(floors[0]))
    if floors[-1] < floors[0]:  # of the last level, which is small, all
        for image in range(num_images):
            runs[(image * num_anchors + levels[-1][0]) // _RUN : (image + 1) * num_anchors // _RUN + 1] = True
    near = (runs.nonzero() * _RUN + torch.arange(_RUN)).flatten()
    return torch.cat([near, torch.arange(whole, len(rows))])


def _fixed(logits: Tensor, anchors_per_level: Sequence[int], rule: OutputRule) -> Candidates:
    """The same with shapes that do not depend on values: all the best, and a mask for those that pass."""
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
        columns.append((scores, flat.gather(1, best), scores > _single(threshold)))
    scores, flat, is_real = (torch.cat(column, dim=1) for column in zip(*columns, strict=True))
    scores = scores * is_real
    order = _keys(scores, flat).sort(dim=1, descending=True).indices
    scores, flat, is_real = scores.gather(1, order), flat.gather(1, order), is_real.gather(1, order)
    return Candidates(scores=scores, labels=flat % num_classes, anchors=flat // num_classes, is_real=is_real)


def _levels(anchors_per_level: Sequence[int], rule: OutputRule) -> list[tuple[int, int, float]]:
    """First anchor, end and score threshold of each level."""
    levels, start = [], 0
    for number in anchors_per_level:
        levels.append((start, start + number, rule.score_threshold))
        start += number
    if rule.last_level_score_threshold is not None:
        levels[-1] = (*levels[-1][:2], rule.last_level_score_threshold)
    return levels


def _scores(logits: Tensor) -> Tensor:
    """The sigmoid as float32, by way of float64: in single precision equal logits may give unequal scores, by their place in a vector."""
    return logits.double().sigmoid().float()


def _single(threshold: float) -> float:
    """What scores, which are float32, are compared with."""
    return float(torch.tensor(threshold, dtype=torch.float32))


def _logit_below(score: float) -> float:
    """A logit of which the score surely is not above ``score``, whatever the rounding."""
    safe = score * (1 - 1e-6) - 1e-7
    return math.log(safe / (1 - safe)) if safe > 0 else -math.inf


def _keys(values: Tensor, places: Tensor) -> Tensor:
    """int64 that fall as ``values`` (float32, no NaN) fall and, where these are equal, as ``places`` (below 2^32) rise."""
    bits = (values + 0.0).view(torch.int32)  # -0 and 0 are equal
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.long() << 32) | (0xFFFFFFFF - places)
