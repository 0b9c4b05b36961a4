"""The presets are the rows of the paper's tables: which branch of D3 is light, and with which layers."""

import pytest
import torch
from torch import nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.models.head import Head
from lw_retinanet.models.variants import PRESETS

FULL = "3x3 3x3 3x3 3x3 > 3x3"
V3 = "1x1 1x1 1x1 1x1 > 1x1"
V2 = "1x1 3x3 1x1 3x3 > 3x3"
V1 = "dw3x3 1x1 dw3x3 1x1 dw3x3 1x1 dw3x3 1x1 > dw3x3 1x1"
NARROW = "1x1 3x3 3x3 3x3 3x3 > 1x1"
DW5 = "dw5x5 1x1 1x1 1x1 1x1 > 1x1"

D3 = {
    "retinanet": (FULL, FULL),
    "lw-v1": (V2, FULL),
    "lw-v2": (V3, FULL),
    "lw-v3": (V3, V3),
    "lw-v3-released": (V3, "1x1 1x1 1x1 1x1 > 3x3"),
    "bbox-v1": (FULL, V1),
    "bbox-v2": (FULL, V2),
    "bbox-v3": (FULL, V3),
    "lw-narrow": (NARROW, NARROW),
    "lw-dw5": (DW5, DW5),
}


def _head(preset: str) -> Head:
    with torch.device("meta"):
        return Head(in_channels=256, num_classes=80, num_anchors=9, plan=PRESETS[preset]())


def _kernels(modules: list[nn.Module]) -> str:
    convs = [conv for module in modules for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    return " ".join(f"{'dw' if conv.groups > 1 else ''}{conv.kernel_size[0]}x{conv.kernel_size[1]}" for conv in convs)


@pytest.mark.parametrize("preset", PRESETS)
def test_layers_of_d3_and_of_the_other_levels(preset: str) -> None:
    head = _head(preset)
    for branch, wanted in zip((head.cls, head.bbox), D3[preset], strict=True):
        for level in LEVELS:
            units, predict = branch.layers(level)
            assert f"{_kernels(units)} > {_kernels([predict])}" == (wanted if level == "P3" else FULL)


@pytest.mark.parametrize("preset", PRESETS)
def test_only_what_differs_from_the_baseline_is_own(preset: str) -> None:
    head = _head(preset)
    for branch, layers in zip((head.cls, head.bbox), D3[preset], strict=True):
        (units, predict), (shared_units, shared_predict) = branch.layers("P3"), branch.layers("P4")
        assert (units == shared_units) == (layers == FULL)
        assert (predict is shared_predict) == (layers == FULL or layers.endswith("1x1 > 3x3"))


def test_every_preset_is_covered() -> None:
    assert list(PRESETS) == list(D3)


def test_narrow_towers_are_96_wide_inside() -> None:
    units, predict = _head("lw-narrow").cls.layers("P3")
    convs = [conv for module in [*units, predict] for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(256, 96)] + [(96, 96)] * 4 + [(96, 720)]


def _field_of_view(preset: str) -> int:
    """Side of the square of P3 cells that one output of the class branch depends on."""
    head = Head(in_channels=8, num_classes=1, num_anchors=1, plan=PRESETS[preset](), init="fan_in").double()
    for parameter in head.parameters():
        nn.init.constant_(parameter, 0.1)  # positive, so that no ReLU hides a cell
    features = torch.ones(1, 8, 25, 25, dtype=torch.float64, requires_grad=True)
    head.cls(features, "P3")[0, 0, 12, 12].backward()
    assert features.grad is not None
    return int(features.grad[0, 0].any(dim=0).sum())


@pytest.mark.parametrize(("preset", "side"), [("retinanet", 11), ("lw-v1", 7), ("lw-v3", 1), ("lw-narrow", 9), ("lw-dw5", 5)])
def test_field_of_view_of_d3(preset: str, side: int) -> None:
    assert _field_of_view(preset) == side


def test_presets_give_fresh_equal_plans() -> None:
    assert all(make() == make() for make in PRESETS.values())
