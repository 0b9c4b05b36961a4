import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from lw_retinanet.boxes import decode, encode
from lw_retinanet.training.losses import ALPHA, BoxLoss, box_loss, box_qualities, focal_loss, quality_focal_loss
from lw_retinanet.training.matching import BACKGROUND, IGNORED, AnchorMatches

ANCHORS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [10.0, 0.0, 20.0, 20.0], [5.0, 5.0, 25.0, 15.0]])


def test_coin_tosses() -> None:
    # p = 0.5. Positive: 0.25 * (1 - p)^2 * ln 2 = 0.0625 ln 2. Negative: 0.75 * p^2 * ln 2 = 0.1875 ln 2.
    logits = torch.zeros(1, 3, 2)
    loss = focal_loss(logits, torch.tensor([[1, BACKGROUND, IGNORED]]))
    torch.testing.assert_close(loss, torch.tensor([(0.0625 + 0.1875 + 2 * 0.1875) * math.log(2)]))


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    return F.one_hot(labels.clamp(min=0), num_classes).double() * (labels >= 0)[..., None]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 1.5), (0.7, 0.0)])
def test_equal_to_torchvision_on_one_hot_targets(alpha: float, gamma: float) -> None:
    random = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 40, 5, generator=random, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.randint(IGNORED, 5, (3, 40), generator=random)
    assert {IGNORED, BACKGROUND, 0, 4} <= set(labels.flatten().tolist())
    pairs = sigmoid_focal_loss(logits, one_hot(labels, 5), alpha=alpha, gamma=gamma)
    expected = (pairs * (labels != IGNORED)[..., None]).sum(dim=(1, 2))
    loss = focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value.sum(), logits, retain_graph=True)[0] for value in (loss, expected)]
    torch.testing.assert_close(*grads)


def test_without_focus_it_is_weighted_cross_entropy() -> None:
    logits = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(20)[None] % 4 - 1
    targets = one_hot(labels, 3)
    weights = targets * ALPHA + (1 - targets) * (1 - ALPHA)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weights, reduction="sum")
    torch.testing.assert_close(focal_loss(logits, labels, gamma=0.0), expected[None])


