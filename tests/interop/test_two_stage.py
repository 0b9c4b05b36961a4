"""Torchvision's R-CNNs with a light proposal network on P2: the whole contract holds before and after, and the costs are the formula's."""

import copy
import io
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, fasterrcnn_resnet50_fpn, fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

import lw_retinanet as lw
from lw_retinanet.counting.detector_cost import count_detector
from lw_retinanet.counting.imbalance import rank
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import PRESETS, HeadPlan, Level, TowerPlan, block_tower
from lw_retinanet.interop.torchvision_features import head_inputs
from lw_retinanet.interop.torchvision_head import own_towers
from lw_retinanet.interop.torchvision_lighten import light_copy, lighten_torchvision, plan_for
from lw_retinanet.training.distillation import box_distillation, class_distillation

WIDTH, ANCHORS = 32, 3
KINDS: dict[str, type[FasterRCNN]] = {"faster": FasterRCNN, "mask": MaskRCNN, "keypoint": KeypointRCNN}
V3 = TowerPlan(units=("1x1",), predict="1x1")
NARROW = TowerPlan(units=("1x1", "3x3"), width=16, predict="1x1")
P2 = HeadPlan(cls={"P3": V3}, bbox={"P3": V3})  # a plan's P3 is the model's first map
EVERYWHERE: dict[Level, TowerPlan] = dict.fromkeys(get_args(Level)[:4], NARROW)
OWN = {f"rpn.head.own.0.{name}.{kind}" for name in ("conv.0.0", "cls_logits", "bbox_pred") for kind in ("weight", "bias")}
MARK = "rpn.head.lightened"

