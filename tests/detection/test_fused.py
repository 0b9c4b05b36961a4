import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lw_retinanet.detection.fused import FusedBlock, FusedConv, fuse
from lw_retinanet.detection.runtime import with_half_weights
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=torch.channels_last)


def made(backbone: str, plan: str, norm: Any = "frozen") -> RetinaNet:
    torch.manual_seed(0)
    model = build(plan_of(plan), num_classes=3, backbone=backbone, width=16, norm=norm, init="fan_in").eval()
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.bias is not None:
            nn.init.normal_(part.bias, std=0.1)  # or many a ReLU would never clip
    return folded(model).to(memory_format=torch.channels_last)


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in model.modules())


@pytest.mark.parametrize(
    ("backbone", "plan", "norm", "blocks"),
    [
        ("resnet18", "lw-v3", "batch", 8),
        ("resnet50", "retinanet", "frozen", 16),
        ("mobilenet_v2", "lw-v1", "batch", 0),
        ("resnet18", "lw-stem-p3p4-shared", "batch", 8),
    ],
)
@torch.inference_mode()
def test_the_same_numbers_with_fewer_passes(backbone: str, plan: str, norm: str, blocks: int) -> None:
    plain = made(backbone, plan, norm)
    quick = copy.deepcopy(plain)
    assert fuse(quick)
    assert count(quick, FusedBlock) == blocks
    assert count(quick.backbone, nn.ReLU) + count(quick.backbone, nn.ReLU6) == 0
    assert count(quick.head, nn.ReLU) == 0
    for ours, theirs in zip(quick(IMAGES), plain(IMAGES), strict=True):
        # The sums are the same; how oneDNN orders them may depend on the number of threads: 1e-5 of the largest.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@torch.inference_mode()
def test_bf16_is_at_least_as_near_to_fp32() -> None:
    plain = made("resnet50", "retinanet")
    half, quick = with_half_weights(plain), with_half_weights(plain)
    assert isinstance(quick, RetinaNet)
    assert fuse(quick)
    with torch.autocast("cpu", torch.bfloat16):
        answers = [model(IMAGES).logits.float() for model in (half, quick)]
    errors = [float((answer - plain(IMAGES).logits).square().mean().sqrt()) for answer in answers]
    assert 0 < errors[1] < 1.1 * errors[0]


@torch.inference_mode()
def test_group_norm_stays_between_convolution_and_relu() -> None:
    plain = made("resnet18", "lw-v3", "group")
    quick = copy.deepcopy(plain)
    assert fuse(quick)  # the head
    assert count(quick, FusedBlock) == 0
    for ours, theirs in zip(quick(IMAGES), plain(IMAGES), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), None])
@pytest.mark.parametrize("groups", [1, 8])
@torch.inference_mode()
def test_one_convolution(activation: nn.Module | None, groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=groups)
    nn.init.normal_(conv.weight, std=2.0)
    features = torch.randn(1, 8, 9, 11).contiguous(memory_format=torch.channels_last)
    added = torch.randn(1, 16, 5, 6).contiguous(memory_format=torch.channels_last)

    def expected(values: Tensor) -> Tensor:
        return values if activation is None else activation(values.clone())

    quick = FusedConv(conv, activation)
    torch.testing.assert_close(quick(features), expected(conv(features)), rtol=1e-5, atol=1e-5)
    if not isinstance(activation, nn.ReLU6):
        torch.testing.assert_close(quick(features, added), expected(conv(features) + added), rtol=1e-5, atol=1e-5)
    assert conv(features).max() > 6  # else the upper limit would go unseen


@torch.inference_mode()
def test_weights_laid_out_for_one_input_serve_all() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 32, 3, padding=1, stride=2).to(memory_format=torch.channels_last)
    fused = FusedConv(conv, nn.ReLU())
    for shape in ((1, 16, 40, 40), (1, 16, 40, 40), (3, 16, 5, 9), (1, 16, 1, 1)):
        images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(fused(images), conv(images).relu())
    assert len(fused.packed) == 3  # one layout a shape: from that of another shape, every call would take its time


@torch.inference_mode()
def test_shapes_that_come_no_more_make_room() -> None:
    fused = FusedConv(nn.Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last), None)

    def sees(*sides: int) -> set[int]:
        for side in sides:
            fused(torch.zeros(1, 16, side, side).contiguous(memory_format=torch.channels_last))
        return {shape[2] for shape in fused.packed}

    assert sees(1, 2, 3, 4, 5) == {1, 2, 3, 4, 5}
    # Images of two sizes in turns: laying out weights anew for each would take longer than not having them laid out.
    assert sees(*(1, 2, 3, 4, 5, 6, 7, 8, 9, 10) * 10) == {1, 2, 3, 4, 5}
    assert sees(*(6, 7, 8, 9, 10) * 10) == {6, 7, 8, 9, 10}


def test_a_watched_convolution_is_left_alone() -> None:
    plain = made("resnet18", "retinanet")
    conv = next(part for part in plain.head.modules() if isinstance(part, nn.Conv2d))
    seen: list[int] = []
    conv.register_forward_hook(lambda *_: seen.append(1))
    fuse(plain)
    with torch.inference_mode():
        plain(IMAGES)
    assert len(seen) == 5


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = made("resnet18", "retinanet")
    assert not fuse(plain)
    assert count(plain, FusedConv) == 0
