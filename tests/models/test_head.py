"""The head: what a plan shares and owns, how weights start, and that signals and gradients get through."""

import math
from collections.abc import Mapping

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.heads import D_BLOCKS, PRESETS, HeadPlan, Level, TowerPlan, block_tower, plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.head import Branch, Head, Init

WIDTH, CLASSES, ANCHORS = 16, 3, 9


def _head(plan: HeadPlan, *, init: Init = "fan_in_light", width: int = WIDTH) -> Head:
    torch.manual_seed(0)
    return Head(in_channels=width, num_classes=CLASSES, num_anchors=ANCHORS, plan=plan, init=init)


def _pyramid(width: int = WIDTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = zip(LEVELS, ((12, 10), (6, 5), (3, 3), (2, 2), (1, 1)), strict=True)
    return {level: torch.randn(2, width, *size, generator=generator) for level, size in sizes}


def _units(branch: Branch, level: str) -> list[nn.Module]:
    return branch.layers(level)[0]


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "retinanet"])
def test_own_p3_weights_leave_the_other_levels_unchanged(preset: str) -> None:
    full, light = _head(HeadPlan()), _head(PRESETS[preset])
    missing, unexpected = light.load_state_dict({k: v for k, v in full.state_dict().items() if k in light.state_dict()}, strict=False)
    assert not unexpected
    assert all(".own_" in key and ".P3." in key for key in missing)
    with torch.no_grad():
        before, after = full(_pyramid()), light(_pyramid())
    p3 = 12 * 10 * ANCHORS
    for old, new, owns in zip(before, after, (PRESETS[preset].cls, PRESETS[preset].bbox), strict=True):
        assert torch.equal(old[:, p3:], new[:, p3:])
        assert torch.equal(old[:, :p3], new[:, :p3]) == (not owns)


def test_predictions_are_ordered_by_level_row_column_and_anchor() -> None:
    head = _head(HeadPlan(cls={"P3": block_tower("v3")}))
    pyramid = _pyramid()
    with torch.no_grad():
        logits, deltas = head(pyramid)
        maps = head.cls(pyramid["P4"], "P4")  # (N, anchors * K, 6, 5)
        box_maps = head.bbox(pyramid["P4"], "P4")
    cells = [12 * 10, 6 * 5, 3 * 3, 2 * 2, 1]
    assert logits.shape == (2, sum(cells) * ANCHORS, CLASSES)
    assert deltas.shape == (2, sum(cells) * ANCHORS, 4)
    row, column, anchor = 4, 2, 7
    place = (cells[0] + row * 5 + column) * ANCHORS + anchor
    torch.testing.assert_close(logits[1, place], maps[1, anchor * CLASSES : (anchor + 1) * CLASSES, row, column], rtol=0, atol=0)
    torch.testing.assert_close(deltas[1, place], box_maps[1, anchor * 4 : (anchor + 1) * 4, row, column], rtol=0, atol=0)


@pytest.mark.parametrize("preset", ["lw-stem", "lw-stem-p3p4-shared", "lw-narrow-p3p4"])
def test_layers_that_towers_have_in_common(preset: str) -> None:
    head = _head(plan_of(preset))
    pyramid, calls = _pyramid(), 0

    def note(*_: object) -> None:
        nonlocal calls
        calls += 1

    _units(head.cls, "P3")[0].register_forward_hook(note)
    with torch.no_grad():
        logits, deltas = head(pyramid)
    assert calls == (2 if preset.endswith("shared") else 1)  # a unit that both branches read runs once
    for branch, found, values in ((head.cls, logits, CLASSES), (head.bbox, deltas, 4)):
        rows = []
        for level in LEVELS:
            units, predict = branch.layers(level)
            with torch.no_grad():
                maps = predict(nn.Sequential(*units)(pyramid[level]))
            rows.append(maps.permute(0, 2, 3, 1).reshape(2, -1, values))
        torch.testing.assert_close(found, torch.cat(rows, dim=1), rtol=0, atol=0)


