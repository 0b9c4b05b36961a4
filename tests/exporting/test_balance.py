"""Channels inside a light head are balanced for int8, and the network computes what it did."""

import copy

import pytest
import torch
from torch import nn

from lw_retinanet.exporting.balance import balance_channels
from lw_retinanet.heads import HeadPlan, plan_of
from lw_retinanet.lightening.towers import convolutions
from lw_retinanet.models.build import build
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet


def network_of(preset: str) -> RetinaNet:
    """A folded network whose light towers have channels of very different ranges."""
    torch.manual_seed(0)
    plan = plan_of(preset) if preset else HeadPlan()
    network = folded(build(plan, num_classes=3, backbone="resnet18", width=32, norm="frozen", init="fan_in"))
    with torch.no_grad():
        for branch in (network.head.cls, network.head.bbox):
            for conv in (module for module in branch.own_units.modules() if isinstance(module, nn.Conv2d)):
                conv.weight *= torch.logspace(-1, 1, len(conv.weight))[torch.randperm(len(conv.weight))][:, None, None, None]
    return network.double()  # so that rounding cannot hide a mistake


# Linear units, 1x1 and 3x3 ones, a depthwise one that reads, a layer that stays shared, one light branch only, which leaves P3 alone,
# a unit that both branches read, two light levels, and one tower for them, before which neither level can be scaled.
@pytest.mark.parametrize(
    ("preset", "tensors"),
    [
        ("lw-v3", 9),
        ("both-narrow16", 11),
        ("both-dw5", 11),
        ("both-v1", 9),
        ("bbox-v3", 4),
        ("lw-v1", None),
        ("lw-stem", 6),
        ("lw-v3-p3p4", 18),
        ("lw-v3-p3p4-shared", 8),
    ],
)
def test_the_outputs_stay(preset: str, tensors: int | None) -> None:
    network = network_of(preset)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    changed = copy.deepcopy(network)
    number = balance_channels(changed, [images])
    assert number == tensors or tensors is None
    with torch.no_grad():
        before, after = network(images), changed(images)
    for wanted, found in ((before.logits, after.logits), (before.deltas, after.deltas)):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


def test_half_of_the_difference_moves_and_a_silent_channel_keeps_finite_weights() -> None:
    network = network_of("lw-v3")
    units = network.head.cls.layers("P3")[0]
    second, silent = convolutions(units[1])[0], convolutions(network.head.bbox.layers("P3")[0][1])[0]
    assert silent.bias is not None
    with torch.no_grad():
        silent.weight[0], silent.bias[0] = 0, 0
        second.weight.copy_(torch.ones(32, 32, 1, 1))  # all channels are read alike, so the square roots of the ranges are left
        images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
        maps = units[0](network.fpn(network.backbone(images))["P3"]).amax(dim=(0, 2, 3))
        balance_channels(network, [images])
        after = units[0](network.fpn(network.backbone(images))["P3"]).amax(dim=(0, 2, 3))
    alive = maps > 0.01 * maps.max()
    expected = maps.sqrt() * maps.max().sqrt()
    torch.testing.assert_close(after[alive], expected[alive], rtol=1e-6, atol=0)
    assert all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters())


def test_a_network_without_a_light_head_is_left_alone() -> None:
    network = network_of("")
    before = copy.deepcopy(network.state_dict())
    assert balance_channels(network, []) == 0
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
