"""The drop-in: torchvision's whole contract holds before and after, and the costs are the formula's."""

import copy
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import tv_tensors
from torchvision.models.detection import RetinaNet, fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.models.detection.retinanet import RetinaNetClassificationHead
from torchvision.transforms import v2

from lw_retinanet.conventions import LEVELS
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import PRESETS, HeadPlan, Level, TowerPlan, block_tower, plan_of
from lw_retinanet.interop.torchvision_features import head_inputs
from lw_retinanet.interop.torchvision_head import own_towers
from lw_retinanet.interop.torchvision_lighten import light_copy, lighten_torchvision

Make = Callable[..., Any]
KINDS = ["v1", "v2", "fcos"]
LOSSES = {"v1": {"classification", "bbox_regression"}}
LOSSES |= {"v2": LOSSES["v1"], "fcos": LOSSES["v1"] | {"bbox_ctrness"}}


def _everywhere(tower: TowerPlan) -> dict[Level, TowerPlan]:
    return dict.fromkeys(get_args(Level), tower)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("retinanet", "lw-stem")])
def test_other_levels_and_all_old_weights_are_bit_equal(kind: str, preset: str, make_detector: Make, images: list[Tensor]) -> None:
    old, plan = make_detector(kind), PRESETS[preset]
    before = {name: tensor.clone() for name, tensor in old.state_dict().items()}
    light = light_copy(old, plan)
    assert type(light) is type(old)
    assert all(torch.equal(tensor, old.state_dict()[name]) for name, tensor in before.items())
    after = light.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert all(".own.0." in name or name.endswith("_head.lightened") for name in after.keys() - before.keys())
    maps = head_inputs(old, images)
    full, new = old.head(maps), light.head(maps)
    p3 = maps[0][0, 0].numel() * (1 if kind == "fcos" else 9)
    assert full.keys() == new.keys()
    for name, answer in full.items():
        owns = plan.cls if name == "cls_logits" else plan.bbox
        assert torch.equal(answer[:, p3:], new[name][:, p3:])
        assert torch.equal(answer[:, :p3], new[name][:, :p3]) == (not owns)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "plan",
    [
        PRESETS["lw-v3"],
        PRESETS["lw-v3-released"],
        HeadPlan(cls={"P3": block_tower("narrow"), "P5": block_tower("dw5")}, bbox={"P4": block_tower("v1")}),
        HeadPlan(cls=_everywhere(block_tower("v3")), bbox=_everywhere(block_tower("v3", predict="shared"))),
    ],
    ids=["lw-v3", "released", "some", "all"],
)
def test_training_gives_the_same_losses_and_reaches_every_parameter(
    kind: str, plan: HeadPlan, make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    light = light_copy(make_detector(kind), plan).train()
    # Large boxes too, so that every level has something to learn.
    targets[0] = {"boxes": torch.cat([targets[0]["boxes"], torch.tensor([[0.0, 0.0, 78.0, 63.0]])]), "labels": torch.tensor([1, 3, 0])}
    losses = light(images, targets)
    assert set(losses) == LOSSES[kind]
    assert all(loss.shape == () and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    trainable = {name: parameter for name, parameter in light.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trainable.items() if parameter.grad is None] == []
    # Frozen: only what no level runs any more.
    frozen = {name for name, _ in light.named_parameters()} - trainable.keys()
    is_all = len(plan.cls) == 5
    assert all(is_all and (".conv." in name or "cls_logits" in name) and ".own." not in name for name in frozen)
    assert bool(frozen) == is_all
    optimiser = torch.optim.SGD(trainable.values(), lr=1e-3)
    old = {name: parameter.detach().clone() for name, parameter in trainable.items()}
    optimiser.step()
    moved = {name for name, parameter in trainable.items() if not torch.equal(parameter, old[name])}
    assert any(".own." in name for name in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_gives_boxes_scores_and_labels(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    light = light_copy(make_detector(kind), PRESETS["lw-v3"]).eval()
    with torch.no_grad():
        results = light(images)
    for image, result in zip(images, results, strict=True):
        assert set(result) == {"boxes", "scores", "labels"}
        assert len(result["boxes"]) == len(result["scores"]) == len(result["labels"]) == 20
        assert (result["boxes"][:, 2:] <= torch.tensor([image.shape[2], image.shape[1]])).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bad_targets_are_refused_as_before(kind: str, make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    light = light_copy(make_detector(kind), PRESETS["lw-v3"]).train()
    with pytest.raises(AssertionError, match="targets should not be none"):
        light(images)
    targets[1]["boxes"][0, 2] = 10.0
    with pytest.raises(AssertionError, match=r"positive height and width.*index 1"):
        light(images, targets)
    targets[1] = {"boxes": torch.zeros((0, 4)), "labels": torch.zeros(0, dtype=torch.int64)}
    assert light(images, targets)["classification"].isfinite()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["lw-v3-released", "lw-dw5", "bbox-v1"])
def test_weights_go_round(kind: str, preset: str, make_detector: Make, images: list[Tensor]) -> None:
    old, plan = make_detector(kind), PRESETS[preset]
    torch.manual_seed(3)
    light = light_copy(old, plan).eval()
    other = light_copy(old, plan).eval()
    maps = head_inputs(light, images)
    assert not torch.equal(other.head(maps)["bbox_regression"], light.head(maps)["bbox_regression"])
    # A safetensors file has no version record, at which torchvision renames the keys of old towers.
    missing, unexpected = other.load_state_dict(load_safetensors(save_safetensors(light.state_dict())))
    assert not missing
    assert not unexpected
    buffer = io.BytesIO()
    torch.save(light, buffer)
    buffer.seek(0)
    for same in (other, copy.deepcopy(light), torch.load(buffer, weights_only=False)):
        assert type(same) is type(light)
        assert all(torch.equal(answer, light.head(maps)[name]) for name, answer in same.head(maps).items())
        for one, two in zip(same(images), light(images), strict=True):
            assert all(torch.equal(one[name], two[name]) for name in two)


class Counting(RetinaNet):
    """As products build on torchvision: something overridden, something added."""

    calls = 0

    def postprocess_detections(self, *args: Any) -> Any:
        self.calls += 1
        return super().postprocess_detections(*args)


class Weighted(RetinaNetClassificationHead):
    factor: Tensor

    def compute_loss(self, *args: Any) -> Any:
        return self.factor * super().compute_loss(*args)


def test_subclasses_stay_what_they_are(make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    model = make_detector("v1")
    model.__class__ = Counting
    head = model.head.classification_head
    head.__class__ = Weighted
    head.register_parameter("factor", nn.Parameter(torch.tensor(1000.0)))
    light = light_copy(model, PRESETS["lw-v3"])
    assert type(light) is Counting
    assert isinstance(light.head.classification_head, Weighted)
    light.eval()(images)
    assert (light.calls, model.calls) == (1, 0)
    weighted = light.train()(images, targets)["classification"]
    weighted.backward()
    assert light.head.classification_head.factor.grad is not None
    with torch.no_grad():
        light.head.classification_head.factor.fill_(1.0)
    # Exact: only a factor differs, up to its rounding.
    torch.testing.assert_close(light(images, targets)["classification"] * 1000, weighted)


def test_a_batch_of_transforms_v2_and_a_frozen_backbone(
    make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> None:
    model = make_detector("v2")
    model.backbone.requires_grad_(False)
    light = light_copy(model, PRESETS["lw-v3"]).train()
    assert not any(parameter.requires_grad for parameter in light.backbone.parameters())
    augment = v2.Compose([v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()])
    samples = []
    for image, target in zip(images, targets, strict=True):
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:])
        samples.append(augment(tv_tensors.Image((image * 255).byte()), {"boxes": boxes, "labels": target["labels"]}))
    losses = light(*map(list, zip(*samples, strict=True)))
    sum(losses.values()).backward()
    assert light.backbone.stem.weight.grad is None
    assert light.head.regression_head.own["0"].conv[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_head_compiles_as_one_graph(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    light = light_copy(make_detector(kind), PRESETS["lw-v3-released"])
    maps = head_inputs(light, images)
    compiled = torch.compile(light.head, backend="eager", fullgraph=True)(maps)
    for name, answer in light.head(maps).items():
        assert torch.equal(compiled[name], answer)


def test_new_layers_follow_dtype_and_keep_the_class_prior(make_detector: Make) -> None:
    light = light_copy(make_detector("v1").to(torch.float64), PRESETS["lw-v3"])
    own = light.head.classification_head.own["0"]
    assert own.cls_logits.weight.dtype == torch.float64
    assert torch.equal(own.cls_logits.bias, light.head.classification_head.cls_logits.bias)
    # He: 32 inputs, so a deviation of sqrt(2 / 32) = 0.25; 1024 weights tell it to a few per cent.
    assert own.conv[0][0].weight.std().item() == pytest.approx(0.25, rel=0.1)


def test_a_light_model_can_be_lightened_at_other_levels(make_detector: Make, images: list[Tensor]) -> None:
    first = light_copy(make_detector("fcos"), PRESETS["lw-v3"])
    second = light_copy(first, HeadPlan(cls={"P4": block_tower("v3")}))
    assert [len(own_towers(second, level)) for level in LEVELS] == [2, 1, 0, 0, 0]
    assert len(own_towers(first, "P4")) == 0
    old, new = (model.state_dict() for model in (first, second))
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())
    maps = head_inputs(second, images)
    assert torch.equal(first.head(maps)["bbox_regression"], second.head(maps)["bbox_regression"])
    with pytest.raises(InputError, match="regression_head is light at P3 already"):
        light_copy(second, HeadPlan(bbox={"P3": block_tower("v1")}))


def test_plans_that_do_not_fit_are_refused(make_detector: Make) -> None:
    model = make_detector("v1")
    shared_unit = TowerPlan(units=("shared", "1x1"), predict="1x1")
    for plan, message in (
        (HeadPlan(), "no level a tower of its own"),
        (HeadPlan(cls={"P3": shared_unit}), "cls P3 of the plan shares units"),
        (plan_of("lw-stem"), "bbox P3 of the plan shares units with other towers, which a torchvision head cannot"),
        (plan_of("lw-v3-p3p4-shared"), "cls P4 of the plan shares units with other towers"),
        (HeadPlan(bbox={"P3": TowerPlan(units=("dw5x5",), width=8)}), r"bbox P3 .* 32 channels.*keeps its width"),
    ):
        with pytest.raises(InputError, match=message):
            light_copy(model, plan)
    model.anchor_generator.sizes = model.anchor_generator.sizes[:3]
    with pytest.raises(InputError, match="names P6, but the model has 3 feature maps, P3 to P5"):
        light_copy(model, HeadPlan(cls={"P6": block_tower("v3")}))


def test_presets_by_name(make_detector: Make, images: list[Tensor]) -> None:
    model = make_detector("v1")
    light = lighten_torchvision(model, "bbox-v3")
    assert [pair.branch for pair in own_towers(light, "P3")] == ["bbox"]
    assert len(light.eval()(images)) == 2
    with pytest.raises(ConfigError, match=r"unknown preset 'lw_v3'; did you mean lw-v3\?"):
        lighten_torchvision(model, "lw_v3")
    # 96 is three times the width of this head: 32*96 + 4*96*96*9 MACs a cell against 4*32*32*9.
    with pytest.raises(ConfigError, match="lw-narrow would not make this RetinaNet cheaper"):
        lighten_torchvision(model, "lw-narrow")


@pytest.mark.parametrize("block", ["v1-bn", "v3-bn"])
def test_towers_with_batch_norm(block: str, make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    model = make_detector("v1")
    light = lighten_torchvision(model, f"both-{block}", images=images, fit_steps=2)
    norms = [layer for layer in light.head.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert len(norms) == 2 * 4 * (2 if block == "v1-bn" else 1)
    assert all(norm.training == light.training for norm in norms)
    losses = light.train()(images, targets)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for norm in norms for parameter in norm.parameters())


def test_filled_towers_with_batch_norm_answer_as_the_plain_ones(make_detector: Make, images: list[Tensor]) -> None:
    # Of v3; a factorised kernel is too sensitive to rounding on so few cells.
    model = make_detector("v1")
    maps = head_inputs(model, images)
    with torch.no_grad():
        plain, normed = (
            lighten_torchvision(model, f"both-{block}", images=images, fit_steps=0).eval().head(maps) for block in ("v3", "v3-bn")
        )
    for name, answer in plain.items():
        torch.testing.assert_close(normed[name], answer, rtol=1e-2, atol=1e-3 * float(answer.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("levels", ["P3", "all", "rpn"])
def test_two_processes_keep_the_same_weights(levels: str, tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "localhost"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("two_processes.py")), str(tmp_path / "meet"), str(rank), levels],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    answers = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    # Each saw another image; what they print is a sum over all weights after three steps.
    (first, _), (second, _) = answers
    assert first.splitlines()[-1] == second.splitlines()[-1]


MAKERS: dict[str, Callable[..., Any]] = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2, "fcos": fcos_resnet50_fpn}
CELLS = 100 * 100  # of P3 at 800 x 800


def _macs(model: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.head(list(model.backbone(torch.empty((1, 3, 800, 800), device="meta")).values()))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("kind", KINDS)
def test_macs_saved_equal_the_formula(kind: str) -> None:
    with torch.device("meta"):
        model = MAKERS[kind](weights=None, weights_backbone=None, num_classes=91).eval()
    logits, deltas = (91, 4 + 1) if kind == "fcos" else (9 * 91, 9 * 4)
    tower = 4 * 256 * 256 * 9
    cls, bbox = tower + 256 * logits * 9, tower + 256 * deltas * 9
    v3, narrow = 4 * 256 * 256, 256 * 96 + 4 * 96 * 96 * 9
    expected = {
        "lw-v3": cls + bbox - (2 * v3 + 256 * (logits + deltas)),
        "bbox-v3": bbox - (v3 + 256 * deltas),
        "lw-narrow": cls + bbox - (2 * narrow + 96 * (logits + deltas)),
    }
    before = _macs(model)
    for preset, saved in expected.items():
        assert before - _macs(light_copy(model, PRESETS[preset])) == saved * CELLS