def test_released_codes_own_first_unit_at_every_level_can_be_planned() -> None:
    first_own = TowerPlan(units=("3x3", "shared", "shared", "shared"), predict="shared")
    levels: tuple[Level, ...] = ("P4", "P5", "P6", "P7")
    plan = HeadPlan(
        cls=dict.fromkeys(levels, first_own) | {"P3": block_tower("v3")},
        bbox=dict.fromkeys(levels, first_own) | {"P3": block_tower("v3", predict="shared")},
    )
    head = _head(plan)
    for branch in (head.cls, head.bbox):
        assert sorted(branch.shared_units) == ["1", "2", "3"]  # unit 0 of the shared tower serves no level, so it is not built
        firsts = [_units(branch, level)[0] for level in LEVELS]
        assert len({id(unit) for unit in firsts}) == 5
        for place in (1, 2, 3):
            assert len({id(_units(branch, level)[place]) for level in LEVELS[1:]}) == 1
    assert head.cls.layers("P3")[1] is not head.cls.layers("P4")[1]
    assert head.bbox.layers("P3")[1] is head.bbox.layers("P4")[1]
    assert head(_pyramid()).logits.isfinite().all()


def test_layers_that_no_level_shares_are_not_built() -> None:
    every_level = dict.fromkeys(LEVELS, block_tower("v3"))
    head = _head(HeadPlan(cls=every_level, bbox=dict.fromkeys(LEVELS, block_tower("v3", predict="shared"))))  # type: ignore[arg-type]
    assert len(head.cls.shared_units) == 0
    assert head.cls.shared_predict is None
    assert len(head.bbox.shared_units) == 0
    assert head.bbox.shared_predict is not None


@pytest.mark.parametrize("preset", [*PRESETS, "both-v1-bn", "both-v3-bn", "lw-stem-p3p4p5p6p7-shared"])
def test_every_parameter_gets_a_gradient(preset: str) -> None:
    torch.manual_seed(0)
    model = build(plan_of(preset), num_classes=2, backbone="resnet18", width=16, norm="batch")
    logits, deltas = model(torch.randn(2, 3, 96, 64))
    (logits.square().sum() + deltas.square().sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not without


def _gains(units: list[nn.Module], features: Tensor) -> list[float]:
    """Root mean square after each unit, relative to the input's."""
    start = features.square().mean().sqrt()
    gains = []
    with torch.no_grad():
        for unit in units:
            features = unit(features)
            gains.append(float(features.square().mean().sqrt() / start))
    return gains


@pytest.mark.parametrize("block", D_BLOCKS)
def test_fan_in_keeps_the_signal_through_every_unit(block: str) -> None:
    head = _head(HeadPlan(cls={"P3": block_tower(block)}), init="fan_in", width=128)
    features = torch.randn(1, 128, 16, 16, generator=torch.Generator().manual_seed(2))
    for level in ("P3", "P4"):
        assert all(0.1 < gain < 10 for gain in _gains(_units(head.cls, level), features))


def _towers_std(plan: HeadPlan, init: Init | None, *, is_training: bool) -> list[float]:
    """Standard deviation after the class and the box tower of D3, for an input of unit variance."""
    torch.manual_seed(0)
    init_choice: Mapping[str, Init] = {"init": init} if init else {}
    head = Head(in_channels=256, num_classes=1, num_anchors=1, plan=plan, **init_choice).train(is_training)
    features = torch.randn(1, 256, 24, 24, generator=torch.Generator().manual_seed(2))
    found = []
    for branch in (head.cls, head.bbox):
        outputs = features
        with torch.no_grad():
            for unit in _units(branch, "P3"):
                outputs = unit(outputs)
        found.append(float(outputs.std()))
    return found


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("block", [*D_BLOCKS, "narrow64"])
def test_every_light_tower_passes_its_signal_on_by_default(block: str, is_training: bool) -> None:
    tower = {"P3": block_tower("original")}
    plan = HeadPlan(cls=tower, bbox=tower) if block == "original" else plan_of(f"both-{block}")  # type: ignore[arg-type]
    assert all(0.1 < std < 10 for std in _towers_std(plan, None, is_training=is_training))


@pytest.mark.parametrize("block", ["v1", "v2", "v3", "narrow", "dw5"])
def test_no_light_tower_does_with_the_papers_init(block: str) -> None:
    stds = _towers_std(plan_of(f"both-{block}"), "paper", is_training=True)
    assert all(std < 0.1 for std in stds)
    if block == "v1":  # nothing that a step of training could tell from zero
        assert all(std < 1e-9 for std in stds)


def test_batch_norm_makes_up_for_the_papers_init() -> None:
    # What v1 loses is scale alone, which a norm gives back; so v1 with norms is the control for what initialisation does to v1.
    assert all(0.1 < std < 10 for std in _towers_std(plan_of("both-v1-bn"), "paper", is_training=True))


# A unit with weights of std 0.01 passes on sqrt(taps * 1e-4 / 2) of the root mean square (the 2 is the ReLU's), a depthwise 3x3 sqrt(9e-4).
@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("original", math.sqrt(9 * 256 * 1e-4 / 2) ** 4),  # 1.3e-2
        ("v3", math.sqrt(256 * 1e-4 / 2) ** 4),  # 1.6e-4
        ("v1", (math.sqrt(9e-4) * math.sqrt(256 * 1e-4 / 2)) ** 4),  # 1.3e-10
    ],
)
def test_the_papers_init_loses_the_signal_by_orders_of_magnitude(block: str, expected: float) -> None:
    head = _head(HeadPlan(cls={"P3": block_tower(block)}), init="paper", width=256)
    features = torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(2))
    # Borders see zeros and one draw of weights is not the mean of all.
    assert _gains(_units(head.cls, "P3"), features)[-1] == pytest.approx(expected, rel=0.4)


