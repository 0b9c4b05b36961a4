"""A lightened torchvision model does what the full one does: scripts, exports, copies, averages, saves and loads, and is converted."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import lw_retinanet as lw
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError, WeightsError
from lw_retinanet.heads import HeadPlan, TowerPlan
from lw_retinanet.weights.foreign.torchvision_model import from_torchvision

Make = Callable[..., Any]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*always returns a .Losses, Detections.:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]
KINDS = ("v1", "v2", "fcos")
MARKS = {f"head.{branch}_head.lightened" for branch in ("classification", "regression")}


def light_of(model: nn.Module) -> Any:
    return lw.lighten(model, "lw-v3").eval()


@pytest.fixture(autouse=True)
def _without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    with torch.set_grad_enabled("torchscript" in request.node.name):
        yield


def same(ones: list[dict[str, Tensor]], others: list[dict[str, Tensor]], near: float = 0.0) -> bool:
    pairs = list(zip(ones, others, strict=True))
    return all(one.keys() == two.keys() for one, two in pairs) and all(
        one[key].shape == two[key].shape and float((one[key].detach().double() - two[key].detach().double()).abs().max()) <= near
        for one, two in pairs
        for key in one
    )


@pytest.mark.parametrize("kind", KINDS)
def test_torchscript(kind: str, make_detector: Make, images: list[Tensor], targets: list[dict[str, Tensor]]) -> None:
    light = light_of(make_detector(kind))
    names = list(light.state_dict())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(light), buffer)
    buffer.seek(0)
    scripted = torch.jit.load(buffer)
    assert same(scripted(images)[1], light(images))
    assert all(len(found["boxes"]) for found in light(images))
    losses, wanted = scripted.train()(images, targets)[0], light.train()(images, targets)
    assert losses.keys() == wanted.keys()
    assert all(torch.equal(losses[name], wanted[name]) for name in losses)
    assert list(light.state_dict()) == names


def test_torchscript_says_what_it_cannot_share(make_detector: Make) -> None:
    with pytest.raises(InputError, match=r"cannot share bbox_reg between levels; script a model lightened to another preset, lw-v3"):
        torch.jit.script(lw.lighten(make_detector("v1"), "lw-v3-released"))


@pytest.mark.parametrize("kind", KINDS)
def test_backbone_and_head_are_exported(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    light = light_of(make_detector(kind))
    batch = torch.stack([image[:, :64, :64] for image in images])
    maps = list(light.backbone(batch).values())
    backbone = torch.export.export(light.backbone, (batch,)).module()
    assert all(torch.equal(one, two) for one, two in zip(backbone(batch).values(), maps, strict=True))
    head = torch.export.export(light.head, (maps,)).module()
    wanted = light.head(maps)
    assert all(torch.allclose(head(maps)[name], wanted[name], atol=1e-6) for name in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_averaged_models_and_autocast(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    light = light_of(make_detector(kind))
    averaged = AveragedModel(light, use_buffers=True)
    averaged.update_parameters(light)
    with torch.no_grad():
        for parameter in light.parameters():
            parameter.mul_(3.0)
    averaged.update_parameters(light)
    wanted = light.state_dict()
    for name, value in averaged.module.state_dict().items():
        expected = value if name in MARKS else wanted[name] * (2 / 3)  # the mean of w and 3 w, where w is a third of what light has
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.isfinite(found["boxes"]).all() for found in averaged.eval()(images))
    assert all(tensor.dtype == torch.bfloat16 for tensor in light.to(torch.bfloat16).state_dict().values() if tensor.is_floating_point())


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_weights_are_refused_and_those_of_version_0_1_are_taken(kind: str, make_detector: Make, images: list[Tensor]) -> None:
    full = make_detector(kind).eval()
    light = light_of(full)
    state = light.state_dict()
    assert state.keys() >= MARKS
    unexpected = full.load_state_dict(state, strict=False).unexpected_keys
    assert set(unexpected) >= MARKS
    with pytest.raises(RuntimeError, match="lightened"):
        full.load_state_dict(state, strict=True)
    for strict in (True, False):
        with pytest.raises(RuntimeError, match="weights of a full head, and this head is light; load them into the full model, and"):
            light.load_state_dict(make_detector(kind).state_dict(), strict=strict)
    # The remedy works.
    again = light_of(make_detector(kind))
    again.load_state_dict({name: tensor for name, tensor in state.items() if name not in MARKS}, strict=True)  # as 0.1.0 wrote them
    assert same(again(images), light(images))
    backbone = {name: tensor for name, tensor in state.items() if name.startswith("backbone.")}
    again.load_state_dict(backbone, strict=False)


def real_shape(classes: int = 3) -> Any:
    """A RetinaNet of torchvision's parts with a ResNet-18 and 64 channels, and scores around the threshold."""
    torch.manual_seed(0)
    network: Any = torchvision.models.resnet18(weights=None, norm_layer=partial(torchvision.ops.misc.FrozenBatchNorm2d, eps=0.0))
    last = LastLevelP6P7(64, 64)
    backbone = BackboneWithFPN(network, {"layer2": "0", "layer3": "1", "layer4": "2"}, [128, 256, 512], 64, extra_blocks=last)
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    head = RetinaNetHead(64, 9, classes)
    model = RetinaNet(backbone, classes, anchor_generator=generator, head=head, min_size=96, max_size=150, score_thresh=0.3, nms_thresh=0.4)
    for module in model.head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=(2 / module.weight[0].numel()) ** 0.5)
    nn.init.constant_(head.classification_head.cls_logits.bias, -2.0)
    head.regression_head.bbox_reg.weight.data *= 0.05
    return model.eval()


