"""The analytic count against the published table, hand arithmetic and real shapes."""

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import nn

from lw_retinanet.conventions import LEVELS, Conventions
from lw_retinanet.counting.macs import BLOCKS, Cost, Size, count_blocks, follow, pyramid_sizes
from lw_retinanet.errors import ConfigError
from lw_retinanet.heads import PRESETS, HeadPlan, block_tower
from lw_retinanet.models.anchors import feature_sizes
from lw_retinanet.models.build import build, meta_copy
from lw_retinanet.models.retinanet import RetinaNet

# 800 x 800, 80 classes, 9 anchors, ResNet-50, P6 from C5: stride in the 3x3, stride in the 1x1, D3.
PAPER = {
    "retinanet": (149_194_714_112, 146_245_594_112, 64_604_160_000),
    "lw-v1": (138_708_954_112, 135_759_834_112, 54_118_400_000),
    "lw-v2": (113_477_594_112, 110_528_474_112, 28_887_040_000),
    "lw-v3": (91_768_794_112, 88_819_674_112, 7_178_240_000),
    "lw-v3-released": (92_506_074_112, 89_556_954_112, 7_915_520_000),
    "bbox-v1": (127_601_114_112, 124_651_994_112, 43_010_560_000),
    "bbox-v2": (138_708_954_112, 135_759_834_112, 54_118_400_000),
    "bbox-v3": (127_485_914_112, 124_536_794_112, 42_895_360_000),
    "lw-narrow": (92_443_354_112, 89_494_234_112, 7_852_800_000),
    "lw-dw5": (91_896_794_112, 88_947_674_112, 7_306_240_000),
    "lw-separable": (91_682_554_112, 88_733_434_112, 7_092_000_000),
    "lw-separable120": (93_324_954_112, 90_375_834_112, 8_734_400_000),
    "lw-stem": (91_784_154_112, 88_835_034_112, 7_193_600_000),
}

HEAD_PARTS = ("cls_tower", "cls_predict", "bbox_tower", "bbox_predict")


@cache
def _build(preset: str = "retinanet", *, backbone: str = "resnet50", num_classes: int = 80, **conventions: object) -> RetinaNet:
    with torch.device("meta"):
        return build(PRESETS[preset], num_classes=num_classes, backbone=backbone, conventions=Conventions.model_validate(conventions))


def _total(blocks: dict[str, Cost]) -> int:
    return sum(cost.macs for cost in blocks.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_number_of_the_table(preset: str) -> None:
    stride_in_3x3, stride_in_1x1 = (count_blocks(_build(preset, stride_in=stride), (800, 800)) for stride in ("3x3", "1x1"))
    assert (_total(stride_in_3x3), _total(stride_in_1x1), stride_in_3x3["D3"].macs) == PAPER[preset]
    assert {name for name in BLOCKS if stride_in_3x3[name] != stride_in_1x1[name]} == {"C3", "C4", "C5"}


def test_the_table_covers_every_preset() -> None:
    assert list(PAPER) == list(PRESETS)


def test_the_baselines_head_by_hand() -> None:
    # P3 is 100x100 at 800x800: two towers of four 256->256, then 720 and 36 outputs, all 3x3.
    d3 = count_blocks(_build(), (800, 800))["D3"]
    tower = 4 * 256 * 256 * 9
    macs = dict(zip(HEAD_PARTS, (tower, 256 * 720 * 9, tower, 256 * 36 * 9), strict=True))
    assert {name: part.macs for name, part in d3.parts.items()} == {name: each * 100 * 100 for name, each in macs.items()}
    biases = dict(zip(HEAD_PARTS, (4 * 256, 720, 4 * 256, 36), strict=True))
    assert {name: part.params for name, part in d3.parts.items()} == {name: macs[name] + biases[name] for name in HEAD_PARTS}


def test_the_pyramid_by_hand() -> None:
    # At 333 x 517: C3 42x65, C4 21x33, C5 11x17, P6 6x9, P7 3x5.
    blocks = count_blocks(_build(), (333, 517))
    output = 256 * 256 * 9
    assert blocks["P3"].macs == 42 * 65 * (512 * 256 + output)
    assert blocks["P4"].macs == 21 * 33 * (1024 * 256 + output)
    assert blocks["P5"].macs == 11 * 17 * (2048 * 256 + output)
    assert blocks["P6"].macs == 6 * 9 * 2048 * 256 * 9
    assert blocks["P7"].macs == 3 * 5 * output
    assert count_blocks(_build(p6_source="P5"), (333, 517))["P6"].macs == 6 * 9 * output
    assert blocks["C1"].macs == 167 * 259 * 3 * 64 * 49


# The share of D3 grows with the number of classes.
@pytest.mark.parametrize(("num_classes", "percent"), [(1, 38), (80, 43), (264, 51), (601, 59)])
def test_share_of_d3(num_classes: int, percent: int) -> None:
    blocks = count_blocks(_build(num_classes=num_classes), (800, 800))
    assert round(100 * blocks["D3"].macs / _total(blocks)) == percent


@pytest.mark.parametrize(
    "backbone", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "timm:resnet26d", "timm:efficientnet_b0"]
)
@pytest.mark.parametrize("preset", ["retinanet", "lw-v3", "lw-v3-released", "bbox-v1"])
def test_blocks_add_up_to_the_models_parameters(preset: str, backbone: str) -> None:
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    model = _build(preset, backbone=backbone)
    blocks = count_blocks(model, (128, 160))
    assert tuple(blocks) == BLOCKS
    assert sum(cost.params for cost in blocks.values()) == sum(parameter.numel() for parameter in model.parameters())
    for cost in blocks.values():
        if cost.parts:
            assert (cost.macs, cost.params) == (sum(p.macs for p in cost.parts.values()), sum(p.params for p in cost.parts.values()))


