"""Folded networks answer as they did, with fewer layers; and nothing is folded that does not belong together."""

import copy

import pytest
import torch
import torch.nn.functional as F
from tests.counting.hooked import count_blocks_hooked
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.heads import HeadPlan, TowerPlan, plan_of
from lw_retinanet.models.backbone import Norm
from lw_retinanet.models.build import build
from lw_retinanet.models.fold import fold_norm, folded
from lw_retinanet.models.retinanet import RetinaNet

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


@torch.no_grad()
def with_statistics(model: RetinaNet) -> RetinaNet:
    """Norms that have seen something: after initialisation nearly anything could be folded wrongly without a trace."""
    generator = torch.Generator().manual_seed(1)
    for norm in (module for module in model.modules() if isinstance(module, NORMS)):
        for values, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            assert values is not None
            values.copy_(torch.rand(values.shape, generator=generator) + low)
    return model


def make(plan: str = "both-v1-bn", *, backbone: str = "resnet18", norm: Norm = "batch", full_output: tuple[str, ...] = ()) -> RetinaNet:
    torch.manual_seed(0)
    model = build(plan_of(plan), num_classes=2, backbone=backbone, width=16, norm=norm, init="fan_in", full_output=full_output)
    return with_statistics(model)


def random_images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2)).to(dtype)


def num_norms(model: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in model.modules())


@torch.no_grad()
def assert_same_answers(model: RetinaNet, other: RetinaNet, tolerance: float, *, full_head: bool = False) -> None:
    images = random_images(next(model.parameters()).dtype)
    for old, new in zip(copy.deepcopy(model).eval()(images, full_head=full_head), other(images, full_head=full_head), strict=True):
        assert float((old - new).abs().max()) < tolerance * float(old.abs().max())


@pytest.mark.parametrize(("backbone", "norm"), [("resnet18", "batch"), ("resnet50", "frozen"), ("mobilenet_v2", "batch")])
def test_all_norms_go_and_the_answers_stay(backbone: str, norm: Norm) -> None:
    model = make(backbone=backbone, norm=norm).train()
    before = copy.deepcopy(model.state_dict())
    found = folded(model)
    assert num_norms(found) == 0
    assert not any(module.training for module in found.modules())
    assert_same_answers(model, found, 1e-4)  # some 70 layers of fp32 rounding: 3e-6 is usual
    assert_same_answers(model.double(), folded(model), 1e-10)
    model.float()
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert count_macs(found) == count_macs(model)


def count_macs(model: RetinaNet) -> list[int]:
    blocks = count_blocks(model, (96, 64))
    assert blocks == count_blocks_hooked(model, (96, 64))
    return [cost.macs for cost in blocks.values()]


@pytest.mark.parametrize("preset", ["both-v3-bn", "cls-v1-bn"])
def test_folding_again_changes_nothing(preset: str) -> None:
    once = folded(make(preset))
    twice = folded(once)
    assert [(name, type(module)) for name, module in once.named_modules()] == [
        (name, type(module)) for name, module in twice.named_modules()
    ]
    first, second = once.state_dict(), twice.state_dict()
    assert list(first) == list(second)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_folded_tower_is_the_plain_blocks() -> None:
    # v1-bn folded is v1 with a bias in its depthwise convolutions too, and v3-bn is v3 itself.
    for block, more in (("v3", 0), ("v1", 2 * 4 * 16)):
        light, plain = folded(make(f"both-{block}-bn")).head, make(f"both-{block}").head
        shapes = [[parameter.shape for parameter in head.parameters() if parameter.ndim == 4] for head in (light, plain)]
        assert shapes[0] == shapes[1]
        params = [sum(parameter.numel() for parameter in head.parameters()) for head in (light, plain)]
        assert params[0] - params[1] == more
        assert not list(light.buffers())


def test_the_full_head_is_folded_with_the_light_one() -> None:
    model = make(full_output=("P3",))
    found = folded(model)
    assert_same_answers(model, found, 1e-4, full_head=True)
    assert_same_answers(model, found, 1e-4)


# A deep stem; activations inside norms; padding of its own.
@pytest.mark.parametrize(
    ("name", "norm"),
    [("resnet26d", "frozen"), ("mobilenetv3_small_100", "batch"), ("mobilenetv3_small_100", "frozen"), ("tf_efficientnet_b0", "batch")],
)
def test_timm(name: str, norm: Norm) -> None:
    pytest.importorskip("timm")
    model = make(backbone=f"timm:{name}", norm=norm)
    found = folded(model)
    assert num_norms(found) == 0
    assert_same_answers(model.double(), folded(model), 1e-10)
    assert count_macs(found) == count_macs(model.float())


