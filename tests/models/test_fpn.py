import pytest
import torch
from torch import Tensor
from torchvision.ops import FeaturePyramidNetwork

from lw_retinanet.conventions import LEVELS
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build
from lw_retinanet.models.fpn import FPN

WIDTH = 8


def pyramid_network(*, full_output: tuple[str, ...]) -> FPN:
    torch.manual_seed(0)
    return FPN(in_channels=(4, 6, 10), channels=WIDTH, p6_source="C5", p7_relu=True, full_output=full_output)


def stages() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"C3": (4, 16, 12), "C4": (6, 8, 6), "C5": (10, 4, 3)}
    return {name: torch.randn(1, *size, generator=generator) for name, size in sizes.items()}


@pytest.mark.parametrize("levels", [("P3",), ("P3", "P4")])
def test_levels_of_the_full_head_have_their_own_convolutions_and_nothing_else_has(levels: tuple[str, ...]) -> None:
    network = pyramid_network(full_output=levels)
    with torch.no_grad():
        light, full, merged = network(stages()), network(stages(), full=True), network.merged(stages())
        for level, place in (("P3", 0), ("P4", 1)):
            assert torch.equal(light[level], network.layer_blocks[place](merged[level]))
            assert torch.equal(full[level], network.output(level, full=True)(merged[level]))
            assert torch.equal(full[level], light[level]) == (level not in levels)
    assert tuple(light) == tuple(full) == tuple(merged) == LEVELS
    assert all(torch.equal(light[level], full[level]) and torch.equal(light[level], merged[level]) for level in LEVELS[2:])
    # torchvision's own order of work gives the same maps.
    named = {f"P{name[1:]}": maps for name, maps in stages().items()}
    network.get_result_from_layer_blocks = lambda x, idx: network.layer_blocks[idx](x)  # type: ignore[method-assign]
    with torch.no_grad():
        plain = FeaturePyramidNetwork.forward(network, named)
    assert all(torch.equal(plain[level], light[level]) for level in LEVELS)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_small_maps_have_a_gradient_in_bf16(size: tuple[int, int]) -> None:
    # PyTorch's own bf16 gradient of these weights is uninitialised memory where a map is one cell wide (AVX512-BF16 without AMX).
    network = pyramid_network(full_output=()).to(memory_format=torch.channels_last)
    convs = network.extra_blocks.p6, network.extra_blocks.p7
    sides = {name: tuple(side * scale for side in size) for name, scale in (("C3", 4), ("C4", 2), ("C5", 1))}
    maps = {name: torch.randn(2, channels, *sides[name]) for name, channels in (("C3", 4), ("C4", 6), ("C5", 10))}
    gradients = []
    for is_bf16 in (False, True):
        junk = [torch.full((WIDTH, WIDTH, 3, 3), torch.nan) for _ in range(8)]
        del junk  # what is not written to is likely to be NaN
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            network(maps)["P7"].float().sum().backward()
        gradients.append([conv.weight.grad for conv in convs])
        network.zero_grad()
    for exact, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, exact, rtol=0.05, atol=0.05 * float(exact.abs().max()))  # bf16 has 8 bits


def test_without_one_the_full_head_reads_the_same_p3() -> None:
    network = pyramid_network(full_output=())
    assert not [name for name in network.state_dict() if "full" in name]
    with torch.no_grad():
        light, full = network(stages()), network(stages(), full=True)
    assert all(torch.equal(light[level], full[level]) for level in LEVELS)


def test_a_network_with_both_heads_runs_either() -> None:
    torch.manual_seed(0)
    model = build(PRESETS["lw-v3"], num_classes=2, backbone="resnet18", width=WIDTH, full_output=("P3",)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert model.fpn.full_output is not None
        before = model(images), model(images, full_head=True)
        model.fpn.full_output.weight.add_(0.1)
        after = model(images), model(images, full_head=True)
    p3 = 8 * 8 * 9
    for place in range(2):
        assert torch.equal(before[0][place], after[0][place])
        assert not torch.equal(before[1][place][:, :p3], after[1][place][:, :p3])
        assert torch.equal(before[1][place][:, p3:], after[1][place][:, p3:])
