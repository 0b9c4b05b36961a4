"""Fused convolutions for CUDA: on a GPU if there is one; else cuDNN's operators are replaced and Triton's kernels are interpreted."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lw_retinanet.detection import fused, fused_cuda
from lw_retinanet.detection.fused import FusedBlock, fuse
from lw_retinanet.detection.fused_cuda import CudaConv, CudaFPN, CudaPool, fastest
from lw_retinanet.detection.runtime import with_half_weights
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HALVES = (torch.float16,) if DEVICE.type == "cpu" else (torch.bfloat16, torch.float16)  # the interpreter multiplies no bf16
TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 4e-2}  # some roundings of inputs, weights and sums: 2^-11 or 2^-8 each


def literal_cudnn(features: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    *added, bias, stride, padding, dilation, groups = rest
    output = F.conv2d(features, weight, bias, stride, padding, dilation, groups)
    return (output + added[1] * added[0] if added else output).relu()


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cuda, "_chosen", {})
    if DEVICE.type == "cpu":
        pytest.importorskip("triton")
        for module in (fused, fused_cuda):
            monkeypatch.setattr(module, "has_triton", lambda _: True)
        monkeypatch.setattr(torch, "cudnn_convolution_relu", literal_cudnn)
        monkeypatch.setattr(torch, "cudnn_convolution_add_relu", literal_cudnn)


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "activation", "expected"),
    [
        (1, 1, 1, nn.ReLU(), {"convolution", "cudnn", "one pass", "product", "triton 64"}),
        (1, 1, 1, None, {"convolution", "one pass", "product", "triton 64"}),
        (1, 2, 1, nn.ReLU(), {"convolution", "cudnn", "one pass", "triton 64"}),
        (3, 1, 1, nn.ReLU(), {"convolution", "cudnn", "one pass"}),
        (3, 2, 8, None, {"convolution", "one pass"}),
        (3, 1, 8, nn.ReLU6(), {"convolution"}),
    ],
)
@torch.inference_mode()
def test_all_ways_give_the_same(
    kernel: int, stride: int, groups: int, activation: nn.Module | None, expected: set[str], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 24, kernel, stride=stride, padding=kernel // 2, groups=groups).to(DEVICE)
    assert conv.bias is not None
    nn.init.normal_(conv.bias)
    features = channels_last(2, 8, 9, 11)
    added = channels_last(2, 24, -(-9 // stride), -(-11 // stride))
    plain, made = conv(features), CudaConv(copy.deepcopy(conv).to(dtype), activation)
    assert set(made.ways(is_added=False)) == expected
    for other in (None, *(() if isinstance(activation, nn.ReLU6) else (added,))):
        total = plain if other is None else plain + other
        total = total if activation is None else activation(total)
        for name, way in made.ways(is_added=other is not None).items():
            given = None if other is None else other.to(dtype)
            found = way(features.to(dtype), given)
            assert found.is_contiguous(memory_format=torch.channels_last), name
            torch.testing.assert_close(found.float(), total, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
            if given is not None:
                assert given.equal(other.to(dtype)), name  # the shortcut may be read again


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("side", [3, 7])
@torch.inference_mode()
def test_a_stem_over_blocks_of_pixels(side: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, side, stride=2, padding=side // 2).to(DEVICE)
    made = CudaConv(copy.deepcopy(conv).to(dtype), nn.ReLU())
    assert set(made.ways(is_added=False)) == {"convolution", "cudnn", "one pass", "blocks"}
    for shape in ((2, 3, 12, 18), (1, 3, 9, 14)):
        features = channels_last(*shape)
        found = made.ways(is_added=False)["blocks"](features.to(dtype), None)
        torch.testing.assert_close(found.float(), conv(features).relu(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(2, 8, 12, 7), (1, 24, 5, 16)])
def test_pooling(shape: tuple[int, ...]) -> None:
    features = channels_last(*shape).half()
    assert CudaPool()(features).equal(F.max_pool2d(features.float(), 3, 2, 1).half())


@pytest.mark.parametrize("size_hw", [(8, 12), (7, 11), (13, 25)])
@torch.inference_mode()
def test_the_level_above_is_enlarged(size_hw: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 1).to(DEVICE)
    made = CudaConv(copy.deepcopy(conv).half(), None)
    features, above = channels_last(2, 8, *size_hw), channels_last(2, 16, -(-size_hw[0] // 2), -(-size_hw[1] // 2))
    expected = conv(features) + F.interpolate(above, size=size_hw, mode="nearest")
    for way in made.ways(is_added=True).values():
        found = way(features.half(), above.half())
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)  # roundings to fp16


def test_the_network_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_cuda, "fastest", lambda ways, _: max(name for name in ways if DEVICE.type != "cpu" or "triton" not in name))
    monkeypatch.setattr(fused, "_maker", lambda _: CudaConv)
    torch.manual_seed(0)
    plain = (
        folded(build(plan_of("lw-v3"), num_classes=3, backbone="resnet18", width=16).eval())
        .to(DEVICE)
        .to(memory_format=torch.channels_last)
    )
    half = with_half_weights(plain)
    quick = copy.deepcopy(half)
    assert isinstance(quick, RetinaNet)
    assert fuse(quick)
    assert sum(isinstance(part, FusedBlock) for part in quick.modules()) == 8
    assert [sum(isinstance(part, kind) for part in quick.modules()) for kind in (CudaPool, CudaFPN)] == [1, 1]
    assert not any(type(part) is nn.Conv2d for part in quick.modules())
    images = channels_last(1, 3, 32, 32)
    with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16):
        expected, found, again = plain(images), quick(images), quick(images)
    assert found.logits.dtype is torch.bfloat16
    for ours, repeated, theirs in zip(found, again, expected, strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.03 * float(theirs.float().abs().max()))
        assert ours.equal(repeated)


def test_one_measurement_serves_equal_layers_and_similar_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[set[str]] = []

    def first(ways: dict[str, object], _: torch.device) -> str:
        measured.append(set(ways))
        return "convolution"

    monkeypatch.setattr(fused_cuda, "fastest", first)
    made = [CudaConv(nn.Conv2d(8, 8, 1, bias=False).to(DEVICE), nn.ReLU()) for _ in range(2)]
    for side in (8, 9, 10, 9):
        for conv in made:
            conv(channels_last(1, 8, side, side))
    assert len(measured) == 1
    made[0](channels_last(1, 8, 16, 16))
    made[0](channels_last(1, 8, 8, 8), channels_last(1, 8, 8, 8))
    assert len(measured) == 3


def test_a_way_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        now = 0.0

        def __init__(self, **_: bool) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = Event.now

        def synchronize(self) -> None: ...

        def elapsed_time(self, other: "Event") -> float:
            return other.at - self.at

    def takes(seconds: float) -> None:
        Event.now += seconds

    def fails() -> None:
        raise RuntimeError("no engine")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert fastest({"convolution": lambda: takes(2), "cudnn": fails, "product": lambda: takes(1)}, DEVICE) == "product"
    with pytest.raises(RuntimeError, match="no engine"):
        fastest({"convolution": fails}, DEVICE)