pytestmark = [
    pytest.mark.filterwarnings("ignore:RCNN always returns:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


def _detector(kind: str = "faster") -> Any:
    """As if trained: strides 4, 8, 16 and 32, objectness that differs from cell to cell, and some proposals that are sure."""
    torch.manual_seed(0)
    c2 = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU())
    c3, c4 = (nn.Sequential(nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()) for _ in range(2))
    body = nn.Sequential(OrderedDict(c2=c2, c3=c3, c4=c4))
    backbone = BackboneWithFPN(body, {"c2": "0", "c3": "1", "c4": "2"}, [16, 16, 16], WIDTH)
    anchors = AnchorGenerator(((8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 4)
    parts: dict[str, Any] = {
        "box_roi_pool": MultiScaleRoIAlign(["0", "1", "2"], 3, 1),
        "box_head": TwoMLPHead(WIDTH * 9, 16),
        "box_predictor": FastRCNNPredictor(16, 4),
    }
    if kind != "faster":
        parts[f"{kind}_roi_pool"] = MultiScaleRoIAlign(["0", "1", "2"], 4, 1)
    if kind == "mask":
        parts |= {"mask_head": MaskRCNNHeads(WIDTH, (16,), 1), "mask_predictor": MaskRCNNPredictor(16, 16, 4)}
    if kind == "keypoint":
        parts |= {"keypoint_head": KeypointRCNNHeads(WIDTH, (16,)), "keypoint_predictor": KeypointRCNNPredictor(16, 2)}
    counts = {f"rpn_p{when}_nms_top_n_{mode}": 40 for when in ("re", "ost") for mode in ("train", "test")}
    sizes = {"min_size": 64, "max_size": 96, "box_detections_per_img": 10, "box_score_thresh": 0.0}
    model: Any = KINDS[kind](backbone, rpn_anchor_generator=anchors, **parts, **counts, **sizes)
    with torch.no_grad():
        for name, parameter in model.rpn.head.named_parameters():
            if parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.05 if "conv" in name else 0.3)
        model.rpn.head.bbox_pred.weight.mul_(0.3)
        model.rpn.head.cls_logits.bias.fill_(-1.0)
    return model


def _targets(kind: str = "faster") -> list[dict[str, Tensor]]:
    boxes = [torch.tensor([[4.0, 6.0, 40.0, 44.0], [30.0, 20.0, 38.0, 27.0]]), torch.tensor([[10.0, 10.0, 42.0, 40.0]])]
    targets: list[dict[str, Tensor]] = [{"boxes": each, "labels": torch.ones(len(each), dtype=torch.int64)} for each in boxes]
    for target, size in zip(targets, ((64, 80), (70, 64)), strict=True):
        number = len(target["boxes"])
        if kind == "mask":
            target["masks"] = torch.ones((number, *size), dtype=torch.uint8)
        if kind == "keypoint":
            target["keypoints"] = torch.tensor([[[20.0, 20.0, 1.0], [12.0, 12.0, 1.0]]]).expand(number, -1, -1)
    return targets


def _answers(model: Any, images: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    with torch.no_grad():
        answers: tuple[list[Tensor], list[Tensor]] = model.rpn.head(head_inputs(model, images))
    return answers


def _same(ones: list[dict[str, Tensor]], others: list[dict[str, Tensor]]) -> bool:
    return all(
        one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one) for one, two in zip(ones, others, strict=True)
    )


@pytest.fixture
def calibration() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    coarse = [torch.rand(1, 3, 6, width, generator=generator) for width in (7, 8, 7)]
    return [nn.functional.interpolate(each, scale_factor=12, mode="bilinear")[0] for each in coarse]


@pytest.mark.parametrize("kind", KINDS)
def test_other_levels_and_all_old_weights_are_bit_equal(kind: str, images: list[Tensor]) -> None:
    old = _detector(kind)
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    light = light_copy(old, P2)
    assert type(light) is type(old)
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in before.items())
    after = light.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert after.keys() - before.keys() == OWN | {MARK}
    for full, new in zip(_answers(old, images), _answers(light, images), strict=True):
        assert [torch.equal(one, two) for one, two in zip(full, new, strict=True)] == [False, True, True, True]
        assert [one.shape for one in full] == [two.shape for two in new]
    assert [pair.branch for pair in own_towers(light, "P2")] == ["rpn"]
    assert own_towers(light, "P3") == own_towers(old, "P2") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plan", [P2, HeadPlan(cls=EVERYWHERE, bbox=EVERYWHERE)], ids=["P2", "all"])
def test_training_gives_the_same_losses_and_reaches_every_parameter(kind: str, plan: HeadPlan, images: list[Tensor]) -> None:
    full = _detector(kind).train()
    light = light_copy(full, plan)
    losses = light(images, _targets(kind))
    assert losses.keys() == full(images, _targets(kind)).keys() >= {"loss_objectness", "loss_rpn_box_reg"}
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trainable = {name: parameter for name, parameter in light.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []
    # Frozen: only what no level runs any more.
    frozen = {name for name, _ in light.named_parameters()} - trainable.keys()
    assert all(name.startswith("rpn.head.") and ".own." not in name for name in frozen)
    assert bool(frozen) == (len(plan.cls) == 4)
    with pytest.raises(AssertionError, match="targets should not be none"):
        light(images)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_go_round_and_answers_have_the_old_form(kind: str, images: list[Tensor]) -> None:
    old = _detector(kind)
    torch.manual_seed(3)
    light, other = (light_copy(old, P2).eval() for _ in range(2))
    with torch.no_grad():
        found = light(images)
    assert [result.keys() for result in found] == [result.keys() for result in old.eval()(images)]
    assert all(len(result["boxes"]) == len(result["scores"]) == 10 for result in found)
    assert not torch.equal(_answers(other, images)[0][0], _answers(light, images)[0][0])
    # A safetensors file has no version record, at which torchvision renames the keys of old proposal networks.
    other.load_state_dict(load_safetensors(save_safetensors(light.state_dict())), strict=True)
    buffer = io.BytesIO()
    torch.save(light, buffer)
    buffer.seek(0)
    for same in (other, copy.deepcopy(light), torch.load(buffer, weights_only=False)):
        assert type(same) is type(light)
        with torch.no_grad():
            assert _same(same(images), found)
    with pytest.raises(RuntimeError, match="lightened"):
        old.load_state_dict(light.state_dict(), strict=True)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"rpn.head: these are weights of a full head, and this head is light; load them into the"):
            light.load_state_dict(old.state_dict(), strict=strict)


@pytest.mark.parametrize("kind", ["faster", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mask", "keypoint"))])
def test_torchscript(kind: str, images: list[Tensor]) -> None:
    light = lighten_torchvision(_detector(kind), "lw-v3", light_pyramid=kind == "faster").eval()
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(light), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    with torch.no_grad():
        found = light(images)
        assert all(len(result["boxes"]) == 10 for result in found)
        for one, two in zip(scripted(images)[1], found, strict=True):
            assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in two)
    torch.manual_seed(1)
    losses = scripted.train()(images, _targets(kind))[0]
    torch.manual_seed(1)
    wanted = light.train()(images, _targets(kind))
    assert losses.keys() == wanted.keys()
    torch.testing.assert_close(dict(losses), wanted)


def test_averages_autocast_export_and_compilation(images: list[Tensor]) -> None:
    light = lighten_torchvision(_detector(), "lw-v3").eval()
    averaged = AveragedModel(light, use_buffers=True)
    averaged.update_parameters(light)
    assert averaged.module.state_dict().keys() == light.state_dict().keys()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.isfinite(found["boxes"]).all() for found in averaged.eval()(images))
    maps, wanted = head_inputs(light, images), _answers(light, images)
    with torch.no_grad():
        for made in (torch.export.export(light.rpn.head, (maps,)).module(), torch.compile(light.rpn.head, backend="eager", fullgraph=True)):
            for one, two in zip(made(maps), wanted, strict=True):
                assert all(torch.allclose(answer, full, atol=1e-6) for answer, full in zip(one, two, strict=True))
    halves = light.to(torch.bfloat16).state_dict().values()
    assert all(tensor.dtype == torch.bfloat16 for tensor in halves if tensor.is_floating_point())


class OwnHead(RPNHead):
    def forward(self, x: list[Tensor]) -> Any:  # no types for TorchScript
        return super().forward(x)


class OwnModel(FasterRCNN):
    calls = 0

    def forward(self, images: Any, targets: Any = None) -> Any:
        self.calls += 1
        return super().forward(images, targets)


def test_subclasses_stay_what_they_are(images: list[Tensor]) -> None:
    model = _detector().eval()
    model.__class__, model.rpn.head.__class__ = OwnModel, OwnHead
    light: Any = light_copy(model, P2)
    assert type(light) is OwnModel
    assert isinstance(light.rpn.head, OwnHead)
    with torch.no_grad():
        assert len(light(images)) == 2
    assert (light.calls, model.calls) == (1, 0)
    assert torch.equal(_answers(light, images)[1][3], _answers(model, images)[1][3])


CELLS = 200 * 200  # of P2 at 800 x 800


def _macs(model: Any) -> int:
    maps = [torch.empty((1, 256, side, side), device="meta") for side in (200, 100, 50, 25, 13)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.rpn.head(maps)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("make", "depth"), [(fasterrcnn_resnet50_fpn, 1), (fasterrcnn_resnet50_fpn_v2, 2)])
def test_macs_saved_equal_the_formula(make: Callable[..., Any], depth: int) -> None:
    with torch.device("meta"):
        model = make(weights=None, weights_backbone=None).eval()
    outputs = 3 * (1 + 4)
    tower = depth * 256 * 256 * 9 + 256 * outputs
    expected = {
        "lw-v3": tower - (depth * 256 * 256 + 256 * outputs),
        "lw-narrow": tower - (256 * 96 + depth * 96 * 96 * 9 + 96 * outputs),
        "lw-dw5": tower - (256 * 25 + depth * 256 * 256 + 256 * outputs),
    }
    for preset, saved in expected.items():
        light = light_copy(model, plan_for(model, preset))
        assert _macs(model) - _macs(light) == saved * CELLS
    # The count of the whole model, by level, sees the same and nothing else.
    full, counted = (count_detector(each, (800, 800)) for each in (model, light))
    assert full.macs - counted.macs == full.blocks["D2"].macs - counted.blocks["D2"].macs == expected["lw-dw5"] * CELLS
    assert [branch.is_own for branch in counted.branches] == [True, False, False, False, False]


def test_the_example_in_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "lightening.md").read_text(encoding="utf-8")
    code = text.split("<!-- from tests/interop/test_two_stage.py -->\n```python\n")[1].split("```")[0]
    exec(code, {"lw": lw, "fasterrcnn_resnet50_fpn": fasterrcnn_resnet50_fpn})
    assert capsys.readouterr().out.split() == code.split("# ")[-1].split()


