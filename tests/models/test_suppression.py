import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from lw_retinanet.models import suppression
from lw_retinanet.models.suppression import suppress, suppress_without_waiting


def literal(boxes: Tensor, labels: Tensor, is_real: Tensor, iou: float, most: int) -> list[int]:
    kept: list[int] = []
    rivals = ((box_iou(boxes.double(), boxes.double()) > iou) & (labels[:, None] == labels[None])).tolist()
    for place, is_candidate in enumerate(is_real.tolist()):
        if is_candidate and not any(rivals[place][other] for other in kept):
            kept.append(place)
    return kept[:most]


def scene(seed: int, number: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(3, number, 2, generator=random) * 60
    boxes = torch.cat([corners, corners + torch.rand(3, number, 2, generator=random) * 40], dim=2)
    boxes = boxes.round() if seed % 2 else boxes  # empty boxes, equal boxes, overlaps exactly at the limit
    labels = torch.randint(classes, (3, number), generator=random)
    return boxes, labels, torch.rand(3, number, generator=random) < 0.8


@pytest.mark.parametrize(
    ("prefix", "few_boxes", "few_classes", "pairs_a_call"),
    # Steps to the end; steps, then all at once; the kernel at once for all; the kernel for one class after another, with and without steps.
    [(4, 1, 1, 1), (4, 30, 1, 200_000), (1024, 1, 1, 1), (1024, 400, 1, 1), (1024, 1, 9, 0), (4, 1, 3, 0)],
)
def test_equal_to_comparing_every_pair(
    prefix: int, few_boxes: int, few_classes: int, pairs_a_call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suppression, "PREFIX", prefix)
    monkeypatch.setattr(suppression, "_EACH", 1)
    monkeypatch.setattr(suppression, "_FEW_BOXES", few_boxes)
    monkeypatch.setattr(suppression, "_FEW_CLASSES", few_classes)
    monkeypatch.setattr(suppression, "_PAIRS_A_CALL", pairs_a_call)
    settled = 0
    for seed in range(60):
        number, most, iou = (1, 17, 90)[seed % 3], (1, 5, 100)[(seed // 3) % 3], (0.3, 0.5, 1.0)[seed % 3]
        boxes, labels, is_real = scene(seed, number, (1, 4)[seed % 2])
        exact = suppress(boxes, labels, is_real, iou=iou, most=most)
        quick, is_complete = suppress_without_waiting(boxes, labels, is_real, iou=iou, most=most)
        for image in range(3):
            expected = literal(boxes[image], labels[image], is_real[image], iou, most)
            expected += [-1] * (most - len(expected))
            assert exact[image].tolist() == expected
            if is_complete[image]:
                settled += 1
                assert quick[image].tolist() == expected
    assert settled > 60


@pytest.mark.parametrize("classes", [1, 6, 40])
def test_many_boxes_by_default(classes: int) -> None:
    # Of 40 classes they go in steps at first; what is left of them is for the kernel. Of one, and of six, for the kernel at once.
    random = torch.Generator().manual_seed(3)
    corners = torch.rand(1, 900, 2, generator=random) * 100
    boxes = torch.cat([corners, corners + 20 + torch.rand(1, 900, 2, generator=random) * 40], dim=2)
    labels = torch.randint(classes, (1, 900), generator=random) * 10_000  # numbers that a byte would confuse
    is_real = torch.ones(1, 900, dtype=torch.bool)
    expected = literal(boxes[0], labels[0], is_real[0], 0.5, 900)
    assert 100 < len(expected) < 800
    assert suppress(boxes, labels, is_real, iou=0.5, most=900)[0, : len(expected)].tolist() == expected
    assert suppress(boxes, labels, is_real, iou=0.5, most=50)[0].tolist() == expected[:50]


def test_what_the_first_candidates_do_not_decide_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suppression, "PREFIX", 4)
    # Ten equal boxes, then another one: the four first have one survivor, and two are asked for.
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 10 + [[50.0, 50, 60, 60]])[None]
    labels, is_real = torch.zeros(1, 11, dtype=torch.int64), torch.ones(1, 11, dtype=torch.bool)
    assert suppress(boxes, labels, is_real, iou=0.5, most=2).tolist() == [[0, 10]]
    assert suppress_without_waiting(boxes, labels, is_real, iou=0.5, most=2)[1].tolist() == [False]
    assert suppress_without_waiting(boxes, labels, is_real, iou=0.5, most=1)[1].tolist() == [True]
    is_real[0, 4:] = False
    kept, is_complete = suppress_without_waiting(boxes, labels, is_real, iou=0.5, most=2)
    assert (kept.tolist(), is_complete.tolist()) == ([[0, -1]], [True])


def test_a_chain_longer_than_the_steps_is_noticed() -> None:
    # Each box overlaps the next one by 6 of 14, and no other by as much: every second one stays, and the last is settled last.
    def chain(links: int) -> tuple[Tensor, Tensor, Tensor]:
        left = 4.0 * torch.arange(links)
        boxes = torch.stack([left, torch.zeros(links), left + 10, torch.full((links,), 10.0)], dim=1)[None]
        return boxes, torch.zeros(1, links, dtype=torch.int64), torch.ones(1, links, dtype=torch.bool)

    short, is_complete = suppress_without_waiting(*chain(15), iou=0.4, most=20)
    assert is_complete.tolist() == [True]
    assert short.tolist() == suppress(*chain(15), iou=0.4, most=20).tolist() == [[*range(0, 15, 2)] + [-1] * 12]
    assert suppress_without_waiting(*chain(60), iou=0.4, most=40)[1].tolist() == [False]
    assert suppress(*chain(60), iou=0.4, most=40)[0, :30].tolist() == list(range(0, 60, 2))


def test_many_images_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, labels, is_real = scene(2, 40, 2)
    whole = suppress_without_waiting(boxes, labels, is_real, iou=0.5, most=50)
    monkeypatch.setattr(suppression, "_PAIRS_AT_A_TIME", 40**2)
    parts = suppress_without_waiting(boxes, labels, is_real, iou=0.5, most=50)
    assert [tensor.tolist() for tensor in parts] == [tensor.tolist() for tensor in whole]
