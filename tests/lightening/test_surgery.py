import copy
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.lightening.tower_pairs import ANCHORS, WIDTH, trained_like
from torch import Tensor

from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.heads import PRESETS, HeadPlan, Level, TowerPlan, block_tower, plan_of
from lw_retinanet.lightening.calibration_images import calibration_inputs
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.feature_cache import with_answers
from lw_retinanet.lightening.filling import LighteningSettings
from lw_retinanet.lightening.fitting import FitSettings, fit
from lw_retinanet.lightening.stages import lighten_detector
from lw_retinanet.lightening.surgery import is_switchable, level_input, lighten_copy
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.model_file import load_model, make_record, save_model

SIZE_HW = (96, 64)
P3, P4 = 12 * 8 * ANCHORS, 6 * 4 * ANCHORS  # anchors of the two finest levels
LIGHT = [name for name in PRESETS if name != "retinanet"]
SEVERAL = ["lw-v3-p3p4", "lw-narrow-p3p4-shared", "lw-stem-p3p4-shared", "bbox-v3-p3p4"]
V3_AT_P4 = HeadPlan(cls={"P4": block_tower("v3")}, bbox={"P4": block_tower("v3")})
HALF_SHARED = HeadPlan(cls={"P3": TowerPlan(units=("1x1", "1x1", "shared", "shared"), predict="shared")})
EVERY: tuple[Level, ...] = ("P3", "P4", "P5", "P6", "P7")


def images(count: int = 1, seed: int = 5) -> Tensor:
    return torch.randn(count, 3, *SIZE_HW, generator=torch.Generator().manual_seed(seed))


def assert_same_elsewhere(model: RetinaNet, light: RetinaNet, level: str = "P3") -> None:
    """All levels but one say the same to the bit; and the full head, where it is still there, says it at every level."""
    start, stop = {"P3": (0, P3), "P4": (P3, P3 + P4)}[level]
    with torch.no_grad():
        before, after, full = model(images()), light(images()), light(images(), full_head=True)
    for old, new, again in zip(before, after, full, strict=True):
        assert torch.equal(old[:, :start], new[:, :start])
        assert torch.equal(old[:, stop:], new[:, stop:])
        assert torch.equal(old, again)


def detector_of(model: RetinaNet, preset: str) -> Detector:
    model.conventions = Conventions(input=InputRule(size=96))
    names = tuple(Category(id=number, name=f"class {number}") for number in range(2))
    plan = model.head.plan
    record = make_record(model, preset=preset, backbone="resnet18", width=WIDTH, norm="frozen", plan=plan, categories=names, notes={})
    return Detector.of_model(model, names, record=record)


def calibration_like(model: RetinaNet, files: list[Path]) -> Tensor:
    return torch.cat(list(calibration_inputs(files, model.conventions.input, mirrored=False)))


@pytest.mark.parametrize(("preset", "own_output"), [*((name, True) for name in LIGHT), ("lw-v3", False)])
def test_all_but_d3_stays_to_the_bit_through_every_stage(preset: str, own_output: bool) -> None:
    model = trained_like()
    before = copy.deepcopy(model.state_dict())
    light, (level,) = lighten_copy(model, PRESETS[preset], own_output=own_output)
    assert_same_elsewhere(model, light)
    maps = [level_input(light, images(seed=seed), "P3") for seed in (0, 1)]
    solve_closed_form(level, maps)
    assert_same_elsewhere(model, light)
    fit(level, [with_answers(level, item, use_bf16=False) for item in maps], FitSettings(steps=2, rate=1e-2))
    assert_same_elsewhere(model, light)
    with torch.no_grad():
        old, new = model(images()), light(images())
    assert torch.equal(old.logits, new.logits) == (not PRESETS[preset].cls)
    assert torch.equal(old.deltas, new.deltas) == (not PRESETS[preset].bbox)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("old", "plan", "level"),
    [
        (HeadPlan(), V3_AT_P4, "P4"),
        (HeadPlan(), HALF_SHARED, "P3"),
        (HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4)), PRESETS["lw-v3"], "P3"),
        (HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4)), PRESETS["lw-narrow"], "P3"),
        (HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4)), HeadPlan(cls={"P3": TowerPlan(units=("1x1", "shared"), predict="1x1")}), "P3"),
    ],
)
def test_other_levels_shared_units_and_group_norm(old: HeadPlan, plan: HeadPlan, level: str) -> None:
    model = trained_like(old, width=64)
    light, (pair,) = lighten_copy(model, plan)
    assert pair.level == level
    maps = [level_input(light, images(seed=seed), level) for seed in (0, 1)]
    solve_closed_form(pair, maps)
    fit(pair, [with_answers(pair, item, use_bf16=False) for item in maps], FitSettings(steps=2))
    assert_same_elsewhere(model, light, level)