@pytest.mark.parametrize("fit_steps", [0, 3])
def test_only_what_is_new_changes(fit_steps: int, calibration: list[Tensor]) -> None:
    model = _detector().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen: list[str] = []

    def show(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        seen.append(what)
        return items

    light = lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=fit_steps, progress=show)
    assert seen == ["look at images for P2", "closed form for P2", "fit P2"][: 3 if fit_steps else 2]
    for state in (model.state_dict(), light.state_dict()):
        assert all(torch.equal(tensor, state[name]) for name, tensor in before.items())
    assert all(module.training for module in (*model.modules(), *light.modules()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in light.parameters())
    for full, new in zip(_answers(model, calibration), _answers(light, calibration), strict=True):
        assert all(torch.equal(one, two) for one, two in zip(full[1:], new[1:], strict=True))


def _losses(model: Any, light: Any, images: list[Tensor]) -> tuple[float, float]:
    """Class and box distillation of the light P2 against the full one."""
    (old_logits, old_deltas), (logits, deltas) = (
        tuple(each[0].permute(0, 2, 3, 1).reshape(len(images), -1, size) for each, size in zip(_answers(one, images), (1, 4), strict=True))
        for one in (model, light)
    )
    return float(class_distillation(logits, old_logits)), float(box_distillation(deltas, old_deltas, old_logits))


def test_images_help_and_steps_help_more(calibration: list[Tensor]) -> None:
    model = _detector().eval()
    both = [*calibration, *(image.flip(2) for image in calibration)]
    blind = lighten_torchvision(model, P2)
    solved, fitted = (lighten_torchvision(model, P2, images=calibration, fit_steps=steps) for steps in (0, 60))
    first, second, third = (_losses(model, light, both) for light in (blind, solved, fitted))
    assert second[0] < 0.5 * first[0]
    assert second[1] < first[1]
    assert third[0] < second[0]
    assert third[1] < second[1]


def _with_light_pyramid(model: Any, **settings: Any) -> Any:
    return lighten_torchvision(model, "lw-v3", light_pyramid=True, **settings)


def test_a_light_pyramid_saves_its_macs_and_the_finder_names_it() -> None:
    with torch.device("meta"):
        model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).eval()
    ranking = rank(model, (800, 800))
    old, new = 256 * 256 * 9 * CELLS, (256 * 9 + 256 * 256) * CELLS
    assert ranking.cost.output_macs == old
    assert ranking.rows[0].place == "D2 rpn"
    assert ranking.verdict[1] == (
        f"P2's own 3x3 convolution takes {old / ranking.cost.macs:.1%}, and a depthwise and a 1x1 convolution in its place save "
        f"{(old - new) / ranking.cost.macs:.1%}."
    )
    with torch.device("meta"):
        model.backbone.fpn.layer_blocks[0] = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1, groups=256), nn.Conv2d(256, 256, 1))
    light = rank(model, (800, 800))
    assert ranking.cost.macs - light.cost.macs == old - new
    assert not any("own 3x3" in sentence for sentence in light.verdict)