def test_the_default_init_is_fan_in_for_own_towers_and_the_papers_elsewhere() -> None:
    head = _head(HeadPlan(cls={"P3": block_tower("v3")}), width=256)
    own, shared = _units(head.cls, "P3")[0][0], _units(head.cls, "P4")[0][0]  # type: ignore[index]
    assert own.weight.std().item() == pytest.approx(math.sqrt(2 / 256), rel=0.03)
    assert shared.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert not own.bias.any()


@pytest.mark.parametrize("init", ["fan_in", "fan_in_light", "paper"])
@pytest.mark.parametrize("preset", ["retinanet", "lw-v3", "bbox-v1", "lw-v3-released"])
def test_every_class_prediction_starts_at_the_prior(preset: str, init: Init) -> None:
    head = _head(PRESETS[preset], init=init)
    for level in LEVELS:
        cls_conv, bbox_conv = (
            [layer for layer in branch.layers(level)[1].modules() if isinstance(layer, nn.Conv2d)][-1] for branch in (head.cls, head.bbox)
        )
        assert cls_conv.bias is not None
        assert bbox_conv.bias is not None
        torch.testing.assert_close(cls_conv.bias.sigmoid(), torch.full((ANCHORS * CLASSES,), 0.01))
        assert not bbox_conv.bias.any()
        assert cls_conv.weight.std().item() == pytest.approx(0.01, rel=0.15)


def test_redrawing_keeps_the_modules_and_changes_the_weights() -> None:
    head = _head(PRESETS["lw-v3"])
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.reset_parameters("paper")
    assert all(torch.equal(before[key], value) == key.endswith("bias") for key, value in head.state_dict().items())