def test_gradient_of_the_focal_loss() -> None:
    logits = torch.linspace(-6, 6, 24, dtype=torch.float64).reshape(2, 4, 3).requires_grad_()
    labels = torch.tensor([[0, BACKGROUND, IGNORED, 2], [1, 1, BACKGROUND, IGNORED]])
    assert torch.autograd.gradcheck(lambda values: focal_loss(values, labels), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    values = [-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4]
    logits = torch.tensor([values, values]).reshape(1, 14, 1).to(dtype).requires_grad_()
    labels = torch.tensor([[0] * 7 + [BACKGROUND] * 7])
    loss = focal_loss(logits, labels)
    assert loss.dtype == torch.float32
    reference = sigmoid_focal_loss(logits.detach().double(), one_hot(labels, 1), reduction="sum")
    assert loss.item() == pytest.approx(float(reference), rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # A certain mistake is pushed back with its full weight: 0.25 for a missed object, 0.75 for an invented one.
    assert logits.grad.flatten()[[0, 13]].tolist() == pytest.approx([-0.25, 0.75], rel=1e-2)


def test_ignored_anchors_pull_nowhere() -> None:
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    focal_loss(logits, torch.tensor([[0, IGNORED, BACKGROUND, IGNORED]])).sum().backward()
    assert logits.grad is not None
    assert (logits.grad[0, [1, 3]] == 0).all()
    assert (logits.grad[0, [0, 2]] != 0).all()


def test_quality_focal_loss_of_coin_tosses() -> None:
    # p = 0.5. Quality 0.8: 0.3^2 * ln 2, since the cross entropy of 0.5 is ln 2 with any target. Background: 0.5^2 * ln 2 a pair.
    logits = torch.zeros(1, 3, 2)
    loss = quality_focal_loss(logits, torch.tensor([[1, BACKGROUND, IGNORED]]), torch.tensor([[0.8, 0.9, 0.9]]))
    torch.testing.assert_close(loss, torch.tensor([(0.09 + 3 * 0.25) * math.log(2)]))


def pairs_of(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels and qualities of 2 images, 30 anchors, 4 classes."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 30, 4, generator=random, dtype=torch.float64) * 4
    return logits, torch.randint(IGNORED, 4, (2, 30), generator=random), torch.rand(2, 30, generator=random, dtype=torch.float64)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32), beta=st.floats(1, 4))
def test_perfect_quality_is_twice_the_focal_loss_of_even_weights(seed: int, beta: float) -> None:
    logits, labels, qualities = pairs_of(seed)
    loss = quality_focal_loss(logits, labels, torch.ones_like(qualities), beta=beta)
    torch.testing.assert_close(loss, 2 * focal_loss(logits, labels, alpha=0.5, gamma=beta))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_quality_without_focus_is_cross_entropy_with_soft_targets(seed: int) -> None:
    logits, labels, qualities = pairs_of(seed)
    pairs = F.binary_cross_entropy_with_logits(logits, one_hot(labels, 4) * qualities[..., None], reduction="none")
    expected = (pairs * (labels != IGNORED)[..., None]).sum(dim=(1, 2))
    torch.testing.assert_close(quality_focal_loss(logits, labels, qualities, beta=0.0), expected)


def test_the_score_that_is_the_quality_costs_nothing_and_is_not_pulled() -> None:
    qualities = torch.tensor([[0.1, 0.5, 0.93]], dtype=torch.float64)
    logits = torch.stack([torch.logit(qualities), torch.full_like(qualities, -60.0)], dim=2).requires_grad_()
    loss = quality_focal_loss(logits, torch.zeros(1, 3, dtype=torch.int64), qualities)
    loss.sum().backward()
    assert logits.grad is not None
    assert loss.item() == pytest.approx(0, abs=1e-20)
    assert float(logits.grad.abs().max()) < 1e-12
    for nudge in (-0.5, 0.5):
        moved = logits.detach() + torch.tensor([nudge, 0.0])
        assert float(quality_focal_loss(moved, torch.zeros(1, 3, dtype=torch.int64), qualities)) > 1e-4


def test_gradient_of_the_quality_focal_loss() -> None:
    logits = torch.linspace(-6, 6, 24, dtype=torch.float64).reshape(2, 4, 3).requires_grad_()
    labels = torch.tensor([[0, BACKGROUND, IGNORED, 2], [1, 1, BACKGROUND, IGNORED]])
    qualities = torch.linspace(0, 1, 8, dtype=torch.float64).reshape(2, 4)
    assert torch.autograd.gradcheck(lambda values: quality_focal_loss(values, labels, qualities), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_give_finite_quality_losses_and_gradients(dtype: torch.dtype) -> None:
    values = [-1e4, -100.0, 0.0, 100.0, 1e4]
    logits = torch.tensor(values * 2).reshape(1, 10, 1).to(dtype).requires_grad_()
    labels = torch.tensor([[0] * 5 + [BACKGROUND] * 5])
    loss = quality_focal_loss(logits, labels, torch.full((1, 10), 0.75))
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # Missed: (0.75 - 0)^2 * d/dl (softplus(l) - 0.75 l) = -0.75^3; too sure: 0.25^2 * 0.25; invented: 1.
    assert logits.grad.flatten()[[0, 4, 9]].tolist() == pytest.approx([-(0.75**3), 0.25**3, 1.0], rel=1e-2)


def test_qualities_by_hand() -> None:
    # The first anchor says its own 10 x 10; its object is moved by (2, 0.5): 76 / 124. The second says twice its 10 x 20, centred: half.
    matches = matched([3, 0, IGNORED], [[2.0, 0.5, 12.0, 10.5], *ANCHORS[1:].tolist()])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1, 2] = math.log(2)
    deltas[0, 2] = float("nan")
    deltas.requires_grad_()
    qualities = box_qualities(deltas, ANCHORS, matches)
    torch.testing.assert_close(qualities, torch.tensor([[76 / 124, 0.5, 0.0]]))
    assert not qualities.requires_grad
    apart = matched([0] * 3, [[100.0, 100.0, 110.0, 110.0]] * 3)
    assert box_qualities(torch.zeros(1, 3, 4), ANCHORS, apart).tolist() == [[0.0] * 3]


def matched(labels: list[int], boxes: list[list[float]]) -> AnchorMatches:
    return AnchorMatches(torch.tensor([labels]), torch.tensor([boxes]))


def test_box_losses_by_hand() -> None:
    # Only the first anchor is positive. Wanted: dx = 0.2, dy = 0.05, dw = dh = 0; said: all zero.
    matches = matched([3, BACKGROUND, IGNORED], [[2.0, 0.5, 12.0, 10.5], *ANCHORS[1:].tolist()])
    deltas = torch.zeros(1, 3, 4)
    deltas[0, 1:] = 100.0  # of anchors that answer for nothing
    assert float(box_loss(deltas, ANCHORS, matches, kind="l1")) == pytest.approx(0.25)
    # beta = 0.11: 0.2 is linear, 0.2 - 0.055; 0.05 is square, 0.5 * 0.0025 / 0.11.
    assert float(box_loss(deltas, ANCHORS, matches, kind="smooth_l1")) == pytest.approx(0.145 + 0.00125 / 0.11)
    # 10 x 10 moved by (2, 0.5): intersection 8 x 9.5 = 76, union 124, hull 12 x 10.5 = 126. 1 - (76/124 - 2/126).
    assert float(box_loss(deltas, ANCHORS, matches, kind="giou")) == pytest.approx(1 - (76 / 124 - 2 / 126))


def test_giou_and_its_gradient_equal_torchvisions() -> None:
    random = torch.Generator().manual_seed(4)
    # Apart, overlapping and inside one another; the last anchor answers with its own object.
    corners, sides = torch.rand(500, 2, generator=random) * 30, torch.rand(500, 2, generator=random) * 30 + 1
    boxes = torch.cat([torch.cat([corners, corners + sides], dim=1), ANCHORS[:1]]).double()
    anchors = torch.cat([boxes[:-1].roll(1, dims=0), ANCHORS[:1].double()])
    deltas = (torch.randn(1, 501, 4, generator=random, dtype=torch.float64) * 0.3).requires_grad_()
    with torch.no_grad():
        deltas[0, -1] = 0
    matches = AnchorMatches(torch.zeros(1, 501, dtype=torch.int64), boxes[None])
    loss = box_loss(deltas, anchors, matches, kind="giou")
    expected = generalized_box_iou_loss(decode(deltas, anchors), boxes[None], reduction="sum")[None]
    torch.testing.assert_close(loss, expected)
    grads = [torch.autograd.grad(value, deltas)[0][:, :-1] for value in (loss, expected)]  # a kink at the last one: no gradient is right
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
def test_a_perfect_answer_costs_nothing(kind: str) -> None:
    boxes = torch.tensor([[[1.0, 1.0, 8.0, 12.0], [12.0, 1.0, 18.0, 25.0], [5.0, 5.0, 25.0, 15.0]]])
    matches = AnchorMatches(torch.tensor([[0, 1, 2]]), boxes)
    loss = box_loss(encode(boxes, ANCHORS), ANCHORS, matches, kind=kind)  # type: ignore[arg-type]
    assert float(loss) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["smooth_l1", "giou"])
