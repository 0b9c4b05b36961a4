"""Light towers with batch norm: filled like the plain ones, and ready to be trained with statistics of the batch."""

import copy

import pytest
import torch
from tests.lightening.tower_pairs import ANCHORS, branch_pair, level_pair, make_tower, miss, smooth_maps, trained_like
from torch import Tensor, nn

from lw_retinanet.heads import BATCH_NORM_UNITS, D_BLOCKS, HeadPlan, plan_of
from lw_retinanet.lightening.batch_norm import as_affine, set_offset, settle
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.feature_cache import with_answers
from lw_retinanet.lightening.fitting import FitSettings, fit
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.lightening.towers import LevelPair, Tower, has_norm
from lw_retinanet.lightening.weight_transfer import transfer_weights
from lw_retinanet.models.blocks import UNITS

CLS, BBOX = {"prediction": ANCHORS * 2}, {"prediction": ANCHORS * 4}


def norms(*modules: nn.Module) -> list[nn.BatchNorm2d]:
    return [part for module in modules for part in module.modules() if isinstance(part, nn.BatchNorm2d)]


def pair(block: str, outputs: dict[str, int], seed: int, *, is_training: bool = False) -> tuple[Tower, Tower]:
    """An original tower, and one of this block that is to replace it."""
    teacher = make_tower(D_BLOCKS["original"].units, outputs, predict=D_BLOCKS["original"].predict, seed=seed)
    student = make_tower(D_BLOCKS[block].units, outputs, predict=D_BLOCKS[block].predict, seed=seed + 1)
    for layer in student.layers:
        layer.train(is_training)
    return teacher, student


def make_level(block: str, *, is_training: bool = False) -> LevelPair:
    return level_pair(pair(block, CLS, 10, is_training=is_training), pair(block, BBOX, 20, is_training=is_training))


@torch.no_grad()
def with_statistics(unit: nn.Module, seed: int = 3) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(unit):
        for values, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
            assert values is not None
            values.copy_(torch.rand(values.shape, generator=generator) + low)
    return unit.eval()


@pytest.mark.parametrize("block", ["v1", "v3"])
def test_from_old_weights_alone_they_are_the_plain_blocks(block: str) -> None:
    found = []
    for name in (block, f"{block}-bn"):
        towers = branch_pair(*pair(name, CLS, 10))
        transfer_weights(towers)
        found.append(towers.student(smooth_maps(1)[0])["prediction"])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_training", [False, True])
@pytest.mark.parametrize("block", ["v1", "v3"])
def test_in_closed_form_they_are_the_plain_blocks(block: str, is_training: bool) -> None:
    maps = smooth_maps(4)
    plain, normed = make_level(block), make_level(f"{block}-bn", is_training=is_training)
    expected, found = solve_closed_form(plain, maps), solve_closed_form(normed, maps)
    assert found.errors == pytest.approx(expected.errors, rel=1e-3)
    students = [part.student for part in normed.pairs]
    assert all(norm.training == is_training for student in students for norm in norms(*student.layers))
    for student in students:
        for layer in student.layers:
            layer.eval()
    for one, other in zip(plain.pairs, normed.pairs, strict=True):
        assert miss(other, maps) == pytest.approx(miss(one, maps), rel=1e-3)


def test_training_starts_from_the_function_that_was_fitted() -> None:
    # Statistics of the batch are those of the norms where the batch is what they were settled by.
    level, maps = make_level("v1-bn"), smooth_maps(4)
    solve_closed_form(level, maps)
    student = level.pairs[0].student
    batch = torch.cat(maps)
    with torch.no_grad():
        evaluated = student(batch)["prediction"]
        for layer in student.layers:
            layer.train()
        trained = student(batch)["prediction"]
    torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3 * float(evaluated.abs().max()))


def test_a_fit_learns_and_leaves_statistics_of_what_it_saw() -> None:
    level = make_level("v3-bn", is_training=True)
    maps = [item.bfloat16().float() for item in smooth_maps(4)]
    student = level.pairs[0].student
    curve = fit(level, [with_answers(level, item, use_bf16=False) for item in maps], FitSettings(steps=100, rate=3e-3, batch_size=2))
    assert curve.cls[-1] < 0.9 * curve.cls[0]
    assert curve.bbox[-1] < 0.9 * curve.bbox[0]
    assert all(norm.training for norm in norms(*student.layers))
    conv, norm = student.units[0][0], student.units[0][1]  # type: ignore[index]
    with torch.no_grad():
        made = conv(torch.cat(maps))
    torch.testing.assert_close(norm.running_mean, made.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, made.var(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BATCH_NORM_UNITS)
def test_settling_changes_statistics_and_not_the_function(name: str) -> None:
    torch.manual_seed(0)
    unit = with_statistics(UNITS[name](16, 24)).double()
    maps = [item.double() for item in smooth_maps(3)]
    with torch.no_grad():
        before = [unit(item) for item in maps]
        settle(unit, maps)
        after = [unit(item) for item in maps]
        trained = unit.train()(torch.cat(maps))
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(trained, torch.cat(before), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", BATCH_NORM_UNITS)
def test_old_units_with_batch_norm_are_read_with_it(name: str) -> None:
    # A teacher that is light already; its two convolutions and norms as one kernel.
    torch.manual_seed(0)
    outputs = {"prediction": 8}
    teacher = make_tower((name,), outputs, predict="1x1")
    with_statistics(teacher.units[0])
    student = make_tower(("3x3",), outputs, predict="1x1", seed=7)
    towers = branch_pair(teacher, student)
    transfer_weights(towers)
    inner: Tensor = torch.randn(1, 16, 9, 9)
    with torch.no_grad():
        old, new = teacher(inner)["prediction"], student(inner)["prediction"]
    torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-4)


def test_a_norm_elsewhere_in_a_unit_is_not_taken_for_one_behind_its_convolution() -> None:
    conv = nn.Conv2d(4, 4, 1)
    assert not has_norm(nn.Sequential(conv, nn.BatchNorm2d(4), nn.ReLU()))
    assert has_norm(nn.Sequential(nn.BatchNorm2d(4), conv, nn.ReLU()))
    assert has_norm(nn.Sequential(conv, nn.ReLU(), nn.BatchNorm2d(4)))
    assert has_norm(nn.Sequential(conv, nn.GroupNorm(2, 4), nn.ReLU()))
    bare = nn.Conv2d(4, 4, 1, bias=False)
    set_offset(bare, bare, torch.ones(4))
    assert bare.bias is None
    assert torch.equal(as_affine(bare, bare)[1], torch.zeros(4))


def test_a_detector_and_then_another_block_in_its_place() -> None:
    model = trained_like()
    before = copy.deepcopy(model.state_dict())
    light, _ = lighten_copy(model, plan_of("both-v1-bn"))
    with torch.no_grad():
        images = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(5))
        old, new = model(images), light(images)
    assert norms(light.head)
    assert bool(new.logits.isfinite().all())
    first = 12 * 8 * ANCHORS
    assert torch.equal(old.logits[:, first:], new.logits[:, first:])
    again, _ = lighten_copy(light, HeadPlan(cls=plan_of("cls-v3").cls))
    assert len(norms(again.head.cls)) == 0
    assert len(norms(again.head.bbox)) == 8
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
