from typing import Any

import pytest
import torch

from lw_retinanet.conventions import BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import InputError
from lw_retinanet.heads import HeadPlan, TowerPlan, plan_of
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.torchvision_model import from_torchvision
from lw_retinanet.weights.foreign.torchvision_twin import preset_conventions, torchvision_conventions, torchvision_twin, why_not_torchvision

OWN = Conventions(
    norm_eps=1e-3,
    p6_source="P5",
    input=InputRule(size=96),
    output=OutputRule(score_threshold=0.1, candidates_per_level=77, nms_iou=0.6, max_detections=33),
)


def full(**settings: object) -> RetinaNet:
    torch.manual_seed(0)
    values = {"num_classes": 3, "backbone": "resnet18", "width": 16, "conventions": OWN, **settings}
    return build(HeadPlan(), **values).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_the_way_back_gives_the_same_model(norm: str) -> None:
    model = full(norm=norm)
    loaded = from_torchvision(torchvision_twin(model))
    assert loaded.model.conventions == torchvision_conventions(OWN)
    assert loaded.model.num_classes == 3
    ours, back = model.state_dict(), loaded.model.state_dict()
    names = {name for name in ours if not name.endswith("num_batches_tracked")}
    assert {name for name in back if not name.endswith("num_batches_tracked")} == names
    assert all(torch.equal(ours[name], back[name]) for name in names)


def test_group_norm_in_the_head_and_stride_in_the_first_convolution() -> None:
    torch.manual_seed(0)
    conventions = OWN.model_copy(update={"stride_in": "1x1", "p6_source": "C5"})
    plan = HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4))
    model = build(plan, num_classes=2, backbone="resnet50", width=32, conventions=conventions).eval()
    assert why_not_torchvision(model) is None
    twin = torchvision_twin(model)
    images = torch.randn(1, 3, 160, 160)  # group norm refuses maps of one pixel, which P7 of a smaller one would have
    with torch.inference_mode():
        theirs, ours = twin.head(list(twin.backbone(images).values())), model(images)
    torch.testing.assert_close(theirs["cls_logits"], ours.logits)
    torch.testing.assert_close(theirs["bbox_regression"], ours.deltas)


def test_a_lightened_model_gives_the_full_head_and_pyramid_of_before() -> None:
    model = full()
    light, _ = lighten_copy(model, plan_of("lw-v3"))
    with torch.no_grad():
        light.fpn.layer_blocks[0][0].weight.zero_()  # what was fitted to the light head is not torchvision's
    assert why_not_torchvision(light, switchable=True) is None
    wanted, found = torchvision_twin(model).state_dict(), torchvision_twin(light).state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_what_torchvision_cannot_hold() -> None:
    model = full()
    light, _ = lighten_copy(model, plan_of("lw-v3"))
    assert "light" in str(why_not_torchvision(light))
    changes: dict[str, dict[str, Any]] = {
        "ReLU": {"p7_relu": False},
        "decodes": {"boxes": BoxRule(clamp="none")},
        "normalises": {"input": InputRule(channel_order="bgr")},
        "anchors": {"anchors": OWN.anchors.model_copy(update={"order": "scale_major"})},
    }
    for word, change in changes.items():
        model.conventions = OWN.model_copy(update=change)
        assert word in str(why_not_torchvision(model))
    with pytest.raises(InputError, match="needs a ResNet with batch norm, and its backbone is a MobileNetV2Backbone"):
        torchvision_twin(full(backbone="mobilenet_v2"))
    with pytest.raises(InputError, match="group norm"):
        torchvision_twin(full(norm="group"))


def test_sizes_and_thresholds_stay() -> None:
    found = torchvision_conventions(OWN)
    assert (found.input.size, found.input.max_size) == (96, 96)  # the longer side is limited, as long_side does
    assert found.output == OutputRule(score_threshold=0.1, candidates_per_level=77, nms_iou=0.6, max_detections=33)
    short = OWN.model_copy(update={"input": InputRule(resize="short_side", size=96, max_size=160)})
    assert torchvision_conventions(short).input.max_size == 160
    assert preset_conventions(OWN).p6_source == "C5"
