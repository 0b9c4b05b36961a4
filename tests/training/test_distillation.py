import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lw_retinanet.boxes import decode
from lw_retinanet.structures import Predictions
from lw_retinanet.training.distillation import SURE, box_distillation, class_distillation, distance_distillation, distillation

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
SURE_LOGITS = torch.full((1, 1, 1), 10.0)


DIVERGENCE = 0.8 * math.log(8 / 5) + 0.2 * math.log(2 / 5)


def test_a_coin_toss_against_a_teacher_by_hand() -> None:
    # Student 1/2, teacher 4/5: 4/5 ln(8/5) + 1/5 ln(2/5); the sum of scores, 4/5, is less than 1.
    loss = class_distillation(torch.zeros(1, 1, 1), torch.full((1, 1, 1), math.log(4.0)))
    torch.testing.assert_close(loss, torch.tensor(DIVERGENCE))


def test_the_sum_is_divided_by_the_teachers_scores() -> None:
    # Five places of which the teacher says 4/5: the sum of scores is 4.
    loss = class_distillation(torch.zeros(1, 5, 1), torch.full((1, 5, 1), math.log(4.0)))
    torch.testing.assert_close(loss, torch.tensor(5 * DIVERGENCE / 4))


def test_what_is_learned_already_has_neither_loss_nor_gradient() -> None:
    logits = torch.tensor([[[-3.0, 1.0], [0.0, 20.0]]])
    student = logits.clone().requires_grad_()
    class_distillation(student, logits).backward()
    assert student.grad is not None
    assert not student.grad.any()


def test_the_gradient_is_the_distance_of_the_scores() -> None:
    # d/dx of softplus(x) - s x at x = 0 is 1/2 - s.
    student = torch.zeros(1, 1, 1, requires_grad=True)
    class_distillation(student, torch.full((1, 1, 1), math.log(4.0))).backward()
    torch.testing.assert_close(student.grad, torch.full((1, 1, 1), -0.3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_give_finite_losses_and_gradients(dtype: torch.dtype) -> None:
    values = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    student = values.to(dtype).reshape(1, 5, 1).requires_grad_()
    loss = class_distillation(student, values.flip(0).to(dtype).reshape(1, 5, 1))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()


def test_a_shifted_box_by_hand() -> None:
    # Both boxes have the anchor's sides; the student's lies half a width to the right: overlap 1/2, union and hull 3/2.
    # Generalised IoU 1/3 - 0, loss 2/3, times the teacher's score 0.8, divided by the sum of scores, but at least 1.
    logits = torch.full((1, 1, 1), math.log(4.0))
    loss = box_distillation(torch.tensor([[[0.5, 0.0, 0.0, 0.0]]]), torch.zeros(1, 1, 4), logits)
    torch.testing.assert_close(loss, torch.tensor(0.8 * 2 / 3))


def literal_giou(a: Tensor, b: Tensor) -> Tensor:
    area = [(box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]) for box in (a, b)]
    low, high = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, 2:], b[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=1)
    union = area[0] + area[1] - overlap
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1)
    return overlap / union - (hull - union) / hull


def test_the_loss_does_not_depend_on_the_anchor() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas, taught = (torch.randn(1, 20, 4, generator=generator) * 0.4 for _ in range(2))
    logits = torch.randn(1, 20, 3, generator=generator)
    anchors = torch.tensor([[30.0, 10.0, 94.0, 42.0]]).expand(20, 4)
    scores = logits[0].sigmoid()
    losses = 1 - literal_giou(decode(deltas[0], anchors), decode(taught[0], anchors))
    expected = (scores.amax(dim=1) * losses).sum() / scores.sum()
    torch.testing.assert_close(box_distillation(deltas, taught, logits), expected, rtol=1e-4, atol=1e-6)


def test_boxes_of_which_the_teacher_is_not_sure_do_not_count() -> None:
    below, above = (math.log(score / (1 - score)) for score in (0.9 * SURE, 1.1 * SURE))
    deltas = torch.full((1, 1, 4), 0.5)
    assert box_distillation(deltas, torch.zeros(1, 1, 4), torch.tensor([[[below, -20.0]]])) == 0
    assert box_distillation(deltas, torch.zeros(1, 1, 4), torch.tensor([[[above, -20.0]]])) > 0


@pytest.mark.parametrize("loss", [box_distillation, distance_distillation])
def test_zero_if_and_only_if_the_boxes_are_equal(loss: Loss) -> None:
    taught = torch.tensor([[[0.3, 0.7, 0.2, 0.4]]])
    # The hull's and the union's areas carry an epsilon of 1e-7.
    assert loss(taught, taught, SURE_LOGITS) == pytest.approx(0, abs=1e-6)
    for place in range(4):
        other = taught.clone()
        other[..., place] += 0.05
        assert loss(other, taught, SURE_LOGITS) > 1e-3


def test_distances_are_left_top_right_bottom() -> None:
    # Teacher 2 x 2 around the point, student the same but twice as far to the right: IoU 4 / 6, no empty hull.
    loss = distance_distillation(torch.tensor([[[1.0, 1.0, 2.0, 1.0]]]), torch.ones(1, 1, 4), SURE_LOGITS)
    torch.testing.assert_close(loss, torch.tensor(1 / 3), rtol=2e-3, atol=0)  # sides are 0.001 longer


def test_empty_boxes_have_a_gradient_that_lets_them_grow() -> None:
    student = torch.tensor([[[-2.0, -0.5, -1.0, 0.0]]], requires_grad=True)
    loss = distance_distillation(student, torch.ones(1, 1, 4), SURE_LOGITS)
    loss.backward()
    assert loss.isfinite()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    assert (student.grad < 0).all()  # a step downhill makes every side longer


def test_below_zero_distances_are_as_the_relu_has_them() -> None:
    empty, emptier = torch.tensor([[[-1.0, 1.0, 1.0, 1.0]]]), torch.tensor([[[-9.0, 1.0, 1.0, 1.0]]])
    assert distance_distillation(empty, emptier, SURE_LOGITS) == pytest.approx(0, abs=1e-6)


def test_a_whole_network_against_its_teacher() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        Predictions(torch.randn(2, 7, 3, generator=generator), 0.2 * torch.randn(2, 7, 4, generator=generator)) for _ in range(2)
    )
    classes = class_distillation(student.logits, teacher.logits)
    boxes = box_distillation(student.deltas, teacher.deltas, teacher.logits)
    assert distillation(student, teacher) == classes + 2 * boxes
    assert float(distillation(teacher, teacher)) == pytest.approx(0, abs=2e-6)