MIXED = HeadPlan(
    cls={"P3": TowerPlan(units=("dw3x3+1x1-bn", "1x1", "dw5x5"), width=32, predict="dw3x3+1x1"), "P4": TowerPlan(units=("3x3",) * 2)},
    bbox={"P3": TowerPlan(units=("1x1-bn",), width=32, predict="1x1")},
)


@pytest.mark.parametrize("plan", ["lw-v3", "lw-v3-released", "lw-v1", MIXED], ids=["lw-v3", "lw-v3-released", "lw-v1", "mixed"])
def test_a_light_model_is_converted_alive_and_from_its_state_dict_alone(plan: Any, tmp_path: Path) -> None:
    light: Any = lw.lighten(real_shape(), plan).eval()
    with torch.no_grad():
        for name, parameter in light.named_parameters():
            if ".own." in name and parameter.dim() == 4:
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    wanted = light([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    torch.save(light.state_dict(), tmp_path / "light.pth")
    sizes = {"input.size": 96, "input.max_size": 150, "output.score_threshold": 0.3, "output.nms_iou": 0.4, "norm_eps": 0.0}
    converted = lw.convert(tmp_path / "light.pth", tmp_path / "light.safetensors", classes=["a", "b", "c"], overrides=sizes)
    for loaded in (from_torchvision(light, ["a", "b", "c"]), converted.loaded):
        assert loaded.record.preset == (plan if isinstance(plan, str) else "light")
        found = Detector.of_model(loaded.model, loaded.record.categories).predict([image])[0]
        assert len(found) == len(wanted["scores"]) > 3
        assert np.abs(found.boxes - wanted["boxes"].numpy()).max() < 0.05
        assert np.abs(found.scores - wanted["scores"].numpy()).max() < 1e-4
        assert found.labels.tolist() == wanted["labels"].tolist()
    assert len(lw.load(tmp_path / "light.safetensors").predict([image])[0]) == len(found)


def test_towers_mixed_from_two_models_are_refused(tmp_path: Path) -> None:
    one, other = (lw.lighten(real_shape(), preset).state_dict() for preset in ("lw-v3", "lw-v1"))
    name = "head.classification_head.own.0.conv.1.0.weight"
    for change in ({name: torch.zeros(64, 32, 1, 1)}, {name.replace("conv.1.0.weight", "conv.1.7.weight"): torch.zeros(3)}):
        torch.save({**one, **change}, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match=r"unit 1 of cls P3 of .* is light in a way that is not known, or mixed from two models"):
            lw.convert(tmp_path / "w.pth")
    assert other.keys() >= MARKS - {"head.regression_head.lightened"}


def test_the_recipe_of_plain_pytorch(make_detector: Make, images: list[Tensor], tmp_path: Path) -> None:
    light = light_of(make_detector("v1"))
    torch.save({"light": "lw-v3", "model": light.state_dict()}, tmp_path / "light.pth")
    saved = torch.load(tmp_path / "light.pth", weights_only=True)
    again: Any = lw.lighten(make_detector("v1"), saved["light"])  # without images: the structure alone
    again.load_state_dict(saved["model"])
    assert same(again.eval()(images), light(images))


def test_the_recipe_of_the_hub_mixin(make_detector: Make, images: list[Tensor], tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")

    class MyDetector(nn.Module, hub.PyTorchModelHubMixin):  # type: ignore[name-defined]
        def __init__(self, light: str | None = None) -> None:
            super().__init__()
            self.detector: Any = make_detector("v1")
            if light:
                self.detector = lw.lighten(self.detector, light)

    mine: Any = MyDetector(light="lw-v3")
    with torch.no_grad():
        for parameter in mine.parameters():
            parameter.add_(0.01)
    mine.save_pretrained(tmp_path / "hub")
    again: Any = MyDetector.from_pretrained(tmp_path / "hub", strict=True)
    assert same(again.eval().detector(images), mine.eval().detector(images))
    with pytest.raises(RuntimeError, match="lightened"):
        MyDetector.from_pretrained(tmp_path / "hub", light=None, strict=True)


def test_from_torchvision_and_back_again(tmp_path: Path) -> None:
    model = real_shape()
    loaded = from_torchvision(model, ["a", "b", "c"])
    detector = lw.load(loaded.save(tmp_path / "m.safetensors", half=False))
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    found = detector.predict([image])[0]
    back = detector.torchvision()([torch.from_numpy(image).permute(2, 0, 1).float() / 255])[0]
    assert len(found) == len(back["scores"]) > 3
    assert np.abs(found.boxes - back["boxes"].numpy()).max() < 0.05
    assert found.labels.tolist() == back["labels"].tolist()
    # What is saved is what was asked of the detector.
    again = lw.load(detector.with_output(max_detections=2).save(tmp_path / "two.safetensors"))
    assert len(again.predict([image])[0]) == len(again.torchvision()([torch.rand(3, 97, 131)])[0]["scores"]) == 2
    with pytest.raises(
        InputError, match=r"cannot be torchvision's class: its output.class_agnostic is True, and torchvision's is False; use"
    ):
        detector.with_output(class_agnostic=True).torchvision()
    light = from_torchvision(lw.lighten(model, "lw-v3"), ["a", "b", "c"])
    with pytest.raises(InputError, match="has no record of how it was built"):
        Detector.of_model(light.model, light.record.categories).save(tmp_path / "no.safetensors")


def liven(parameters: Any) -> None:
    """Draw the kernels of light towers so that their answers matter."""
    with torch.no_grad():
        for name, parameter in parameters:
            if ".own" in name and parameter.dim() == 4:
                parameter.normal_(std=0.5 * parameter[0].numel() ** -0.5)


@pytest.mark.parametrize(
    "plan", ["lw-v3", "lw-v3-released", "both-narrow16", MIXED], ids=["lw-v3", "lw-v3-released", "both-narrow16", "mixed"]
)
def test_a_light_detector_goes_home_with_either_head(plan: Any, make_detector: Make) -> None:
    loaded = from_torchvision(real_shape(), ["a", "b", "c"])
    detector = Detector.of_model(loaded.model, loaded.record.categories, record=loaded.record)
    light = lw.lighten(detector, plan)
    liven(light.model.named_parameters())
    if light.model.fpn.full_output is not None:
        light.model.fpn.full_output.weight.data.mul_(0.9)  # so that the two heads read different maps
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    fed = [torch.from_numpy(image).permute(2, 0, 1).float() / 255]
    for head in light.heads:
        found, home = light.predict([image], head=head)[0], light.with_head(head).torchvision()
        back = home(fed)[0]
        assert len(found) == len(back["scores"]) > 3
        assert np.abs(found.boxes - back["boxes"].numpy()).max() < 0.05
        assert np.abs(found.scores - back["scores"].numpy()).max() < 1e-4
        assert found.labels.tolist() == back["labels"].tolist()
        assert (MARKS & home.state_dict().keys() != set()) is (head == "light")
    # What came home is what lightening in place makes, so that its weights fit there, and come back here.
    again = lw.lighten(real_shape(), plan)
    again.load_state_dict(light.torchvision().state_dict())
    assert same(again.eval()(fed), light.torchvision()(fed))
    assert len(from_torchvision(again).model.head.plan.cls) == len(light.model.head.plan.cls)


def test_what_torchvisions_class_cannot_be_is_said() -> None:
    loaded = from_torchvision(real_shape(), ["a", "b", "c"])
    detector = Detector.of_model(loaded.model, loaded.record.categories, record=loaded.record)
    shares = HeadPlan(cls={"P3": TowerPlan(units=("1x1", "shared", "shared", "shared"))})
    with pytest.raises(InputError, match="torchvision's class: a light tower shares units with other levels; use the detector itself"):
        lw.lighten(detector, shares).torchvision()


def test_weights_of_another_program_are_sent_to_convert(tmp_path: Path) -> None:
    torch.save(real_shape().state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"is a weights file of another program; `lw-retinanet convert` makes a model file of it"):
        lw.load(tmp_path / "w.pth")
    lw.convert(tmp_path / "w.pth").save(tmp_path / "m.safetensors")
    assert lw.load(tmp_path / "m.safetensors").switchable is False


def test_a_wrapped_model_is_found_and_its_attribute_named(make_detector: Make) -> None:
    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector = make_detector("v1")

    with pytest.raises(InputError, match="wrapped in a Module; lighten the RetinaNet inside it, which its attribute detector holds"):
        lw.lighten(Module())
    parallel = nn.DataParallel(real_shape())
    for take in (lw.from_torchvision, lambda model: lw.predict(model, np.zeros((64, 64, 3), np.uint8))):
        with pytest.raises(WeightsError, match="wrapped in a DataParallel; give the RetinaNet that its attribute module holds"):
            take(parallel)
    image = np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8)
    loaded = from_torchvision(parallel.module)
    detector = Detector.of_model(loaded.model, loaded.record.categories)
    assert len(lw.predict(parallel.module, image, device="cpu")[0]) == len(detector.predict(image, score=0.3)[0])
