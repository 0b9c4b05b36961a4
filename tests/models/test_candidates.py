import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lw_retinanet.conventions import OutputRule
from lw_retinanet.models import candidates
from lw_retinanet.models.candidates import Candidates, _fixed, _keys, _passing, best_candidates

Chooser = Callable[[Tensor, Sequence[int], OutputRule], Candidates]
LEVELS = (7, 3, 2)
BOTH = pytest.mark.parametrize("choose", [_passing, _fixed])


def literal(logits: Tensor, rule: OutputRule) -> list[tuple[float, int, int]]:
    """(score, anchor, class) of one image: all scores, all pairs of a level sorted, the best of those above the threshold."""
    found, start = [], 0
    for level, count in enumerate(LEVELS):
        is_last = level == len(LEVELS) - 1 and rule.last_level_score_threshold is not None
        threshold = torch.tensor(rule.last_level_score_threshold if is_last else rule.score_threshold)
        pairs = [(float(logits[a, k]), a, k) for a in range(start, start + count) for k in range(logits.shape[1])]
        pairs = [(value, a, k) for value, a, k in pairs if torch.tensor(value).double().sigmoid().float() > threshold]
        found += sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))[: rule.candidates_per_level]
        start += count
    scored = [(float(torch.tensor(value).double().sigmoid().float()), a, k) for value, a, k in found]
    return sorted(scored, key=lambda pair: (-pair[0], pair[1:]))


def listed(found: Candidates, image: int) -> list[tuple[float, int, int]]:
    columns = (found.scores, found.anchors, found.labels)
    rows = zip(*(column[image][found.is_real[image]].tolist() for column in columns), strict=True)
    return [(score, anchor, label) for score, anchor, label in rows]


@pytest.mark.parametrize(("choose", "run"), [(_passing, 210), (_passing, 1), (_fixed, 1)])
def test_equal_to_sorting_everything(choose: Chooser, run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 210: a level is one run. 1: every anchor is one, so that a level has more of them than candidates are asked for.
    monkeypatch.setattr(candidates, "_RUN", run)
    random = torch.Generator().manual_seed(0)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 200.0, 40.0])
    for case in range(120):
        logits = torch.randn(3, sum(LEVELS), 4, generator=random) * 3 - 1
        if case % 2:
            logits = (2 * logits).round() / 2  # ties
        if case % 3 == 0:
            which = torch.rand(logits.shape, generator=random) < 0.3
            logits[which] = special[torch.randint(len(special), (int(which.sum()),), generator=random)]
        if case % 5 == 0:
            logits[1] = -30.0  # an image without candidates
        rule = OutputRule(
            score_threshold=(0.0, 0.05, 0.5, 0.9)[case % 4],
            last_level_score_threshold=(None, 0.0, 0.3)[case % 3],
            candidates_per_level=(1, 2, 5, 100)[(case // 4) % 4],
        )
        found = choose(logits, LEVELS, rule)
        for image in range(3):
            assert listed(found, image) == literal(logits[image], rule)


@BOTH
def test_padding_stands_behind_and_is_empty(choose: Chooser) -> None:
    logits = torch.full((2, sum(LEVELS), 2), -30.0)
    logits[0, 8, 1] = 3.0
    found = choose(logits, LEVELS, OutputRule())
    assert found.is_real.sum(dim=1).tolist() == [1, 0]
    assert found.is_real[0, 0]
    assert (found.scores[~found.is_real] == 0).all()
    assert (int(found.anchors[0, 0]), int(found.labels[0, 0])) == (8, 1)


@BOTH
def test_a_score_at_the_threshold_does_not_pass(choose: Chooser) -> None:
    # The score just above, at and just below the float32 nearest to each threshold: only the first passes.
    for threshold in (0.05, 0.3, 0.5, 0.999):
        limit = torch.tensor(threshold)
        around = torch.stack([torch.nextafter(limit, torch.tensor(1.0)), limit, torch.nextafter(limit, torch.tensor(0.0))])
        logits = torch.full((1, sum(LEVELS), 1), -30.0)
        logits[0, :3, 0] = torch.logit(around.double()).float()
        scores = logits[0, :3, 0].double().sigmoid().float()
        found = choose(logits, LEVELS, OutputRule(score_threshold=threshold))
        assert int(found.is_real.sum()) == int((scores > limit).sum())


def test_without_any_candidate_there_is_still_a_shape() -> None:
    found = best_candidates(torch.full((2, sum(LEVELS), 3), -30.0), LEVELS, OutputRule())
    assert len(found.scores) == 2
    assert not found.is_real.any()


@BOTH
def test_half_precision_chooses_as_its_values_in_single(choose: Chooser) -> None:
    logits = (torch.randn(2, sum(LEVELS), 4, generator=torch.Generator().manual_seed(1)) * 2).bfloat16()
    rule = OutputRule(candidates_per_level=4)
    half, single = choose(logits, LEVELS, rule), choose(logits.float(), LEVELS, rule)
    assert half.scores.dtype == torch.float32
    for image in range(2):
        assert listed(half, image) == listed(single, image)


def test_more_runs_than_candidates_in_half_precision_and_with_nan() -> None:
    # 1,000 anchors of which nearly all pass, in few distinct values: the limit is one of many equal logits.
    logits = (torch.randn(2, 1012, 3, generator=torch.Generator().manual_seed(2)) * 2).round().bfloat16()
    logits[:, ::50, 1] = math.nan
    rule = OutputRule(candidates_per_level=37)
    passing, fixed = (choose(logits, (1000, 7, 5), rule) for choose in (_passing, _fixed))
    for image in range(2):
        assert len(listed(passing, image)) >= 37
        assert listed(passing, image) == listed(fixed, image)


def test_keys_fall_with_values_and_rise_with_places() -> None:
    values = torch.tensor([math.inf, 3.5, 1e-40, 0.0, -0.0, -1e-40, -2.0, -math.inf])
    keys = _keys(values, torch.arange(len(values)))
    assert keys.argsort(descending=True).tolist() == list(range(len(values)))
    # Of equal values the first place wins, zeros of either sign included.
    same = _keys(torch.tensor([-0.0, 0.0, 0.0]), torch.tensor([5, 4, 2**32 - 1]))
    assert same.argsort(descending=True).tolist() == [1, 0, 2]