def test_parameters_of_the_baseline() -> None:
    assert sum(cost.params for cost in count_blocks(_build(), (800, 800)).values()) == 37_915_572


def test_shared_weights_stand_at_the_first_level_that_uses_them() -> None:
    full, light, released = (count_blocks(_build(preset), (256, 256)) for preset in ("retinanet", "lw-v3", "lw-v3-released"))
    assert [full[f"D{i}"].params > 0 for i in range(3, 8)] == [True, False, False, False, False]
    assert [light[f"D{i}"].params > 0 for i in range(3, 8)] == [True, True, False, False, False]
    assert light["D4"].params == full["D3"].params
    # The box prediction of the released code is shared from P3 on.
    assert released["D3"].parts["bbox_predict"].params == full["D3"].parts["bbox_predict"].params
    assert released["D4"].parts["bbox_predict"].params == 0


@pytest.mark.parametrize("level", LEVELS)
def test_a_plan_for_any_level_changes_that_level_alone(level: str) -> None:
    with torch.device("meta"):
        model = build(TypeAdapter(HeadPlan).validate_python({"bbox": {level: block_tower("v3")}}), num_classes=5, backbone="resnet18")
    changed, baseline = count_blocks(model, (320, 320)), count_blocks(_build(backbone="resnet18", num_classes=5), (320, 320))
    assert {name for name in BLOCKS if changed[name].macs != baseline[name].macs} == {f"D{level[1]}"}


@given(height=st.integers(1, 700), width=st.integers(1, 700), backbone=st.sampled_from(["resnet18", "mobilenet_v2"]))
@settings(deadline=None, max_examples=20)
def test_pyramid_sizes_are_those_of_the_anchors(height: int, width: int, backbone: str) -> None:
    sizes = pyramid_sizes(_build(backbone=backbone, num_classes=1), (height, width))
    assert [(size.height, size.width) for size in sizes.values()] == feature_sizes((height, width))


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_following_a_convolution_gives_its_shape_and_cost(data: st.DataObject) -> None:
    def pair(low: int, high: int) -> tuple[int, int]:
        return data.draw(st.tuples(st.integers(low, high), st.integers(low, high)))

    groups = data.draw(st.sampled_from([1, 2, 4]))
    kernel = pair(1, 5)
    with torch.device("meta"):
        conv = nn.Conv2d(4, 8, kernel, stride=pair(1, 3), padding=pair(0, 3), dilation=pair(1, 2), groups=groups)
    height, width = pair(10, 40)
    macs, size = follow([conv], Size(4, height, width))
    shape = conv(torch.empty(1, 4, height, width, device="meta")).shape
    assert tuple(size) == tuple(shape[1:])
    assert macs == shape.numel() * (4 // groups) * kernel[0] * kernel[1]


def test_a_timm_layer_belongs_to_the_stage_of_its_stride() -> None:
    pytest.importorskip("timm")
    ours, timms = (count_blocks(_build(backbone=name, num_classes=1), (333, 517)) for name in ("resnet18", "timm:resnet18"))
    assert ours == timms
    # A patch stem goes to stride 4 at once.
    convnext = count_blocks(_build(backbone="timm:convnext_atto", num_classes=1), (64, 64))
    assert convnext["C1"] == Cost(macs=0, params=0)
    assert convnext["C2"].macs > 0


def test_squeeze_and_excitation_stays_with_its_stage_at_any_input_size() -> None:
    # Its 1x1 maps would pass for stride 32 at 32 pixels; parameters must not move between stages with the input size.
    pytest.importorskip("timm")
    model = _build(backbone="timm:efficientnet_b0", num_classes=1)
    small, large = ([cost.params for cost in count_blocks(model, size).values()] for size in ((32, 32), (640, 480)))
    assert small == large


def test_what_cannot_be_counted_is_named() -> None:
    with pytest.raises(ConfigError, match="layer of type ConvTranspose2d"):
        follow([nn.ConvTranspose2d(1, 1, 1)], Size(1, 4, 4))
    with pytest.raises(ConfigError, match="3 channels was given a map of 4"):
        follow([nn.Conv2d(3, 4, 1)], Size(4, 4, 4))
    with pytest.raises(ConfigError, match="a map of 2 x 9 is smaller than a kernel"):
        follow([nn.Conv2d(1, 1, 3)], Size(1, 2, 9))
    with pytest.raises(ConfigError, match="size_hw must be positive, got 0 x 800"):
        count_blocks(_build(), (0, 800))


def test_counting_leaves_the_model_alone() -> None:
    model = build(PRESETS["lw-v3"], num_classes=2, backbone="resnet18", width=16)
    before = copy.deepcopy(model.state_dict())
    model.train()
    shadow = meta_copy(model)
    count_blocks(model, (64, 64))
    assert model.training
    assert not shadow.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert {str(tensor.device) for tensor in (*shadow.parameters(), *shadow.buffers())} == {"meta"}
    assert not any(module._forward_hooks for module in model.modules())