def test_gradient_of_the_box_losses(kind: str) -> None:
    boxes = torch.tensor([[[1.0, 2.0, 12.0, 9.0], [9.0, 1.0, 22.0, 25.0], [5.0, 5.0, 25.0, 15.0]]], dtype=torch.float64)
    matches = AnchorMatches(torch.tensor([[0, 1, BACKGROUND]]), boxes)
    deltas = (torch.arange(12, dtype=torch.float64).reshape(1, 3, 4) / 20 - 0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda values: box_loss(values, ANCHORS.double(), matches, kind=kind), deltas)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
def test_only_positive_anchors_are_pulled_and_nothing_is_nan(kind: str) -> None:
    matches = matched([IGNORED, 0, BACKGROUND], [ANCHORS[0].tolist(), [12.0, 2.0, 19.0, 15.0], ANCHORS[2].tolist()])
    deltas = torch.full((1, 3, 4), 0.3)
    deltas[0, 0], deltas[0, 2] = float("inf"), 1e30
    deltas.requires_grad_()
    loss = box_loss(deltas, ANCHORS, matches, kind=kind)  # type: ignore[arg-type]
    loss.sum().backward()
    assert deltas.grad is not None
    assert loss.isfinite().all()
    assert (deltas.grad[0, [0, 2]] == 0).all()
    assert deltas.grad[0, 1].count_nonzero() >= 3  # a box inside another feels no pull along one side


def test_no_object_at_all_costs_only_background() -> None:
    matches = matched([BACKGROUND] * 3, ANCHORS.tolist())
    for kind in get_args(BoxLoss):
        assert box_loss(torch.ones(1, 3, 4), ANCHORS, matches, kind=kind).tolist() == [0]
    assert float(focal_loss(torch.zeros(1, 3, 2), matches.labels)) == pytest.approx(6 * 0.1875 * math.log(2))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.0])
def test_the_written_slope_of_negatives_is_the_derivative(gamma: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 30, 4, generator=generator, dtype=torch.float64) * 4).requires_grad_()
    labels = torch.full((2, 30), BACKGROUND)
    (found,) = torch.autograd.grad(focal_loss(logits, labels, gamma=gamma).sum(), logits)
    literal = 0.75 * logits.sigmoid() ** gamma * -torch.log1p(-logits.sigmoid())
    (expected,) = torch.autograd.grad(literal.sum(), logits)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_as_large_as_the_logits_is_kept_for_the_gradient(dtype: torch.dtype) -> None:
    kept: list[Tensor] = []
    logits = torch.randn(2, 50, 8, dtype=dtype, requires_grad=True)
    labels = torch.zeros(2, 50, dtype=torch.int64)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        focal_loss(logits, labels)
    assert not [tensor for tensor in kept if tensor.numel() >= logits.numel() and tensor.data_ptr() != logits.data_ptr()]


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 31, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(-2, 4, (2, 31), generator=generator)
    whole = focal_loss(logits, labels)
    (expected,) = torch.autograd.grad(whole.sum(), logits)
    # 5 rows a part, of which some lie in both images.
    monkeypatch.setattr("lw_retinanet.training.losses._CACHED_PAIRS", 20)
    found = focal_loss(logits, labels)
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    # But for the last bit: rows at the end of a part are computed one by one, and exp has its own rounding there.
    torch.testing.assert_close(found, whole, rtol=1e-14, atol=0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)