def test_a_norm_before_its_convolution_stays() -> None:
    # DenseNet's layers start with a norm; what it sees is a concatenation, although a convolution stands before it among its siblings.
    pytest.importorskip("timm")
    model = make(backbone="timm:densenet121")
    found = folded(model)
    assert 0 < num_norms(found) < num_norms(model)
    assert_same_answers(model.double(), folded(model), 1e-10)


def test_group_norm_stays() -> None:
    torch.manual_seed(0)
    plan = HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4))
    model = build(plan, num_classes=2, backbone="resnet18", width=32, norm="group", init="fan_in")
    found = folded(model)
    assert sum(isinstance(module, nn.GroupNorm) for module in found.modules()) > 8
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in found.state_dict().items())


class Read(nn.Module):
    """A unit in which something else may read what the norm reads."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.conv, self.other = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.norm = nn.BatchNorm2d(16)

    def forward(self, features: Tensor) -> Tensor:
        made = self.conv(features)
        if self.what == "nothing":
            return F.relu(self.norm(made))
        if self.what == "a sum":
            return F.relu(self.norm(made) + made)
        if self.what == "a view":
            return F.relu(self.norm(made) + made.flatten(2).mean(dim=2)[:, :, None, None])
        if self.what == "an activation in place":
            return self.norm(made.relu_())
        if self.what == "another convolution":
            return F.relu(self.norm(made) + self.norm(self.other(features)))
        if self.what == "the norm's second call":
            return F.relu(self.norm(made) + self.norm(features))
        assert self.what == "the convolution's second call"
        return F.relu(self.norm(made) + self.conv(features))


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "a sum",
        "a view",
        "an activation in place",
        "another convolution",
        "the norm's second call",
        "the convolution's second call",
    ],
)
def test_a_pair_is_folded_only_if_nothing_else_reads_what_is_between(what: str) -> None:
    model = make("both-v3")
    model.head.cls.own_units["P3"]["1"] = Read(what)  # type: ignore[operator]
    with_statistics(model).double()
    found = folded(model)
    assert num_norms(found) == (0 if what == "nothing" else 1)
    assert_same_answers(model, found, 1e-10)


def test_a_shared_unit_is_folded_once_for_all_levels() -> None:
    model = make("retinanet")
    model.head.cls.shared_units["2"] = Read("nothing")
    with_statistics(model).double()
    found = folded(model)
    assert num_norms(found) == 0
    assert_same_answers(model, found, 1e-10)


class Halved(nn.Conv2d):
    """Does something of its own with its weights."""

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.weight / self.weight.abs().amax(), self.bias)


@pytest.mark.parametrize("kind", ["subclass", "hook", "parametrization", "no statistics"])
def test_layers_that_may_do_more_are_left_alone(kind: str) -> None:
    model = make("both-v3-bn")
    unit = model.head.cls.layers("P3")[0][1]
    assert isinstance(unit, nn.Sequential)
    if kind == "subclass":
        unit[0] = Halved(16, 16, 1)
    elif kind == "hook":
        unit[0].register_forward_hook(lambda _, __, output: output * 2)
    elif kind == "parametrization":
        parametrizations.weight_norm(unit[0])
    else:
        unit[1] = nn.BatchNorm2d(16, track_running_stats=False)
    model.double()
    found = folded(model)
    assert num_norms(found) == 1
    assert_same_answers(model, found, 1e-10)


def test_arithmetic_of_one_channel() -> None:
    # (3x + 1 - 2) / sqrt(3.75 + 0.25) * 4 + 5 = 6x + 3
    norm = nn.BatchNorm2d(1, eps=0.25)
    with torch.no_grad():
        for values, value in ((norm.running_mean, 2.0), (norm.running_var, 3.75), (norm.weight, 4.0), (norm.bias, 5.0)):
            assert values is not None
            values.fill_(value)
    weight, bias = fold_norm(torch.full((1, 1, 1, 1), 3.0), torch.tensor([1.0]), norm)
    assert (weight.item(), bias.item(), weight.dtype) == (6.0, 3.0, torch.float64)
    # Without a bias: (3x - 2) / 2 * 4 + 5 = 6x + 1; without an affine part: (3x + 1 - 2) / 2.
    assert fold_norm(torch.full((1, 1, 1, 1), 3.0), None, norm)[1].item() == 1.0
    norm.weight, norm.bias = None, None  # type: ignore[assignment]
    assert [values.item() for values in fold_norm(torch.full((1, 1, 1, 1), 3.0), torch.tensor([1.0]), norm)] == [1.5, -0.5]


def test_precision_and_memory_format_stay() -> None:
    model = make(norm="frozen").to(torch.bfloat16).to(memory_format=torch.channels_last)
    found = folded(model)
    assert {parameter.dtype for parameter in found.parameters()} == {torch.bfloat16}
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last) for module in found.modules() if isinstance(module, nn.Conv2d)
    )
    assert not any(parameter.requires_grad for parameter in found.parameters())
