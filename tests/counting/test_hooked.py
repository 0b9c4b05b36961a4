"""Torch's own counter and the analytic one agree to the last unit, and with what torchvision publishes of its models."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.counting.hooked import count_blocks_hooked, count_hooked
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import (
    RetinaNet_ResNet50_FPN_V2_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)

from lw_retinanet.conventions import Conventions
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.heads import PRESETS, HeadPlan, Level, TowerPlan, block_tower
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

BACKBONES = [
    ("resnet18", "3x3"),
    ("resnet34", "3x3"),
    ("resnet50", "3x3"),
    ("resnet50", "1x1"),
    ("resnet101", "3x3"),
    ("resnet101", "1x1"),
    ("mobilenet_v2", "3x3"),
]
SIZES = [(800, 800), (333, 517), (97, 64)]
NUM_CLASSES = [1, 80, 601]


def _build(plan: HeadPlan, *, backbone: str, num_classes: int = 80, width: int = 256, **conventions: object) -> RetinaNet:
    with torch.device("meta"):
        return build(plan, num_classes=num_classes, backbone=backbone, width=width, conventions=Conventions.model_validate(conventions))


def _agree(model: RetinaNet, size_hw: tuple[int, int]) -> None:
    assert count_blocks_hooked(model, size_hw) == count_blocks(model, size_hw)


@pytest.mark.parametrize(("backbone", "stride_in"), BACKBONES)
@pytest.mark.parametrize("preset", PRESETS)
def test_both_counts_agree(preset: str, backbone: str, stride_in: str) -> None:
    # Sizes and class counts take turns, so that every preset and every backbone meets each of them.
    turn = list(PRESETS).index(preset) + BACKBONES.index((backbone, stride_in))
    model = _build(PRESETS[preset], backbone=backbone, stride_in=stride_in, num_classes=NUM_CLASSES[turn // 3 % 3])
    _agree(model, SIZES[turn % 3])


# A deep stem; squeeze and excitation; linear layers on channels-last maps.
@pytest.mark.parametrize("name", ["resnet26d", "mobilenetv3_small_100", "convnext_tiny"])
def test_both_counts_agree_for_timm(name: str) -> None:
    pytest.importorskip("timm")
    model = _build(PRESETS["lw-v3"], backbone=f"timm:{name}")
    _agree(model, (333, 517))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, 333, 517, device="meta"))
    assert counter.get_total_flops() == 2 * sum(cost.macs for cost in count_blocks(model, (333, 517)).values())


@given(height=st.integers(1, 500), width=st.integers(1, 500), p6_source=st.sampled_from(["C5", "P5"]), p7_relu=st.booleans())
@settings(deadline=None, max_examples=6)
def test_both_counts_agree_at_any_size(height: int, width: int, p6_source: str, p7_relu: bool) -> None:
    model = _build(PRESETS["lw-narrow"], backbone="resnet18", num_classes=3, width=32, p6_source=p6_source, p7_relu=p7_relu)
    _agree(model, (height, width))


def test_both_counts_agree_for_unusual_plans() -> None:
    own_first = TowerPlan(units=("dw3x3+1x1", "shared", "shared", "shared"), predict="shared")
    levels: tuple[Level, ...] = ("P3", "P5", "P7")
    _agree(_build(HeadPlan(cls=dict.fromkeys(levels, own_first), bbox={"P6": block_tower("narrow")}), backbone="resnet18"), (200, 300))
    _agree(_build(HeadPlan(shared=TowerPlan(units=("1x1",), width=64, predict="1x1")), backbone="resnet18"), (200, 300))


def test_parts_add_up_to_one_uninterrupted_pass() -> None:
    model = _build(PRESETS["bbox-v1"], backbone="resnet50")
    blocks = count_blocks_hooked(model, (256, 320))
    assert sum(cost.macs for cost in blocks.values()) == count_hooked(model, torch.empty(1, 3, 256, 320, device="meta"))


def test_the_same_on_a_model_with_weights_and_its_norms_in_training() -> None:
    model = build(PRESETS["lw-v3"], num_classes=2, backbone="resnet18", width=16, norm="batch").train()
    _agree(model, (64, 64))
    assert model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(buffer.any() for name, buffer in model.named_buffers() if name.endswith("num_batches_tracked"))


def test_a_linear_layer_and_a_convolution_by_hand() -> None:
    # 5 x 7 outputs of 3 * 9 products for each of 2 channels; then 70 -> 11.
    module = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(70, 11))
    assert count_hooked(module, torch.zeros(1, 3, 5, 7)) == 5 * 7 * 2 * 27 + 70 * 11


@pytest.mark.parametrize(
    ("make", "weights", "macs"),
    [
        (retinanet_resnet50_fpn, RetinaNet_ResNet50_FPN_Weights.COCO_V1, 151_540_437_248),
        (retinanet_resnet50_fpn_v2, RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1, 152_238_199_040),
    ],
)
def test_torchvisions_own_models(make: object, weights: object, macs: int) -> None:
    with torch.device("meta"):
        network = make(weights=None, weights_backbone=None, num_classes=91).eval()  # type: ignore[operator]
        images = torch.empty(1, 3, 800, 800)
    with torch.no_grad():
        features = list(network.backbone(images).values())
    counted = count_hooked(network.backbone, images) + count_hooked(network.head, features)
    assert counted == macs
    assert counted / 1e9 == pytest.approx(weights.meta["_ops"], abs=0.005)  # type: ignore[attr-defined]  # published with two decimals
