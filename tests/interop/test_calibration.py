"""Lightening torchvision models with calibration images: what may change, what must not, and that it helps."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelP6P7

from lw_retinanet.errors import ImageError, InputError
from lw_retinanet.heads import PRESETS, HeadPlan, block_tower
from lw_retinanet.interop import torchvision_lighten
from lw_retinanet.interop.torchvision_features import finest_output, head_inputs, level_inputs
from lw_retinanet.interop.torchvision_head import level_pair
from lw_retinanet.interop.torchvision_lighten import light_copy, lighten_torchvision
from lw_retinanet.lightening.calibration_images import find_calibration_images
from lw_retinanet.lightening.filling import LighteningSettings
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.training.distillation import class_distillation

WIDTH, CLASSES = 32, 3
KINDS = ["v1", "v2", "fcos"]
OUTPUT = "backbone.fpn.layer_blocks.0.0."


def _backbone(extra: ExtraFPNBlock | None = None, norm: Callable[..., nn.Module] | None = None) -> nn.Module:
    """Strides 8, 16, 32 and torchvision's own pyramid on top."""
    body = nn.Sequential(
        OrderedDict(c3=nn.Conv2d(3, 16, 8, 8), c4=nn.Sequential(nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1)), c5=nn.Conv2d(16, 16, 3, 2, 1))
    )
    layers = {"c3": "0", "c4": "1", "c5": "2"}
    return BackboneWithFPN(body, layers, [16, 16, 16], WIDTH, extra_blocks=extra or LastLevelP6P7(16, WIDTH), norm_layer=norm)


def _detector(kind: str, backbone: nn.Module | None = None) -> Any:
    """As if trained: answers that differ from cell to cell, and some that are sure."""
    torch.manual_seed(0)
    sizes: Any = {"min_size": 64, "max_size": 96}
    backbone = backbone or _backbone()
    if kind == "fcos":
        model: Any = FCOS(backbone, CLASSES, **sizes)
    else:
        norm = partial(nn.GroupNorm, 32) if kind == "v2" else None
        model = RetinaNet(backbone, CLASSES, head=RetinaNetHead(WIDTH, 9, CLASSES, norm_layer=norm), **sizes)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if ".conv." in name and parameter.ndim == 4:
                nn.init.kaiming_normal_(parameter)
            elif parameter.ndim == 4:
                nn.init.normal_(parameter, std=0.1)
        model.head.classification_head.cls_logits.bias.fill_(-2.0)
        for name, parameter in model.backbone.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return model


@pytest.fixture
def calibration() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    coarse = [torch.rand(1, 3, 6, width, generator=generator) for width in (7, 8, 7)]
    return [nn.functional.interpolate(each, scale_factor=12, mode="bilinear")[0] for each in coarse]


def _cells(model: Any, images: list[Tensor]) -> int:
    maps = head_inputs(model, images)
    return int(maps[0][0, 0].numel()) * int(model.anchor_generator.num_anchors_per_location()[0])


def _answers(model: Any, images: list[Tensor]) -> dict[str, Tensor]:
    with torch.no_grad():
        answers: dict[str, Tensor] = model.head(head_inputs(model, images))
    return answers


@pytest.mark.parametrize("fit_steps", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_only_what_is_new_changes(kind: str, fit_steps: int, calibration: list[Tensor]) -> None:
    model = _detector(kind).train()
    model.backbone.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    light = lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=fit_steps)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, light.state_dict()[name])}
    assert changed == {f"{OUTPUT}weight", f"{OUTPUT}bias"}
    assert all(module.training for module in (*model.modules(), *light.modules()))
    frozen = {name for name, parameter in light.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert all(parameter.grad is None for parameter in light.parameters())
    full, new = _answers(model, calibration), _answers(light, calibration)
    p3 = _cells(model, calibration)
    for name, answer in full.items():
        assert torch.equal(answer[:, p3:], new[name][:, p3:])
        assert not torch.equal(answer[:, :p3], new[name][:, :p3])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["lw-v3", "lw-v3-released", "bbox-v1"])
def test_images_help(kind: str, preset: str, calibration: list[Tensor]) -> None:
    model = _detector(kind).eval()
    full, p3 = _answers(model, calibration), _cells(model, calibration)

    def missed(light: Any) -> dict[str, float]:
        said = {name: answer[:, :p3] for name, answer in _answers(light, calibration).items()}
        return {name: float((said[name] - full[name][:, :p3]).square().mean() / full[name][:, :p3].var()) for name in full}

    blind, seeing = (missed(lighten_torchvision(model, preset, images=images, fit_steps=0)) for images in (None, calibration))
    for name, error in blind.items():
        assert seeing[name] < 0.8 * error or error == 0  # the class branch of bbox-v1 stays


