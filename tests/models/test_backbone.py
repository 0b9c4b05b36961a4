"""Backbones against torchvision's and timm's own features on equal weights, and the folding of frozen norms."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50, resnet101
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.errors import ConfigError
from lw_retinanet.models.backbone import Backbone, ResNetBackbone, make_backbone
from lw_retinanet.models.frozen_norm import FrozenNorm, NormedConv2d, fold_frozen_norms, freeze_batch_norms

TORCHVISION: dict[str, Any] = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}


def _randomise_norms(module: nn.Module, seed: int) -> None:
    """Statistics and affine as training leaves them: nothing is 0 or 1, so an ignored or mixed-up tensor shows."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | FrozenBatchNorm2d):
            for name, low, high in (("weight", 0.5, 1.5), ("bias", -0.2, 0.2), ("running_mean", -0.2, 0.2), ("running_var", 0.5, 2.0)):
                values = getattr(layer, name)
                values.data.copy_(torch.rand(values.shape, generator=generator, dtype=values.dtype) * (high - low) + low)


def _make(name: str, **options: Any) -> Backbone:
    return make_backbone(name, **{"norm": "frozen", "stride_in": "3x3", "norm_eps": 1e-5, **options})


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", TORCHVISION)
def test_resnets_give_torchvisions_features_on_its_weights(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    reference = TORCHVISION[name](weights=None).eval()
    _randomise_norms(reference, seed=1)
    ours = _make(name)
    ours.load_state_dict({k: v for k, v in reference.state_dict().items() if not k.startswith("fc.") and "num_batches" not in k})
    expected = IntermediateLayerGetter(reference, {"layer2": "C3", "layer3": "C4", "layer4": "C5"})
    with torch.no_grad():
        features, wanted = ours(images), expected(images)
    assert list(features) == ["C3", "C4", "C5"]
    assert tuple(map_.shape[1] for map_ in features.values()) == ours.channels
    for stage, values in wanted.items():
        # fp32 rounding over up to 100 layers, relative to the map's largest value.
        torch.testing.assert_close(features[stage], values, rtol=0, atol=2e-5 * values.abs().max().item())


def test_mobilenet_gives_torchvisions_features_on_its_weights(images: Tensor) -> None:
    torch.manual_seed(0)
    reference = mobilenet_v2(weights=None).eval()
    _randomise_norms(reference, seed=1)
    ours = _make("mobilenet_v2")
    wanted = {k: v for k, v in reference.state_dict().items() if k in ours.state_dict()}
    ours.load_state_dict(wanted)
    with torch.no_grad():
        features, values = ours(images), images
        for index, layer in enumerate(reference.features[:18]):
            values = layer(values)
            if index in (6, 13, 17):
                torch.testing.assert_close(features[{6: "C3", 13: "C4", 17: "C5"}[index]], values, rtol=1e-4, atol=1e-4)
    assert [features[stage].shape[1:] for stage in ("C3", "C4", "C5")] == [(32, 9, 13), (96, 5, 7), (320, 3, 4)]


def test_names_in_a_resnets_state_are_torchvisions() -> None:
    with torch.device("meta"):
        wanted = {
            key for key in resnet50(weights=None).state_dict() if not key.startswith("fc.") and not key.endswith("num_batches_tracked")
        }
        assert set(_make("resnet50").state_dict()) == wanted


def test_stride_in_the_1x1_halves_before_the_3x3(images: Tensor) -> None:
    torch.manual_seed(0)
    pytorch_style = _make("resnet50")
    caffe_style = _make("resnet50", stride_in="1x1")
    caffe_style.load_state_dict(pytorch_style.state_dict())
    sizes: list[tuple[int, ...]] = []
    assert isinstance(caffe_style, ResNetBackbone)
    for stage in (caffe_style.layer1, caffe_style.layer2, caffe_style.layer3, caffe_style.layer4):
        stage[0].conv1.register_forward_hook(lambda _module, _inputs, output: sizes.append(tuple(output.shape[2:])))
    with torch.no_grad():
        caffe, pytorch = caffe_style(images), pytorch_style(images)
    assert sizes == [(17, 25), (9, 13), (5, 7), (3, 4)]
    assert [caffe[stage].shape for stage in caffe] == [pytorch[stage].shape for stage in pytorch]
    assert not torch.allclose(caffe["C3"], pytorch["C3"])


def test_folding_is_convolution_then_frozen_norm_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), FrozenBatchNorm2d(6)).double()
    _randomise_norms(plain, seed=3)
    folded = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False), FrozenNorm(6)).double()
    folded.load_state_dict(plain.state_dict())
    fold_frozen_norms(folded)
    assert type(folded[0]) is NormedConv2d
    features = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    gradients = []
    outputs = []
    for module in (plain, folded):
        inputs = features.clone().requires_grad_()
        outputs.append(module(inputs))
        outputs[-1].square().sum().backward()
        gradients.append((inputs.grad, module[0].weight.grad))
    torch.testing.assert_close(outputs[1], outputs[0])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_norm_eps_reaches_the_arithmetic() -> None:
    # A 1x1 convolution of weight 1, then (x - 0) / sqrt(3 + 1) with eps = 1: half of the input.
    module = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), FrozenNorm(1, eps=1.0))
    nn.init.ones_(module[0].weight)  # type: ignore[arg-type]
    module[1].running_var.fill_(3.0)  # type: ignore[operator]
    fold_frozen_norms(module)
    with torch.no_grad():
        torch.testing.assert_close(module(torch.full((1, 1, 2, 2), 4.0)), torch.full((1, 1, 2, 2), 2.0))
    assert all(layer.eps == 1e-3 for layer in _make("resnet18", norm_eps=1e-3).modules() if isinstance(layer, FrozenNorm))