def test_several_levels_at_once() -> None:
    tower = block_tower("v3")
    model = trained_like()
    light, levels = lighten_copy(model, HeadPlan(cls={"P4": tower, "P3": tower}, bbox={"P3": tower}))
    assert [(level.level, [pair.branch for pair in level.pairs]) for level in levels] == [("P3", ["cls", "bbox"]), ("P4", ["cls"])]
    with torch.no_grad():
        old, new = model(images()), light(images())
    assert torch.equal(old.logits[:, P3 + P4 :], new.logits[:, P3 + P4 :])
    assert torch.equal(old.deltas[:, P3:], new.deltas[:, P3:])


@pytest.mark.parametrize("preset", SEVERAL)
def test_light_levels_with_towers_of_their_own_or_one_for_all(preset: str, tmp_path: Path) -> None:
    model, plan = trained_like(), plan_of(preset)
    detector = detector_of(model, "retinanet")
    files = []
    for seed in range(3):
        files.append(tmp_path / f"{seed}.png")
        pixels = torch.randint(0, 255, (64, 96, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(files[-1])
    settings = LighteningSettings(fit=FitSettings(steps=20, rate=1e-3, batch_size=2))
    made = lighten_detector(detector, plan, name=preset, files=files, settings=settings)
    light = made.detector.model
    both = len(plan.cls) > 0
    assert set(light.fpn.full_convolutions()) == ({"P3", "P4"} if both else set())
    with torch.no_grad():
        old, new, full = model(images()), light(images()), light(images(), full_head=True)
    for before, after, again in zip(old, new, full, strict=True):
        assert torch.equal(before[:, P3 + P4 :], after[:, P3 + P4 :])
        assert torch.equal(before, again)
    assert list(made.curve) == (["P3+P4"] if "shared" in preset else ["P3", "P4"])
    misses = {}
    for stage in made.stages[1:]:
        with torch.no_grad():
            found = stage.model(calibration_like(model, files)).deltas
            wanted = model(calibration_like(model, files)).deltas
        for name, part in (("P3", slice(0, P3)), ("P4", slice(P3, P3 + P4))):
            misses[stage.name, name] = float((found - wanted)[:, part].square().sum())
    assert all(misses["closed form", level] < 0.7 * misses["surgery", level] for level in ("P3", "P4"))
    save_model(tmp_path / "light.safetensors", light, made.record)
    loaded = load_model(tmp_path / "light.safetensors")
    assert loaded.record.full_outputs == (("P3", "P4") if both else ())
    with torch.no_grad():
        for full_head in (False, True):
            for expected, found in zip(light(images(), full_head=full_head), loaded.model(images(), full_head=full_head), strict=True):
                # A detector lays its weights out in memory as suits it, which changes the order of sums.
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_model_that_is_light_on_p3_can_be_made_light_on_p4() -> None:
    model, _ = lighten_copy(trained_like(), PRESETS["lw-v3"])
    light, levels = lighten_copy(model, plan_of("lw-v3-p3p4"))
    assert [level.level for level in levels] == ["P4"]
    assert set(light.fpn.full_convolutions()) == {"P3", "P4"}
    with torch.no_grad():
        for before, after in zip(model(images()), light(images()), strict=True):
            assert torch.equal(before[:, :P3], after[:, :P3])
            assert torch.equal(before[:, P3 + P4 :], after[:, P3 + P4 :])


def test_levels_that_share_part_of_their_new_layers_are_refused(tmp_path: Path) -> None:
    tower = block_tower("v3")
    plan = HeadPlan(cls={"P3": tower, "P4": TowerPlan(units=("P3", "1x1"), predict="1x1")})
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match=r"^the plan lets P3 and P4 share some of their new layers; let them share all, or none$"):
        lighten_detector(detector_of(trained_like(), "retinanet"), plan, name="mine", files=[tmp_path / "0.png"])


@pytest.mark.parametrize("first", ["lw-v3", "lw-v3-released", "bbox-v1", "lw-narrow", "lw-dw5"])
@pytest.mark.parametrize("second", ["lw-v1", "lw-v3-released", "lw-narrow"])
def test_a_light_model_can_be_lightened_again(first: str, second: str) -> None:
    model, levels = lighten_copy(trained_like(), PRESETS[first])
    # The convolution that makes P3 for the light towers is no longer the full head's.
    with torch.no_grad():
        for parameter in levels[0].parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    if model.head.plan == HeadPlan(cls=model.head.plan.cls | PRESETS[second].cls, bbox=model.head.plan.bbox | PRESETS[second].bbox):
        with pytest.raises(InputError, match="nothing would change"):
            lighten_copy(model, PRESETS[second])
        return
    if second == "lw-v3-released":  # its prediction is the shared one, which is not what the light tower's features are for
        with pytest.raises(InputError, match="bbox P3 of the plan shares layers with other levels, but the model has its own"):
            lighten_copy(model, PRESETS[second])
        return
    light, (level,) = lighten_copy(model, PRESETS[second])
    maps = [level_input(light, images(seed=seed), "P3") for seed in (0, 1)]
    with torch.no_grad():
        expected = model.head(model.fpn(model.backbone(images(seed=0))))
        taught = {name: tower(level.old_maps(maps[0]))["prediction"] for name, tower in level.old.items()}
    # The teacher is what the model was, not what it was made of.
    torch.testing.assert_close(taught["cls"].permute(0, 2, 3, 1).reshape(1, P3, -1), expected.logits[:, :P3], rtol=0, atol=0)
    torch.testing.assert_close(taught["bbox"].permute(0, 2, 3, 1).reshape(1, P3, -1), expected.deltas[:, :P3], rtol=0, atol=0)
    solve_closed_form(level, maps)
    with torch.no_grad():
        old, new = model(images()), light(images())
        full = model(images(), full_head=True), light(images(), full_head=True)
    assert torch.equal(old.logits[:, P3:], new.logits[:, P3:])
    assert torch.equal(old.deltas[:, P3:], new.deltas[:, P3:])
    assert torch.equal(full[0].logits, full[1].logits)
    assert torch.equal(full[0].deltas, full[1].deltas)
    for branch, layers in (("cls", model.head.plan.cls), ("bbox", model.head.plan.bbox)):
        if layers and not getattr(PRESETS[second], branch):  # a light tower that the plan does not name
            assert all(torch.equal(v, light.state_dict()[k]) for k, v in model.state_dict().items() if k.startswith(f"head.{branch}."))


def test_every_level_with_a_tower_of_its_own_leaves_no_shared_one() -> None:
    every = {level: block_tower("v3") for level in EVERY}
    plan = HeadPlan(cls=every, bbox={level: block_tower("v3", predict="shared") for level in EVERY})
    model = trained_like()
    light, levels = lighten_copy(model, plan)
    assert len(levels) == 5
    assert not is_switchable(model, plan)
    assert light.head.bbox.shared_predict is not None
    for level in levels:
        solve_closed_form(level, [level_input(light, images(), level.level)])
    assert torch.equal(light.head.bbox.shared_predict.weight, model.head.bbox.shared_predict.weight)  # type: ignore[union-attr,arg-type]
    with pytest.raises(InputError, match=r"shares layers that this model does not have, first head\.cls\.shared_predict"):
        lighten_copy(light, HeadPlan(cls={"P4": block_tower("v3", predict="shared")}))


def test_the_old_towers_of_a_level_can_share_less_than_they_were_made_of() -> None:
    # The shared tower's first unit and prediction go, its other units stay, and stay the same ones.
    part = TowerPlan(units=("1x1", "shared", "shared", "shared"), predict="3x3")
    model = trained_like()
    light, levels = lighten_copy(model, HeadPlan(cls=dict.fromkeys(EVERY, part)))
    kept = copy.deepcopy(light.head.cls.shared_units.state_dict())
    assert sorted(light.head.cls.shared_units) == ["1", "2", "3"]
    for level in levels:
        solve_closed_form(level, [level_input(light, images(), level.level)])
        assert [level.pairs[0].is_shared(unit) for unit in level.pairs[0].student.units] == [False, True, True, True]
    assert all(torch.equal(value, kept[key]) for key, value in light.head.cls.shared_units.state_dict().items())


def test_what_new_towers_read_costs_nothing_and_is_theirs_alone() -> None:
    model = trained_like()
    light, (level,) = lighten_copy(model, PRESETS["lw-v3"])
    maps = level_input(light, images(), "P3")
    with torch.no_grad():
        assert torch.equal(level.old_maps(maps), model.fpn(model.backbone(images()))["P3"])
        assert torch.equal(level.old_maps(maps), level.new_maps(maps))  # a start from the old one
        light.fpn.layer_blocks[0][0].weight.add_(0.1)
        assert torch.equal(level.old_maps(maps), model.fpn(model.backbone(images()))["P3"])
        assert torch.equal(level.new_maps(maps), light.fpn(light.backbone(images()))["P3"])
        assert not torch.equal(level.old_maps(maps), level.new_maps(maps))
    assert_same_elsewhere(model, light)
    # Only with both branches new: otherwise the old one still reads the map.
    for preset in ("bbox-v3", "lw-v2"):
        light, (level,) = lighten_copy(model, PRESETS[preset])
        assert light.fpn.full_output is None
        assert level.output is None
    light, _ = lighten_copy(model, PRESETS["lw-v3"])
    light.fpn.full_output = None  # what training on labels leaves behind
    assert sorted(light.state_dict()) == sorted(lighten_copy(model, PRESETS["lw-v3"], own_output=False)[0].state_dict())


@pytest.mark.parametrize(("preset", "own_output"), [("lw-v3", True), ("lw-v3", False), ("lw-v3-released", True)])
def test_a_light_model_and_its_full_head_survive_their_file(preset: str, own_output: bool, tmp_path: Path) -> None:
    model, plan = trained_like(), PRESETS[preset]
    light, levels = lighten_copy(model, plan, own_output=own_output)
    solve_closed_form(levels[0], [level_input(light, images(), "P3")])
    record = make_record(
        light,
        preset=preset,
        backbone="resnet18",
        width=WIDTH,
        norm="frozen",
        plan=light.head.plan,
        categories=tuple(Category(id=number, name=f"class {number}") for number in range(2)),
        notes={},
    ).model_copy(update={"switchable": is_switchable(model, plan), "full_output": light.fpn.full_output is not None})
    save_model(tmp_path / "light.safetensors", light, record)
    loaded = load_model(tmp_path / "light.safetensors").model
    assert_same_elsewhere(model, loaded)
    with torch.no_grad():
        for expected, found in zip(light(images()), loaded(images()), strict=True):
            assert torch.equal(found, expected)


def test_switchable_means_that_the_full_head_is_still_there() -> None:
    model = trained_like()
    assert all(is_switchable(model, PRESETS[name]) for name in LIGHT)
    light, _ = lighten_copy(model, PRESETS["bbox-v3"])
    assert not is_switchable(light, PRESETS["lw-v2"])


def test_the_new_layers_are_what_learns() -> None:
    light, (level,) = lighten_copy(trained_like(), PRESETS["lw-v3-released"])
    new = [id(parameter) for parameter in level.parameters()]
    learning = [name for name, parameter in light.named_parameters() if id(parameter) in new]
    assert sorted(learning) == sorted(n for n in light.state_dict() if ".own_" in n or n.startswith("fpn.layer_blocks.0."))
    assert len(set(new)) == len(new) == len(learning)


def test_mode_and_precision_are_the_models() -> None:
    model = trained_like().double().train()
    light, _ = lighten_copy(model, PRESETS["lw-v3"])
    assert light.training
    assert {parameter.dtype for parameter in light.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("old", "plan", "message"),
    [
        (HeadPlan(), HeadPlan(), "nothing would change"),
        (PRESETS["lw-v3"], PRESETS["lw-v3"], "nothing would change"),
        (
            HeadPlan(shared=TowerPlan(units=("3x3",) * 2)),
            HeadPlan(cls={"P3": TowerPlan(units=("1x1", "1x1", "shared"))}),
            "does not go with this model: .*cls P3 shares more units",
        ),
        (
            HeadPlan(shared=TowerPlan(units=("3x3",) * 4, width=8)),
            PRESETS["lw-v3-released"],
            "bbox P3 of the plan shares layers with a tower 8 wide",
        ),
        (
            HeadPlan(cls={level: TowerPlan(units=("3x3", "shared", "shared", "shared"), predict="shared") for level in EVERY}),
            HeadPlan(cls={"P3": TowerPlan(units=("shared", "1x1"), predict="1x1")}),
            r"does not have, first head\.cls\.shared_units\.0",
        ),
        (HeadPlan(), HeadPlan(cls={"P3": TowerPlan(units=("dw5x5",), width=8)}), f"for a head {WIDTH} wide: .*keeps its width"),
        (HeadPlan(), HeadPlan(cls={"P3": TowerPlan(units=("3x3-gn",))}), "multiple of 32 channels"),
    ],
)
def test_plans_that_do_not_go_with_the_model_are_refused(old: HeadPlan, plan: HeadPlan, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        lighten_copy(trained_like(old), plan)
    assert "\n" not in str(caught.value)


def test_a_level_that_there_is_not() -> None:
    with pytest.raises(InputError, match="no level 'P2'; the pyramid has P3, P4"):
        level_input(trained_like(), images(), "P2")
