"""The Triton kernels, on a GPU if there is one and else in Triton's interpreter, against sorting and comparing everything."""

import math

import pytest
import torch

from lw_retinanet.conventions import OutputRule
from lw_retinanet.models import suppression
from lw_retinanet.models.candidates import Candidates, _by_kernels, _fixed

kernels = pytest.importorskip("lw_retinanet.models.kernels", reason="needs Triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LEVELS = (14, 5, 2)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small inputs take several rounds of every loop."""
    monkeypatch.setattr(kernels, "_BLOCK", 16)
    monkeypatch.setattr(kernels, "_WARPS", 4)
    monkeypatch.setattr(kernels, "_CAPACITY", 16)
    monkeypatch.setattr(kernels, "_EACH", 8)


def real(found: Candidates) -> list[list[tuple[float, int, int]]]:
    columns = [column.cpu() for column in (found.scores, found.anchors, found.labels)]
    is_real = found.is_real.cpu()
    return [list(zip(*(column[image][is_real[image]].tolist() for column in columns), strict=True)) for image in range(len(is_real))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_candidates_are_those_of_sorting_everything(dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    special = torch.tensor([math.nan, math.inf, -math.inf, 0.0, -0.0, 200.0])
    for case in range(3):
        logits = torch.randn(2, sum(LEVELS), (2, 1, 2)[case], generator=random) * 2
        if case % 2:
            logits = logits.round()  # ties
        if case % 3 == 0:
            which = torch.rand(logits.shape, generator=random) < 0.2
            logits[which] = special[torch.randint(len(special), (int(which.sum()),), generator=random)]
        if case == 2:
            logits[1] = -30.0  # an image without candidates
        rule = OutputRule(
            score_threshold=(0.0, 0.05, 0.5)[case % 3],
            last_level_score_threshold=(None, 0.3)[case % 2],
            candidates_per_level=(4, 1, 100)[case],
        )
        logits = logits.to(dtype)
        found = _by_kernels(logits.to(DEVICE), LEVELS, rule)
        assert real(found) == real(_fixed(logits, LEVELS, rule))
        assert (found.scores[~found.is_real] == 0).all()


@pytest.mark.parametrize("most", [1, 3, 100])
def test_nms_is_that_of_the_host(most: int) -> None:
    random = torch.Generator().manual_seed(most)
    corners = torch.rand(2, 20, 2, generator=random) * 40
    boxes = torch.cat([corners, corners + torch.rand(2, 20, 2, generator=random) * 40], dim=2).round()  # empty and equal boxes, too
    labels = torch.randint(2, (2, 20), generator=random)
    is_real = torch.rand(2, 20, generator=random) < 0.8
    for iou in (0.3, 1.0):
        expected = suppression.suppress(boxes, labels, is_real, iou=iou, most=most)
        found = kernels.suppress(boxes.to(DEVICE), labels.to(DEVICE), is_real.to(DEVICE), iou=iou, most=most)
        assert found.tolist() == expected.tolist()


def test_a_limit_on_overlap_is_not_rounded() -> None:
    # The overlap is 6 of 10 boxes' areas, which is not more than 0.6, but more than 0.6 in float32 where that rounds down.
    boxes = torch.tensor([[[0.0, 0, 10, 1], [0.0, 0, 6, 1]]], device=DEVICE)
    labels, is_real = torch.zeros(1, 2, dtype=torch.int64, device=DEVICE), torch.ones(1, 2, dtype=torch.bool, device=DEVICE)
    for iou, kept in ((0.6, [[0, 1]]), (0.5999999, [[0, -1]])):
        assert kernels.suppress(boxes, labels, is_real, iou=iou, most=2).tolist() == kept


def test_scores_are_sorted_and_equal_ones_keep_their_order() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.0, 0.5, 0.0]]).repeat(1, 10).to(DEVICE)
    places = torch.arange(50, device=DEVICE)[None]
    expected = scores.sort(dim=1, descending=True, stable=True)
    found = kernels.sort_by_score(scores, places)
    assert [tensor.tolist() for tensor in found] == [expected.values.tolist(), expected.indices.tolist()]