def test_folding_leaves_other_neighbours_alone() -> None:
    biased = nn.Sequential(nn.Conv2d(2, 2, 1, bias=True), FrozenNorm(2))
    apart = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU(), FrozenNorm(2))
    for module in (biased, apart):
        _randomise_norms(module, seed=5)
        features = torch.randn(1, 2, 3, 3)
        with torch.no_grad():
            before = module(features)
            fold_frozen_norms(module)
            torch.testing.assert_close(module(features), before, rtol=0, atol=0)


def test_a_copy_folds_its_own_norms(images: Tensor) -> None:
    original = _make("resnet18").eval()
    duplicate = copy.deepcopy(original)
    with torch.no_grad():
        before = original(images)["C5"]
        for layer in duplicate.modules():
            if isinstance(layer, FrozenNorm):
                layer.weight.mul_(0.5)
                layer.bias.add_(0.25)
        assert torch.equal(original(images)["C5"], before)
        assert not torch.allclose(duplicate(images)["C5"], before)


def test_frozen_norms_are_not_trained_and_others_are() -> None:
    with torch.device("meta"):
        frozen, batch, group = (_make("resnet18", norm=norm) for norm in ("frozen", "batch", "group"))
    assert not [name for name, _ in frozen.named_parameters() if "bn" in name]
    assert (
        len([name for name, _ in batch.named_parameters() if "bn" in name])
        == len([n for n, _ in group.named_parameters() if "bn" in n])
        > 0
    )
    assert isinstance(group.stages()[0][1][1], nn.GroupNorm)


@pytest.mark.parametrize(("num_stages", "first_trained"), [(0, "conv1"), (1, "layer1"), (2, "layer2"), (4, "layer4")])
def test_freezing_stops_the_first_stages(num_stages: int, first_trained: str) -> None:
    backbone = _make("resnet18", norm="batch")
    backbone.freeze(num_stages)
    trained = [name for name, parameter in backbone.named_parameters() if parameter.requires_grad]
    order = [name.split(".")[0] for name, _ in backbone.named_parameters()]
    assert trained[0].startswith(first_trained)
    assert len(trained) == len(order) - order.index(first_trained)


def test_freezing_all_five_stages_leaves_nothing() -> None:
    for name in ("resnet18", "mobilenet_v2"):
        backbone = _make(name)
        backbone.freeze(5)
        assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet49", {}, "unknown backbone 'resnet49'; known: resnet18"),
        ("resnet18", {"stride_in": "1x1"}, "no bottlenecks"),
        ("mobilenet_v2", {"stride_in": "1x1"}, "has no choice of stride_in, only ResNets have"),
    ],
)
def test_impossible_backbones_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _make(name, **options)


# resnet26d has plain batch norms; efficientnet's carry the activation behind them and feed squeeze-and-excitation.
@pytest.mark.parametrize("name", ["resnet26d", "efficientnet_b0"])
def test_timm_backbones_give_timms_features_once_frozen(name: str, images: Tensor) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True, out_indices=(2, 3, 4)).eval()
    _randomise_norms(reference, seed=1)
    ours = _make(f"timm:{name}", norm="batch").eval()
    ours.body.load_state_dict(reference.state_dict())  # type: ignore[union-attr]
    freeze_batch_norms(ours)
    fold_frozen_norms(ours)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in ours.modules())
    with torch.no_grad():
        features, wanted = ours(images), reference(images)
    for map_, expected in zip(features.values(), wanted, strict=True):
        torch.testing.assert_close(map_, expected, rtol=0, atol=2e-5 * expected.abs().max().item())
    assert tuple(map_.shape[1] for map_ in features.values()) == ours.channels
    with pytest.raises(ConfigError, match=r"train\.freeze=2"):
        ours.freeze(2)


@pytest.mark.parametrize(("name", "message"), [("no_such_model", "timm has no model"), ("vit_tiny_patch16_224", "stride 8, 16 and 32")])
def test_timm_networks_that_do_not_fit_are_refused(name: str, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=message):
        _make(f"timm:{name}")
