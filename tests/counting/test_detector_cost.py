"""Detectors of torchvision: totals against its own published numbers and torch's counter, places against hand arithmetic."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection, list_models, mobilenet_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator

from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.counting.torchvision_model import native_size, torchvision_detector
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build

NAMES = list_models(module=detection)


@cache
def _model(name: str) -> nn.Module:
    return torchvision_detector(name)


@cache
def _cost(name: str, size_hw: tuple[int, int] | None = None) -> DetectorCost:
    return count_detector(_model(name), size_hw or native_size(_model(name)))


def _counted(module: Any, *inputs: Any) -> tuple[int, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module(*inputs)
    return counter.get_total_flops() // 2, output


@pytest.mark.parametrize("name", NAMES)
def test_the_total_is_that_of_torchs_counter_and_no_parameter_is_lost(name: str) -> None:
    model: Any = _model(name)
    height, width = native_size(model) if "ssd" in name else (256, 320)
    total, maps = _counted(model.backbone, torch.empty((1, 3, height, width), device="meta"))
    maps = list(maps.values())
    if hasattr(model, "head"):
        total += _counted(model.head, maps)[0]
    else:
        total += _counted(model.rpn.head, maps)[0]
        rois = model.roi_heads
        proposals = 150 if "320" in name else 1000
        heads = [(rois.box_head, rois.box_predictor, proposals, 7)]
        heads += [(rois.mask_head, rois.mask_predictor, 100, 14)] if "mask" in name else []
        heads += [(rois.keypoint_head, rois.keypoint_predictor, 100, 14)] if "keypoint" in name else []
        for head, predictor, number, side in heads:
            macs, features = _counted(head, torch.empty((number, 256, side, side), device="meta"))
            total += macs + _counted(predictor, features)[0]
    cost = _cost(name, (height, width))
    assert cost.macs == total
    assert sum(block.params for block in cost.blocks.values()) == sum(parameter.numel() for parameter in model.parameters())
    assert all(
        block.macs == sum(part.macs for part in block.parts.values()) and block.params == sum(part.params for part in block.parts.values())
        for block in cost.blocks.values()
        if block.parts
    )


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("retinanet_resnet50_fpn", 151_540_437_248),
        ("retinanet_resnet50_fpn_v2", 152_238_199_040),
        ("ssd300_vgg16", 34_858_153_472),  # torchvision's own page: 34.858 G
        ("ssdlite320_mobilenet_v3_large", 583_171_904),  # 0.583 G
    ],
)
def test_known_totals(name: str, macs: int) -> None:
    assert _cost(name).macs == macs


def test_retinanet_block_by_block_as_our_own_with_the_same_layers() -> None:
    # Ours takes P6 from C5, torchvision's v1 from P5.
    with torch.device("meta"):
        model = build(PRESETS["retinanet"], num_classes=91)
    ours, theirs = count_blocks(model, (320, 480)), _cost("retinanet_resnet50_fpn", (320, 480)).blocks
    assert list(theirs) == list(ours)
    assert {name for name in ours if ours[name].macs != theirs[name].macs} == {"P6"}
    assert theirs["P6"].macs == 5 * 8 * 256 * 256 * 9
    assert {name: part.macs for name, part in theirs["D3"].parts.items()} == {n: part.macs for n, part in ours["D3"].parts.items()}
    assert all(cost.params == 0 for name, cost in theirs.items() if name in ("D4", "D5", "D6", "D7"))


def test_levels_with_one_size_are_told_apart() -> None:
    # At 64 pixels P6 and P7 are both a single cell.
    cost = _cost("retinanet_resnet50_fpn", (64, 64))
    assert list(cost.levels) == ["P3", "P4", "P5", "P6", "P7"]
    assert cost.blocks["P6"].macs == cost.blocks["P7"].macs == 256 * 256 * 9
    assert cost.blocks["D6"] == cost.blocks["D7"]
    assert cost.blocks["D7"].macs == (8 * 256 + 9 * (91 + 4)) * 256 * 9


def test_proposal_network_and_second_stage_by_hand() -> None:
    blocks = _cost("maskrcnn_resnet50_fpn", (320, 320)).blocks
    # P2 is 80 x 80: one 3x3 of 256 for both branches, then 1x1 to 3 and 12.
    d2 = {name: part.macs for name, part in blocks["D2"].parts.items()}
    assert d2 == {"tower": 256 * 256 * 9 * 6400, "cls_predict": 256 * 3 * 6400, "bbox_predict": 256 * 12 * 6400}
    assert blocks["P6"].macs == 0  # a pooling
    box = {name: part.macs for name, part in blocks["box_head"].parts.items()}
    assert box == {"tower": 1000 * (256 * 49 + 1024) * 1024, "cls_predict": 1000 * 1024 * 91, "bbox_predict": 1000 * 1024 * 364}
    # 100 maps of 14 x 14: four 3x3, then a 2x2 transposed to 28 x 28 and a 1x1.
    mask = {name: part.macs for name, part in blocks["mask_head"].parts.items()}
    assert mask == {"tower": 100 * 196 * 4 * 256 * 256 * 9, "predict": 100 * (196 * 256 * 256 * 4 + 784 * 256 * 91)}
    assert _cost("maskrcnn_resnet50_fpn", (320, 320)).remarks[0].startswith("The box head is counted on 1,000 proposals")


def test_maps_of_ssd_and_what_makes_them() -> None:
    cost = _cost("ssd300_vgg16")
    assert {level: size[1] for level, size in cost.levels.items()} == {"P3": 38, "P4": 19, "P5": 10, "P6": 5, "P7": 3, "P8": 1}
    # The last map: 1x1 256 -> 128 on 3 x 3, then 3x3 -> 256 on the only place.
    assert cost.blocks["C8"].macs == 9 * 256 * 128 + 128 * 256 * 9
    # The learned scale of the first map is a parameter of no layer.
    assert cost.blocks["C3"].params == 256 * 512 * 9 + 2 * 512 * 512 * 9 + 3 * 512 + 512
    assert cost.blocks["D8"].parts["cls_predict"].macs == 256 * 4 * 91 * 9


def test_two_maps_of_one_stride_go_on_counting() -> None:
    cost = _cost("fasterrcnn_mobilenet_v3_large_320_fpn")
    assert [(level, size[1]) for level, size in cost.levels.items()] == [("P5", 10), ("P6", 10), ("P7", 5)]
    assert list(cost.blocks)[:5] == ["C1", "C2", "C3", "C4", "C5"]


class Widened(detection.RetinaNet):
    """A user's detector: a backbone without a pyramid, and a layer of its own that the count cannot know."""

    def __init__(self) -> None:
        backbone = mobilenet_v2(weights=None).features
        backbone.out_channels = 1280
        super().__init__(backbone, num_classes=3, anchor_generator=AnchorGenerator(((32,),), ((1.0,),)))
        self.extra = nn.Linear(5, 5)