def test_fitting_goes_on_from_the_closed_form(calibration: list[Tensor]) -> None:
    model = _detector("v1").eval()
    both = [*calibration, *(image.flip(2) for image in calibration)]
    p3 = _cells(model, both)
    full = _answers(model, both)["cls_logits"][:, :p3]
    losses = []
    for fit_steps in (0, 200):
        light = lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=fit_steps)
        losses.append(float(class_distillation(_answers(light, both)["cls_logits"][:, :p3], full)))
    assert losses[1] < 0.95 * losses[0]


def test_same_seed_same_model(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    one, two, other = (lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=8, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_the_pyramid_is_kept_on_demand_and_for_one_branch(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    for settings in ({"to": "lw-v3", "keep_pyramid": True}, {"to": "bbox-v3"}):
        light = lighten_torchvision(model, images=calibration, fit_steps=0, **settings).state_dict()
        assert all(torch.equal(tensor, light[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_level_pair_and_what_enters_it(kind: str, calibration: list[Tensor]) -> None:
    model = _detector(kind).train()
    light = light_copy(model, PRESETS["lw-v3"])
    block = light.backbone.fpn.layer_blocks[0]
    level = level_pair(model, light, "P3", output=block)
    assert level.num_anchors == (1 if kind == "fcos" else 9)
    assert level.output is block
    assert level.old_output is not block
    maps = list(level_inputs(model, calibration, level))
    assert all(module.training for module in model.modules())
    for found, image in zip(maps, calibration, strict=True):
        finest = head_inputs(model, [image])[0]
        with torch.no_grad():
            assert torch.equal(level.old_maps(found), finest)
            answers = model.head([finest])
            boxes = level.old["bbox"](finest)["bbox_reg"]
        # Both heads list the values of a cell anchor by anchor.
        rows = boxes.permute(0, 2, 3, 1).reshape(1, -1, 4)
        if kind == "fcos":
            assert (rows < 0).any()  # before the ReLU that FCOS ends in
            rows = rows.relu()
        torch.testing.assert_close(rows, answers["bbox_regression"])
    without = level_pair(model, light, "P3")
    assert torch.equal(next(level_inputs(model, calibration, without)), head_inputs(model, calibration[:1])[0])


def test_one_branch_after_the_other(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    first = lighten_torchvision(model, HeadPlan(cls={"P3": block_tower("v3")}), images=calibration, fit_steps=0)
    light = light_copy(first, HeadPlan(bbox={"P3": block_tower("v3")}))
    level = level_pair(first, light, "P3")
    # What the class branch says is by now what its own tower says.
    assert level.old["cls"].predictions["cls_logits"] is light.head.classification_head.own["0"].cls_logits
    assert [pair.branch for pair in level.pairs] == ["bbox"]
    second = lighten_torchvision(first, HeadPlan(bbox={"P3": block_tower("v3")}), images=calibration, fit_steps=0)
    one, two = _answers(first, calibration), _answers(second, calibration)
    assert torch.equal(one["cls_logits"], two["cls_logits"])
    assert not torch.equal(one["bbox_regression"], two["bbox_regression"])


def test_a_coarser_level(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    both = HeadPlan(cls={"P4": block_tower("v3")}, bbox={"P4": block_tower("v3")})
    light = lighten_torchvision(model, both, images=calibration, fit_steps=0)
    assert all(torch.equal(tensor, light.state_dict()[name]) for name, tensor in model.state_dict().items())
    full, new, p3 = _answers(model, calibration), _answers(light, calibration), _cells(model, calibration)
    assert torch.equal(full["cls_logits"][:, :p3], new["cls_logits"][:, :p3])
    assert not torch.equal(full["cls_logits"], new["cls_logits"])


class _FromFinest(LastLevelP6P7):
    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        answers, names = super().forward(p, c, names)
        return [*answers[:-1], answers[-1] + p[0].mean()], names


class _WithMasks(RetinaNet):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.masks = nn.Conv2d(WIDTH, 1, 1)


class _Scaled(RetinaNet):
    """Not a map of the pyramid, but something made of several, enters the head."""

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        batch, _ = self.transform(images)
        maps = list(self.backbone(batch.tensors).values())
        return self.head([maps[0], maps[1] + maps[0][..., ::2, ::2], *maps[2:]])


def test_the_pyramid_is_changed_only_where_nobody_else_reads_it(calibration: list[Tensor], make_detector: Callable[..., Any]) -> None:
    usual = _detector("v1")
    assert finest_output(usual, calibration[0]) is usual.backbone.fpn.layer_blocks[0]
    sizes: Any = {"min_size": 64, "max_size": 96}
    for model in (
        make_detector("v1"),
        _detector("v1", _backbone(_FromFinest(16, WIDTH))),
        _detector("v1", _backbone(norm=nn.BatchNorm2d)),
        _WithMasks(_backbone(), CLASSES, **sizes),
        _Scaled(_backbone(), CLASSES, **sizes),
    ):
        assert finest_output(model, calibration[0]) is None
        light = lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=0)
        assert all(torch.equal(tensor, light.state_dict()[name]) for name, tensor in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_files_pil_images_arrays_and_tensors_are_alike(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (64, 72, 3), dtype=np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    model = _detector("v1")
    forms: list[Any] = [[tmp_path / "a.png"], [str(tmp_path)], tmp_path, [Image.fromarray(array)], [array], [tensor], tensor[None]]
    states = [lighten_torchvision(model, "bbox-v3", images=form, fit_steps=0).state_dict() for form in forms]
    for state in states[1:]:
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "images is empty"),
        (torch.zeros(3, 8, 8), r"images\[0\] has shape \(8, 8\); give one image as \(3, H, W\)"),
        ([torch.zeros(3, 8, 8), torch.zeros(1, 8, 8)], r"images\[1\] has shape \(1, 8, 8\)"),
        ([torch.zeros(3, 0, 8)], r"shape \(3, 0, 8\)"),
        ([torch.zeros(3, 8, 8, dtype=torch.uint8)], r"images\[0\] is torch.uint8; give floats .*image / 255"),
        ([torch.full((3, 8, 8), float("nan"))], r"images\[0\] holds values that are not finite"),
        ([np.zeros((8, 8, 3))], r"images\[0\]: an array must be .* float64"),
        ([7], r"images\[0\]: expected a file"),
        (["gone.jpg"], "gone.jpg: no such file or folder"),
        (Path("gone"), "gone"),
    ],
)
def test_images_of_no_use_are_refused(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        lighten_torchvision(_detector("v1"), "lw-v3", images=images)
    assert "\n" not in str(caught.value)


def test_an_image_that_cannot_be_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImageError, match=r"a\.jpg: broken JPEG"):
        lighten_torchvision(_detector("v1"), "lw-v3", images=[tmp_path / "a.jpg"])


def test_settings_that_mean_nothing(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    with pytest.raises(InputError, match="fit_steps=5 needs images"):
        lighten_torchvision(model, "lw-v3", fit_steps=5)
    with pytest.raises(InputError, match="fit_steps must be a whole number, 0 or more, got -1"):
        lighten_torchvision(model, "lw-v3", images=calibration, fit_steps=-1)
    with pytest.raises(InputError, match=r"float32 weights, the model has torch\.float64"):
        lighten_torchvision(_detector("v1").double(), "lw-v3", images=calibration)
    with torch.no_grad():
        model.backbone.fpn.inner_blocks[0][0].weight.fill_(float("nan"))
    with pytest.raises(InputError, match="feature maps of image 0 are not finite"):
        lighten_torchvision(model, "bbox-v3", images=calibration)
    model.transform.image_mean = [0.5]
    with pytest.raises(InputError, match="takes images of 1 channels, files and arrays have 3"):
        lighten_torchvision(model, images=[np.zeros((8, 8, 3), dtype=np.uint8)])


def test_images_need_a_class_branch_that_can_be_read(calibration: list[Tensor]) -> None:
    model = _detector("v1")
    model.head.classification_head.cls_logits = nn.Sequential(model.head.classification_head.cls_logits)
    assert lighten_torchvision(model, "bbox-v3") is not model
    with pytest.raises(InputError, match=r"images do not help here: head\.classification_head .* leave images out"):
        lighten_torchvision(model, "bbox-v3", images=calibration)


def test_progress_sees_every_step(calibration: list[Tensor]) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def show(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        for number, item in enumerate(items, start=1):
            seen[what] = (number, total)
            yield item

    lighten_torchvision(_detector("v1"), "lw-v3", images=calibration, fit_steps=4, progress=show)
    # With their mirror images.
    assert seen == {"look at images for P3": (6, 6), "closed form for P3": (3, 3), "fit P3": (4, 4)}


def test_as_many_images_as_memory_allows(calibration: list[Tensor]) -> None:
    totals = []

    def show(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        totals.append((what, total))
        return items

    # A map of 8 x 12 cells and 32 channels in bf16 is 6 KiB; one fits, a second one does not.
    settings = LighteningSettings(fit=FitSettings(steps=0), max_bytes=8000)
    model = _detector("v1")
    torchvision_lighten._fill(model, light_copy(model, PRESETS["lw-v3"]), ["P3"], calibration, settings, show)
    assert totals == [("look at images for P3", 3), ("closed form for P3", 1)]


def test_a_folder_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr("lw_retinanet.lightening.calibration_images.MAX_FILES", 3)
    chosen = find_calibration_images(tmp_path, seed=1)
    assert len(chosen) == 3
    assert chosen == find_calibration_images(tmp_path, seed=1)
    assert len(find_calibration_images([tmp_path])) == 5