def test_redrawing_lets_norms_forget() -> None:
    head = _head(plan_of("both-v1-bn"))
    fresh = {key: value.clone() for key, value in head.state_dict().items() if "running" in key}
    head.train()(_pyramid())
    assert not all(torch.equal(fresh[key], head.state_dict()[key]) for key in fresh)
    head.reset_parameters("fan_in")
    assert len(fresh) == 2 * 2 * 2 * 4
    assert all(torch.equal(fresh[key], head.state_dict()[key]) for key in fresh)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"units": ("3x3", "5x5")}, "unknown unit '5x5'; known: 3x3, 3x3-gn, 1x1"),
        ({"units": ("1x1",), "predict": "7x7"}, "unknown prediction kernel '7x7'"),
        ({"units": ("1x1", "shared"), "width": 64}, "leave width out"),
        ({"units": ("1x1",), "width": 64, "predict": "shared"}, "leave width out"),
        ({"units": ()}, "1 to 64 units, got 0"),
    ],
)
def test_towers_that_cannot_be_built_are_refused(fields: Mapping[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(TowerPlan).validate_python(fields)


def test_head_plans_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot itself be shared"):
        HeadPlan(shared=TowerPlan(units=("3x3", "shared")))
    with pytest.raises(ValueError, match=r"bbox P5 shares more units than the shared tower has \(4\)"):
        HeadPlan(bbox={"P5": TowerPlan(units=("3x3",) * 4 + ("shared",))})
    both = {"units": ("cls", "1x1"), "predict": "1x1"}
    for fields, message in (
        ({"cls": {"P3": both}}, "cls P3: only the first units of a box tower can be those of the class tower"),
        ({"cls": {"P3": block_tower("v3")}, "bbox": {"P3": TowerPlan(units=("1x1", "cls"))}}, "bbox P3: only the first units"),
        ({"bbox": {"P3": both}}, "unit 0 of bbox P3 is taken from cls, which has none of its own there"),
        ({"cls": {"P3": block_tower("narrow")}, "bbox": {"P3": both}}, "bbox P3 takes layers from cls, whose tower is not as wide"),
        ({"cls": {"P4": TowerPlan(units=("P3",), predict="1x1")}}, "unit 0 of cls P4 is taken from P3, which has none"),
        ({"cls": {"P3": block_tower("v3"), "P4": TowerPlan(units=("1x1",) * 4 + ("P3",))}}, "unit 4 of cls P4 is taken from P3"),
        (
            {"cls": {"P3": block_tower("v3", predict="shared"), "P4": TowerPlan(units=("P3",) * 4, predict="P3")}},
            "the prediction of cls P4",
        ),
        ({"cls": {"P3": block_tower("v3-bn"), "P4": TowerPlan(units=("P3",) * 4)}}, "a unit with batch norm from P3"),
    ):
        with pytest.raises(ValueError, match=message):
            TypeAdapter(HeadPlan).validate_python(fields)
    with pytest.raises(ValidationError, match="P2"):
        TypeAdapter(HeadPlan).validate_python({"cls": {"P2": {"units": ["1x1"]}}})


@pytest.mark.parametrize("preset", PRESETS)
def test_plans_survive_json(preset: str) -> None:
    plan = PRESETS[preset]
    assert TypeAdapter(HeadPlan).validate_json(TypeAdapter(HeadPlan).dump_json(plan)) == plan


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "retinanet"])
def test_the_full_head_of_a_light_one_is_the_shared_one_at_every_level(preset: str) -> None:
    full, light = _head(HeadPlan()), _head(PRESETS[preset])
    light.load_state_dict({k: v for k, v in full.state_dict().items() if k in light.state_dict()}, strict=False)
    with torch.no_grad():
        for expected, found, own in zip(full(_pyramid()), light(_pyramid(), full=True), light(_pyramid()), strict=True):
            assert torch.equal(found, expected)
            assert own.shape == expected.shape
    for branch in (light.cls, light.bbox):
        units, predict = branch.layers("P3", full=True)
        assert units == branch.layers("P5")[0]
        assert predict is branch.layers("P5")[1]
