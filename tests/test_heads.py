"""The presets are the rows of the paper's tables: which branch of D3 is light, and with which layers. Others are made from their names."""

import re
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.counting.hooked import count_blocks_hooked
from torch import nn

from lw_retinanet.conventions import LEVELS, Conventions
from lw_retinanet.counting.macs import Cost, count_blocks
from lw_retinanet.errors import ConfigError
from lw_retinanet.heads import BRANCHES, D_BLOCKS, PRESETS, HeadPlan, block_tower, is_preset, light_blocks, plan_of, preset_names
from lw_retinanet.models.build import build
from lw_retinanet.models.head import Head
from lw_retinanet.weights.create import ANCHORS

FULL = "3x3 3x3 3x3 3x3 > 3x3"
V3 = "1x1 1x1 1x1 1x1 > 1x1"
V2 = "1x1 3x3 1x1 3x3 > 3x3"
V1 = "dw3x3 1x1 dw3x3 1x1 dw3x3 1x1 dw3x3 1x1 > dw3x3 1x1"
NARROW = "1x1 3x3 3x3 3x3 3x3 > 1x1"
DW5 = "dw5x5 1x1 1x1 1x1 1x1 > 1x1"
SEPARABLE = "dw3x3 1x1 dw3x3 1x1 > 1x1"
STEM = "1x1 3x3 3x3 > 1x1"

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
    "lw-separable": (SEPARABLE, NARROW),
    "lw-separable120": (SEPARABLE, NARROW),
    "lw-stem": (STEM, STEM),
}


def _head(preset: str) -> Head:
    with torch.device("meta"):
        return Head(in_channels=256, num_classes=80, num_anchors=9, plan=plan_of(preset))


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
    head = Head(in_channels=8, num_classes=1, num_anchors=1, plan=PRESETS[preset], init="fan_in").double()
    for parameter in head.parameters():
        nn.init.constant_(parameter, 0.1)  # positive, so that no ReLU hides a cell
    features = torch.ones(1, 8, 25, 25, dtype=torch.float64, requires_grad=True)
    head.cls(features, "P3")[0, 0, 12, 12].backward()
    assert features.grad is not None
    return int(features.grad[0, 0].any(dim=0).sum())


@pytest.mark.parametrize(("preset", "side"), [("retinanet", 11), ("lw-v1", 7), ("lw-v3", 1), ("lw-narrow", 9), ("lw-dw5", 5)])
def test_field_of_view_of_d3(preset: str, side: int) -> None:
    assert _field_of_view(preset) == side


@pytest.mark.parametrize("branches", BRANCHES)
@pytest.mark.parametrize("block", light_blocks())
def test_every_block_in_every_branch_by_name(block: str, branches: str) -> None:
    plan = plan_of(f"{branches}-{block}")
    own = {"P3": block_tower(block)}
    assert (plan.cls, plan.bbox) == (own if branches != "bbox" else {}, own if branches != "cls" else {})
    assert plan.shared == HeadPlan().shared
    assert TypeAdapter(HeadPlan).validate_json(TypeAdapter(HeadPlan).dump_json(plan)) == plan
    assert f"{branches}-{block}" in preset_names()


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("lw-v1", "cls-v2"),
        ("lw-v2", "cls-v3"),
        ("lw-v3", "both-v3"),
        ("lw-narrow", "both-narrow"),
        ("lw-narrow", "both-narrow96"),
        ("lw-dw5", "both-dw5"),
        ("bbox-v1", "bbox-v1"),
    ],
)
def test_the_rows_have_a_second_name(name: str, same: str) -> None:
    assert PRESETS[name] == plan_of(same)