def test_a_light_pyramid_keeps_the_contract(images: list[Tensor], calibration: list[Tensor]) -> None:
    model = _detector().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    light = _with_light_pyramid(model, images=calibration, fit_steps=2)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    block = "backbone.fpn.layer_blocks.0."
    assert light.state_dict().keys() - before.keys() == OWN | {MARK, f"{block}1.weight", f"{block}1.bias"}
    assert before.keys() - light.state_dict().keys() == {f"{block}0.bias"}
    full_maps, maps = head_inputs(model, images), head_inputs(light, images)
    assert [torch.equal(one, two) for one, two in zip(full_maps, maps, strict=True)] == [False, True, True, True]
    again = _with_light_pyramid(model)
    again.load_state_dict(load_safetensors(save_safetensors(light.state_dict())), strict=True)
    buffer = io.BytesIO()
    torch.save(light, buffer)
    buffer.seek(0)
    with torch.no_grad():
        found = light(images)
        for same in (again.eval(), copy.deepcopy(light), torch.load(buffer, weights_only=False)):
            assert _same(same(images), found)
    for one, other in ((model, light), (light, model)):
        with pytest.raises(RuntimeError, match=r"lightened|full head"):
            one.load_state_dict(other.state_dict(), strict=True)
    losses = light.train()(images, _targets())
    sum(losses.values()).backward()
    assert [name for name, parameter in light.named_parameters() if parameter.grad is None] == []


def test_a_light_pyramid_gives_nearly_the_old_map(calibration: list[Tensor]) -> None:
    model = _detector().eval()
    both = [*calibration, *(image.flip(2) for image in calibration)]
    old = head_inputs(model, both)[0]

    def missed(light: Any) -> float:
        return float((head_inputs(light, both)[0] - old).square().mean() / old.var())

    blind = _with_light_pyramid(model)
    solved, fitted = (_with_light_pyramid(model, images=calibration, fit_steps=steps) for steps in (0, 60))
    assert missed(solved) < 0.5 * missed(blind)
    assert missed(fitted) < missed(solved)
    assert _losses(model, solved, both)[0] < 0.5 * _losses(model, blind, both)[0]


