"""What is read of a torchvision head: pairs of towers, the maps it is fed, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from lw_retinanet.errors import InputError
from lw_retinanet.heads import PRESETS, HeadPlan, block_tower
from lw_retinanet.interop.torchvision_features import head_inputs
from lw_retinanet.interop.torchvision_head import own_towers
from lw_retinanet.interop.torchvision_lighten import light_copy

Make = Callable[..., Any]


@pytest.mark.parametrize("kind", ["v1", "v2", "fcos"])
def test_towers_of_a_pair_compute_what_the_head_computes(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    old = make_detector(kind)
    light = light_copy(old, PRESETS["lw-v3"])
    maps = head_inputs(light, images)
    pairs = own_towers(light, "P3")
    assert [pair.branch for pair in pairs] == ["cls", "bbox"]
    assert own_towers(light, "P4") == []
    assert own_towers(old, "P3") == []
    for pair in pairs:
        assert len(pair.teacher.units) == len(pair.student.units) == 4
        for tower, model in ((pair.teacher, old), (pair.student, light)):
            answers = tower(maps[0])
            predictions = model.head(maps)
            names = {"cls_logits": "cls_logits", "bbox_reg": "bbox_regression", "bbox_ctrness": "bbox_ctrness"}
            expected = {"cls": {"cls_logits"}, "bbox": {"bbox_reg", "bbox_ctrness"} if kind == "fcos" else {"bbox_reg"}}
            assert set(answers) == expected[pair.branch]
            for name, answer in answers.items():
                anchors = 1 if kind == "fcos" else 9
                # (N, anchors * values, H, W) -> (N, H * W * anchors, values)
                flat = answer.unflatten(1, (anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
                flat = flat.relu() if kind == "fcos" and name == "bbox_reg" else flat
                assert torch.equal(flat, predictions[names[name]][:, : flat.shape[1]])


def test_shared_prediction_is_the_very_same_layer(make_detector: Make) -> None:
    light = light_copy(make_detector("v1"), PRESETS["lw-v3-released"])
    cls, bbox = own_towers(light, "P3")
    assert bbox.student.predictions["bbox_reg"] is bbox.teacher.predictions["bbox_reg"]
    assert cls.student.predictions["cls_logits"] is not cls.teacher.predictions["cls_logits"]


def test_features_are_the_heads_inputs_and_flags_stay(make_detector: Make, images: list[Tensor]) -> None:
    # Training would draw one of the sizes; evaluation takes the last.
    model = make_detector("v1", min_size=(32, 48, 64)).train()
    model.backbone.eval()
    seen: list[Tensor] = []
    hook = model.head.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[0]))
    maps = head_inputs(model, images)
    hook.remove()
    assert model.training
    assert model.head.training
    assert not model.backbone.training
    assert not model.backbone.stem.training
    assert [tuple(each.shape[2:]) for each in maps] == [(12, 12), (6, 6), (3, 3), (2, 2), (1, 1)]  # padded to 96 x 96
    assert all(torch.equal(one, two) for one, two in zip(maps, seen, strict=True))
    assert not maps[0].requires_grad
    losses = model(images, [{"boxes": torch.tensor([[4.0, 4.0, 30.0, 30.0]]), "labels": torch.tensor([1])}] * 2)
    assert set(losses) == {"classification", "bbox_regression"}


def test_features_need_images(make_detector: Make) -> None:
    with pytest.raises(InputError, match="at least one"):
        head_inputs(make_detector("v1"), [])


def test_other_models_are_refused_with_what_is_possible(make_detector: Make) -> None:
    with torch.device("meta"):
        ssd = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(InputError, match=r"cannot lighten a SSD: only torchvision's RetinaNet, FCOS and R-CNN with a pyramid.*profile"):
        light_copy(ssd, PRESETS["lw-v3"])
    with pytest.raises(InputError, match=r"wrapped in a DataParallel; lighten the RetinaNet inside"):
        light_copy(nn.DataParallel(make_detector("v1")), PRESETS["lw-v3"])


def test_heads_of_another_make_are_refused(make_detector: Make) -> None:
    model = make_detector("v1")
    head = model.head.regression_head
    head.boxes = head.bbox_reg
    del head.bbox_reg
    with pytest.raises(InputError, match=r"regression_head.*`bbox_reg` \(Conv2d\)"):
        light_copy(model, PRESETS["lw-v3"])
    light_copy(model, HeadPlan(cls={"P3": block_tower("v3")}))  # the other branch is as it should be
    model = make_detector("v1")
    del model.head.classification_head
    with pytest.raises(InputError, match=r"no head\.classification_head"):
        light_copy(model, PRESETS["lw-v3"])
    model = make_detector("v1")
    model.head.classification_head.forward = model.head.classification_head.forward
    with pytest.raises(InputError, match="attribute `forward` of its own"):
        light_copy(model, PRESETS["lw-v3"])


def test_a_head_whose_levels_are_not_alike_is_refused(make_detector: Make) -> None:
    model = make_detector("v1")
    original = type(model.head.regression_head)

    class Scaled(original):  # type: ignore[misc, valid-type]
        """A scale a level, all alike until it is trained."""

        def forward(self, x: list[Tensor]) -> Tensor:
            return torch.cat([scale * super(Scaled, self).forward([maps]) for scale, maps in zip(self.scales, x, strict=False)], dim=1)

    class Counting(original):  # type: ignore[misc, valid-type]
        def forward(self, x: list[Tensor]) -> Tensor:
            if len(x) != 5:
                raise RuntimeError("five maps, please")
            answer: Tensor = super().forward(x)
            return answer

    before = torch.get_rng_state()
    for kind, message in ((Scaled, "other answers for one map alone"), (Counting, "RuntimeError: five maps, please")):
        model.head.regression_head.__class__ = kind
        model.head.regression_head.scales = nn.ParameterList(torch.ones(1) for _ in range(5))
        with pytest.raises(InputError, match=message):
            light_copy(model, PRESETS["lw-v3"])
    assert torch.equal(before, torch.get_rng_state())