@given(width=st.integers(0, 700), branches=st.sampled_from(list(BRANCHES)))
@settings(deadline=None, max_examples=80)
def test_narrow_has_any_width_that_is_a_multiple_of_eight(width: int, branches: str) -> None:
    name = f"{branches}-narrow{width}"
    assert is_preset(name) == (8 <= width <= 512 and width % 8 == 0)
    if is_preset(name):
        plan = plan_of(name)
        assert {tower.width for tower in (*plan.cls.values(), *plan.bbox.values())} == {width}
    else:
        with pytest.raises(ConfigError, match=f"^unknown preset '{name}'"):
            plan_of(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("lw-v33", "lw-v3"),
        ("LW-V3", None),
        ("both_narrow", "both-narrow"),
        ("both-narrow100", "both-narrow96"),
        ("cls-narrow9999", "cls-narrow512"),
        ("bbox-narrow1", "bbox-narrow8"),
        ("cls-narrow064", "cls-narrow"),
        ("cls-v1bn", "cls-v1-bn"),
        ("both-v364", "both-v3"),
        ("both-original", None),
        ("lw-v33-p3p4", "lw-v3-p3p4"),
        ("both-narrow100-p3p4-shared", "both-narrow96-p3p4-shared"),
        ("lw-v3-p3p5", None),
        ("retinanet-p3p4", None),
        ("both-v3-bn-p3p4-shared", None),
        ("lw-v3-p3p4-p3p4", None),
        ("", None),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_of(name)
    message = str(caught.value)
    assert message.startswith(f"unknown preset {name!r}; ")
    assert "\n" not in message
    assert nearest is None or f"did you mean {nearest}?" in message
    assert "known presets: retinanet, lw-v1, " in message
    assert "cls-, bbox- or both- with one of v1, v2, v3, narrow, dw5, separable, v1-bn, v3-bn" in message
    assert not is_preset(name)


def test_what_is_no_text_is_no_preset() -> None:
    with pytest.raises(ConfigError, match="unknown preset 3;"):
        plan_of(3)  # type: ignore[arg-type]


def test_batch_norm_towers_belong_to_one_level() -> None:
    with pytest.raises(ValueError, match="give each level units with batch norm of its own"):
        HeadPlan(shared=block_tower("v1-bn"))


# MACs a cell of P3 by hand, from 256 channels: tower, class prediction (9 * 80 outputs), box prediction (36).
A_CELL = {
    "original": (4 * 256 * 256 * 9, 256 * 720 * 9, 256 * 36 * 9),
    "v1": (4 * (256 * 9 + 256 * 256), 256 * 9 + 256 * 720, 256 * 9 + 256 * 36),
    "v2": (2 * (256 * 256 + 256 * 256 * 9), 256 * 720 * 9, 256 * 36 * 9),
    "v3": (4 * 256 * 256, 256 * 720, 256 * 36),
    "narrow": (256 * 96 + 4 * 96 * 96 * 9, 96 * 720, 96 * 36),
    "narrow64": (256 * 64 + 4 * 64 * 64 * 9, 64 * 720, 64 * 36),
    "narrow128": (256 * 128 + 4 * 128 * 128 * 9, 128 * 720, 128 * 36),
    "dw5": (256 * 25 + 4 * 256 * 256, 256 * 720, 256 * 36),
    "separable": (2 * (256 * 9 + 256 * 256), 256 * 720, 256 * 36),
}
A_CELL |= {"v1-bn": A_CELL["v1"], "v3-bn": A_CELL["v3"]}  # norms fold away, and count for nothing before they do
CELLS = 100 * 100


def _blocks(plan: HeadPlan) -> dict[str, Cost]:
    with torch.device("meta"):
        return count_blocks(build(plan, num_classes=80, backbone="resnet18"), (800, 800))


@pytest.mark.parametrize("block", [name for name in A_CELL if name != "original"])
def test_cost_of_d3_by_hand(block: str) -> None:
    full, light = A_CELL["original"], A_CELL[block]
    rest = _blocks(HeadPlan())
    rest.pop("D3")
    for branches in BRANCHES:
        blocks = _blocks(plan_of(f"{branches}-{block}"))
        cls, bbox = (light if branches != "bbox" else full), (light if branches != "cls" else full)
        parts = {"cls_tower": cls[0], "cls_predict": cls[1], "bbox_tower": bbox[0], "bbox_predict": bbox[2]}
        d3 = blocks.pop("D3")
        assert {name: part.macs for name, part in d3.parts.items()} == {name: macs * CELLS for name, macs in parts.items()}
        assert d3.macs == sum(parts.values()) * CELLS
        assert {name: cost.macs for name, cost in blocks.items()} == {name: cost.macs for name, cost in rest.items()}


@pytest.mark.parametrize(
    "preset", ["both-v1-bn", "both-v3-bn", "cls-narrow64", "bbox-dw5", "lw-separable", "lw-stem", "lw-v3-p3p4p5", "lw-stem-p3p4-shared"]
)
def test_torchs_own_counter_agrees(preset: str) -> None:
    with torch.device("meta"):
        model = build(plan_of(preset), num_classes=7, backbone="resnet18")
    assert count_blocks_hooked(model, (333, 517)) == count_blocks(model, (333, 517))


# The table's sums: D3 in both branches.
@pytest.mark.parametrize(("preset", "macs"), [("lw-v3", 7_178_240_000), ("lw-narrow", 7_852_800_000), ("lw-dw5", 7_306_240_000)])
def test_hand_counts_are_those_of_the_table(preset: str, macs: int) -> None:
    tower, cls, bbox = A_CELL[preset.removeprefix("lw-")]
    assert (2 * tower + cls + bbox) * CELLS == macs == _blocks(plan_of(preset))["D3"].macs


def test_the_heads_at_the_cost_of_lw_v3_by_hand() -> None:
    separable = 2 * (256 * 9 + 256 * 256)
    boxes = 256 * 100 + 4 * 100 * 100 * 9 + 100 * 36
    assert (separable + 256 * 720 + boxes) * CELLS == 7_092_000_000 == _blocks(plan_of("lw-separable"))["D3"].macs
    # A 1x1 unit for both branches, two 3x3 units in each, 1x1 predictions.
    stem = 256 * 128 + 4 * 128 * 128 * 9 + 128 * (720 + 36)
    d3 = _blocks(plan_of("lw-stem"))["D3"]
    assert stem * CELLS == 7_193_600_000 == d3.macs
    assert d3.params == stem + 5 * 128 + 720 + 36  # weights and offsets
    assert {name: part.macs for name, part in d3.parts.items()} == {
        "cls_tower": (256 * 128 + 2 * 128 * 128 * 9) * CELLS,
        "cls_predict": 128 * 720 * CELLS,
        "bbox_tower": 2 * 128 * 128 * 9 * CELLS,
        "bbox_predict": 128 * 36 * CELLS,
    }
    # One anchor a cell: 80 class outputs and 4 box outputs.
    one = separable + 256 * 80 + 256 * 120 + 4 * 120 * 120 * 9 + 120 * 4
    with torch.device("meta"):
        model = build(plan_of("lw-separable120"), num_classes=80, backbone="resnet18", conventions=Conventions(anchors=ANCHORS["one"]))
    assert one * CELLS == 7_057_600_000 == count_blocks(model, (800, 800))["D3"].macs


def test_light_levels_of_a_light_backbone_by_hand() -> None:
    def giga(name: str) -> tuple[float, float, float]:
        with torch.device("meta"):
            blocks = count_blocks(build(plan_of(name), num_classes=80, backbone="mobilenet_v2"), (800, 800))
        total = sum(block.macs for block in blocks.values())
        return round(total / 1e9, 1), round(blocks["D3"].macs / 1e9, 1), round(blocks["D4"].macs / 1e9, 1)

    assert giga("retinanet") == (97.9, 64.6, 16.2)
    assert giga("lw-v3") == (40.4, 7.2, 16.2)
    assert giga("lw-v3-p3p4") == (26.1, 7.2, 1.8)  # 3.8 times fewer
    assert giga("lw-v3-p3p4-shared") == (26.1, 7.2, 1.8)
    tower, cls, bbox = A_CELL["narrow"]
    blocks = _blocks(plan_of("lw-narrow-p3p4"))
    assert blocks["D4"].macs == (2 * tower + cls + bbox) * 50 * 50
    # One tower for both levels is counted once.
    assert _blocks(plan_of("lw-narrow-p3p4-shared"))["D4"].params == 0
    assert blocks["D4"].params == blocks["D3"].params


@pytest.mark.parametrize("name", ["lw-v3-p3p4", "both-narrow64-p3p4p5p6p7-shared", "cls-v2-p3p4p5", "lw-stem-p3p4-shared"])
def test_levels_by_name(name: str) -> None:
    plan, base = plan_of(name), plan_of(name.split("-p3")[0])
    levels = [f"P{digit}" for digit in name.split("-p3")[1] if digit.isdigit()]
    for towers, of_base in ((plan.cls, base.cls), (plan.bbox, base.bbox)):
        assert list(towers) == (["P3", *levels] if of_base else [])
    with torch.device("meta"):
        head = Head(in_channels=64, num_classes=2, num_anchors=1, plan=plan)
    for branch in (head.cls, head.bbox):
        units, predict = branch.layers("P3")
        for level in levels:
            assert (branch.layers(level)[0] == units) == (name.endswith("shared") or not branch.own_units)
            assert (branch.layers(level)[1] is predict) == (name.endswith("shared") or not branch.own_units)
    assert TypeAdapter(HeadPlan).validate_json(TypeAdapter(HeadPlan).dump_json(plan)) == plan


def test_every_block_is_counted_by_hand() -> None:
    assert {re.sub(r"\d+$", "", name) if name.startswith("narrow") else name for name in A_CELL} == set(D_BLOCKS)


@pytest.mark.parametrize("block", ["v1-bn", "v3-bn"])
def test_parameters_of_the_batch_norm_blocks(block: str) -> None:
    # Per norm a factor and an offset for each channel, instead of the convolution's bias; v1 has a second norm behind each depthwise one.
    plain, normed = (_blocks(plan_of(f"both-{name}"))["D3"].params for name in (block.removesuffix("-bn"), block))
    assert normed - plain == 2 * 4 * prod((256, 3 if block == "v1-bn" else 1))