def test_a_users_subclass_and_its_weights_stay_as_they_are() -> None:
    model = Widened().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cost = count_detector(model, (96, 64))
    assert list(cost.blocks) == ["C1", "C2", "C3", "C4", "C5", "D5", "other"]
    assert (cost.blocks["other"].macs, cost.blocks["other"].params) == (0, 30)
    assert cost.blocks["D5"].parts["cls_predict"].macs == 3 * 2 * 1280 * 3 * 9
    assert cost.num_classes == 3
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Split(nn.Module):
    """A classification head whose finest level has a light tower of its own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.whole, self.num_classes = head, head.num_classes
        self.light = nn.Sequential(*(nn.Conv2d(256, 256, 1) for _ in range(4)))
        self.cls_logits = nn.Conv2d(256, 9 * 91, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        first = self.cls_logits(self.light(maps[0])).permute(0, 2, 3, 1).reshape(1, -1, 91)
        return torch.cat([first, self.whole(maps[1:])], dim=1)


def test_a_level_with_layers_of_its_own() -> None:
    with torch.device("meta"):
        model: Any = torchvision_detector("retinanet_resnet50_fpn")
        model.head.classification_head = Split(model.head.classification_head)
    cost = count_detector(model, (128, 128))
    assert cost.blocks["D3"].parts["cls_tower"].macs == 4 * 256 * 256 * 256
    assert cost.blocks["D3"].parts["cls_predict"].macs == 256 * 256 * 819
    owned = [(branch.level, branch.branch, branch.depth, branch.kernel) for branch in cost.branches if branch.is_own]
    assert owned == [("P3", "cls", 4, 3)]  # depth and kernel are those of the shared tower


def test_ours_is_counted_as_ever() -> None:
    with torch.device("meta"):
        model = build(PRESETS["lw-v3"], num_classes=5, backbone="resnet18", width=32)
    cost = count_detector(model, (128, 96))
    assert cost.blocks == count_blocks(model, (128, 96))
    assert [(b.level, b.branch, b.is_own) for b in cost.branches[:3]] == [("P3", "cls", True), ("P3", "bbox", True), ("P4", "cls", False)]
    assert {(b.depth, b.kernel) for b in cost.branches} == {(4, 3)}
    assert all(
        b.macs == sum(part.macs for n, part in cost.blocks[f"D{b.level[1]}"].parts.items() if n.startswith(b.branch)) for b in cost.branches
    )


def test_what_cannot_be_counted() -> None:
    with pytest.raises(ConfigError, match="cannot count a Linear"):
        count_detector(nn.Linear(2, 2), (64, 64))
    with pytest.raises(ConfigError, match="size_hw must be positive"):
        count_detector(_model("ssd300_vgg16"), (0, 64))
    with pytest.raises(ConfigError, match="use another size"):
        count_detector(_model("ssd300_vgg16"), (32, 32))


def test_builders_by_name() -> None:
    with pytest.raises(InputError, match=r"'retinanet_resnet50'; did you mean retinanet_resnet50_fpn\?"):
        torchvision_detector("retinanet_resnet50")
    with pytest.raises(InputError, match="counts the background as one, so give at least 2"):
        torchvision_detector("ssd300_vgg16", num_classes=1)
    assert native_size(_model("ssdlite320_mobilenet_v3_large")) == (320, 320)
    assert native_size(_model("keypointrcnn_resnet50_fpn")) == (800, 800)
    assert count_detector(torchvision_detector("fcos_resnet50_fpn", num_classes=7), (64, 64)).num_classes == 7