def test_where_the_pyramid_cannot_be_light(make_detector: Callable[..., Any]) -> None:
    with torch.device("meta"):
        normed = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None)
    keeps: Any = {"light_pyramid": True, "keep_pyramid": True}
    second: Any = HeadPlan(cls={"P4": V3}, bbox={"P4": V3})
    for model, to, settings, message in (
        (normed, "lw-v3", {"light_pyramid": True}, r"layer_blocks\[0\] is one 3x3 convolution with a bias, without a norm; leave it out"),
        (make_detector("v1"), "lw-v3", {"light_pyramid": True}, "light_pyramid is for R-CNNs; the RetinaNet's finest map is made anew"),
        (_detector(), "lw-v3", keeps, "keep_pyramid and light_pyramid contradict each other"),
        (_detector(), second, {"light_pyramid": True}, r"goes with a plan that makes the model's first map \(its P3\) light"),
    ):
        with pytest.raises(InputError, match=message):
            lighten_torchvision(model, to, **settings)
    with pytest.raises(InputError, match="light_pyramid is for torchvision's R-CNNs"):
        lw.lighten("runs/mine", light_pyramid=True)


def test_models_that_cannot_be_lightened_are_refused_and_stay_as_they_are() -> None:
    class OtherNetwork(nn.Module):
        pass

    flat = nn.Sequential(nn.Conv2d(3, 8, 8, 8))
    flat.out_channels = 8  # type: ignore[assignment]
    flat_model = FasterRCNN(flat, 3, rpn_anchor_generator=AnchorGenerator(((32,),), ((1.0,),)))
    other_network, other_head, joint_head, one_conv = (_detector() for _ in range(4))
    other_network.rpn = OtherNetwork()
    other_head.rpn.head = nn.Conv2d(WIDTH, 15, 1)

    class Joint(RPNHead):
        def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            logits, deltas = super().forward(x)
            return [each - logits[-1].mean() for each in logits], deltas

    joint_head.rpn.head.__class__ = Joint
    one_conv.rpn.head.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)  # as torchvision had it before 0.13
    for model, message in (
        (
            flat_model,
            "cannot lighten this FasterRCNN: it has no feature pyramid.* choose a model with one, for instance fasterrcnn_resnet50",
        ),
        (other_network, r"its rpn \(OtherNetwork\) must have an `anchor_generator` and a `head` as torchvision's RegionProposalNetwork"),
        (
            other_head,
            r"rpn.head \(Conv2d\) must have its tower in `conv` \(Sequential\) and its prediction in `cls_logits` and `bbox_pred`",
        ),
        (one_conv, r"rpn.head \(RPNHead\) must have its tower in `conv` \(Sequential\)"),
        (joint_head, r"rpn.head \(Joint\) does not treat its levels one by one.*use torchvision's own head there"),
    ):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        parts = [(name, type(part)) for name, part in model.named_modules()]
        with pytest.raises(InputError, match=message) as caught:
            lw.lighten(model, "lw-v3")
        assert "\n" not in str(caught.value)
        assert parts == [(name, type(part)) for name, part in model.named_modules()]
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_plans_that_do_not_fit_are_refused() -> None:
    model = _detector()
    for plan, kind, message in (
        ("bbox-v3", InputError, r"has one tower for objectness and boxes.*same in both branches; choose lw-narrow, lw-v3 or both- with"),
        ("lw-v3-released", InputError, "has one tower for objectness and boxes"),
        ("both-v2", ConfigError, "both-v2 alternates 2 kinds of units.* has 1 in all; choose lw-narrow or lw-v3"),
        ("retinanet", InputError, "no level a tower of its own"),
        (HeadPlan(cls={"P7": V3}, bbox={"P7": V3}), InputError, "names P6, but the model has 4 feature maps, P2 to P5"),
        ("lw-narrow", ConfigError, "lw-narrow would not make this FasterRCNN cheaper"),  # 96 is three times the width of this model
        ("lw-v4", ConfigError, "unknown preset 'lw-v4'"),
    ):
        with pytest.raises(kind, match=message):
            lighten_torchvision(model, plan)
    with pytest.raises(InputError, match=r"rpn\.head is light at P2 already"):
        light_copy(light_copy(model, P2), P2)
    with pytest.raises(InputError, match=r"wrapped in a DataParallel; lighten the FasterRCNN inside"):
        light_copy(nn.DataParallel(model), P2)
    # The remedies work.
    assert light_copy(light_copy(model, P2), HeadPlan(cls={"P4": V3}, bbox={"P4": V3})).rpn.head.own.keys() == {"0", "1"}
    assert lighten_torchvision(model, "lw-v3").rpn.head.own["0"].conv[0][0].kernel_size == (1, 1)
    assert lighten_torchvision(model, "both-v1") is not model
    assert PRESETS["lw-v3"].cls["P3"] == block_tower("v3")  # a preset is adapted to the depth in a copy
