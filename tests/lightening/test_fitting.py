import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.lightening.tower_pairs import ANCHORS, WIDTH, level_pair, make_tower, smooth_maps, trained_like
from torch import Tensor

from lw_retinanet.errors import ConfigError, InputError, TrainingError
from lw_retinanet.heads import PRESETS
from lw_retinanet.lightening import fitting
from lw_retinanet.lightening.feature_cache import CachedFeatures, with_answers
from lw_retinanet.lightening.fitting import CENTRENESS, FitSettings, fit
from lw_retinanet.lightening.surgery import level_input, lighten_copy
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.training.distillation import box_distillation, class_distillation

CLS, BBOX = {"prediction": ANCHORS * 2}, {"prediction": ANCHORS * 4}
SHORT = FitSettings(steps=3, batch_size=2, rate=1e-2)


def both(seed: int = 1) -> LevelPair:
    def pair(outputs: dict[str, int]) -> Any:
        return make_tower(("3x3",) * 2, outputs, predict="3x3"), make_tower(("1x1", "3x3"), outputs, predict="1x1", seed=seed)

    return level_pair(pair(CLS), pair(BBOX))


def examples(level: LevelPair, count: int = 4, **kwargs: Any) -> list[CachedFeatures]:
    return [with_answers(level, maps, use_bf16=False) for maps in smooth_maps(count, **kwargs)]


def weights(level: LevelPair) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in level.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_losses_fall() -> None:
    level = both()
    curve = fit(level, examples(level), FitSettings(steps=150, batch_size=2, rate=3e-3))
    assert curve.steps == (50, 100, 150)
    assert curve.cls[-1] < 0.8 * curve.cls[0]
    assert curve.bbox[-1] < 0.8 * curve.bbox[0]
    assert curve.seconds > 0


def test_the_losses_are_those_of_the_whole_network() -> None:
    # The same anchors in the same order: (row, column, anchor) of each map.
    level, taught = both(), None
    example = examples(level, 1)[0]
    found = fitting._losses(level, [example], torch.device("cpu"), False)

    def rows(maps: Tensor, values: int) -> Tensor:
        return maps[0].unflatten(0, (-1, values)).permute(2, 3, 0, 1).reshape(1, -1, values)

    logits, deltas = (pair.student(example.maps.float())["prediction"] for pair in level.pairs)
    taught = rows(example.answers["cls"]["prediction"], 2)
    torch.testing.assert_close(found[0], class_distillation(rows(logits, 2), taught))
    torch.testing.assert_close(found[1], box_distillation(rows(deltas, 4), rows(example.answers["bbox"]["prediction"], 4), taught))


@pytest.mark.parametrize("preset", ["lw-v3", "lw-v3-released", "bbox-v1"])
def test_only_what_is_new_changes_and_every_flag_is_put_back(preset: str) -> None:
    light, (level,) = lighten_copy(trained_like(), PRESETS[preset])
    light.train()
    for number, parameter in enumerate(light.parameters()):
        parameter.requires_grad_(number % 3 > 0)
    flags = [parameter.requires_grad for parameter in light.parameters()]
    before = copy.deepcopy(light.state_dict())
    maps = level_input(light, torch.randn(1, 3, 64, 64), "P3")
    before = copy.deepcopy(light.state_dict())  # batch statistics moved
    fit(level, [with_answers(level, maps, use_bf16=False)], SHORT)
    changed = {name for name, value in light.state_dict().items() if not torch.equal(value, before[name])}
    new = {id(parameter) for parameter in level.parameters()}
    assert changed == {name for name, parameter in light.named_parameters() if id(parameter) in new}
    assert [parameter.requires_grad for parameter in light.parameters()] == flags
    assert all(parameter.grad is None for parameter in light.parameters())
    assert light.training


def test_the_seed_orders_the_examples() -> None:
    start, found = both(), []
    taught = examples(start)
    for seed in (0, 0, 1):
        level = copy.deepcopy(start)
        fit(level, taught, replace(SHORT, seed=seed))
        found.append(weights(level))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_the_average_of_the_steps_remains() -> None:
    # averaging = 0 keeps the last step's weights; of two steps, 0.75 keeps 3/4 of the first and 1/4 of the second.
    start, ends = both(), {}
    taught = examples(start, 1)
    for averaging in (0.0, 0.75, 0.999999):
        level = copy.deepcopy(start)
        fit(level, taught, FitSettings(steps=2, rate=1e-2, averaging=averaging))
        ends[averaging] = weights(level)
    for first, mean, last in zip(ends[0.999999], ends[0.75], ends[0.0], strict=True):
        torch.testing.assert_close(mean, 0.75 * first + 0.25 * last, rtol=1e-4, atol=1e-6)
    assert not same(ends[0.999999], ends[0.0])


def test_fcos_learns_boxes_and_centreness() -> None:
    outputs = {"bbox_reg": 4, CENTRENESS: 1}
    cls = make_tower(("3x3",), {"prediction": 5}, predict="3x3"), make_tower(("1x1",), {"prediction": 5}, predict="1x1", seed=1)
    boxes = make_tower(("3x3",), outputs, predict="3x3"), make_tower(("1x1",), outputs, predict="1x1", seed=1)
    level = level_pair(cls, boxes, num_anchors=1)
    taught = examples(level)
    before = weights(level)
    curve = fit(level, taught, FitSettings(steps=100, batch_size=2, rate=3e-3))
    assert curve.bbox[-1] < curve.bbox[0]
    assert not any(torch.equal(a, b) for a, b in zip(before, weights(level), strict=True))


def test_bf16() -> None:
    level = both()
    maps = smooth_maps(2)
    taught = [with_answers(level, item, use_bf16=True) for item in maps]
    assert {taught[0].maps.dtype, *(value.dtype for answers in taught[0].answers.values() for value in answers.values())} == {
        torch.bfloat16
    }
    values = [value.numel() for answers in taught[0].answers.values() for value in answers.values()]
    assert taught[0].num_bytes == 2 * (maps[0].numel() + sum(values))
    curve = fit(level, taught, SHORT, use_bf16=True)
    assert curve.cls[0] > 0
    assert {parameter.dtype for parameter in level.parameters()} == {torch.float32}


def test_a_batch_has_maps_of_one_shape_and_a_round_has_each_once() -> None:
    level = both()
    taught = examples(level, 4) + examples(level, 3, size_hw=(8, 12))
    batches = fitting._batches([(level, example) for example in taught], FitSettings(batch_size=2))
    one_round = [next(batches) for _ in range(3)]
    assert sorted(len(batch) for batch in one_round) == [2, 2, 2]
    assert all(len({taught[index].maps.shape for index in batch}) == 1 for batch in one_round)
    assert len({index for batch in one_round for index in batch}) == 6
    fit(level, taught, SHORT)
    assert all(parameter.isfinite().all() for parameter in level.parameters())


def test_fewer_examples_than_a_batch() -> None:
    level = both()
    before = weights(level)
    assert fit(level, examples(level, 1), FitSettings(steps=1, batch_size=8)).steps == (1,)
    assert not same(before, weights(level))


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_any_number_of_steps(steps: int) -> None:
    level = both()
    assert fit(level, examples(level, 1, size_hw=(4, 4)), FitSettings(steps=steps)).steps == (steps,)


def test_no_steps_leave_everything_as_it_is() -> None:
    level = both()
    before = weights(level)
    assert fit(level, examples(level, 1), FitSettings(steps=0)).steps == ()
    assert same(before, weights(level))


def test_progress_sees_every_step() -> None:
    seen: list[int] = []

    def progress(steps: Iterable[Any], total: int, _: str) -> Iterable[Any]:
        for step in steps:
            seen.append(total)
            yield step

    level = both()
    fit(level, examples(level, 1), SHORT, progress=progress)
    assert seen == [3, 3, 3]


@pytest.mark.parametrize("reason", ["loss", "interrupt"])
def test_a_fit_that_breaks_off_leaves_the_layers_as_they_were(reason: str) -> None:
    level = both()
    taught = examples(level, 1)
    before = weights(level)
    flags = [parameter.requires_grad for parameter in level.old_parameters()]

    def interrupted(steps: Iterable[Any], _: int, __: str) -> Iterable[Any]:
        for step in steps:
            if step == 2:
                raise KeyboardInterrupt
            yield step

    if reason == "loss":
        taught[0].answers["bbox"]["prediction"].fill_(float("nan"))
        with pytest.raises(TrainingError, match=r"fit of P3 has a loss that is not finite by step 3; lower its rate \(0.01\)"):
            fit(level, taught, SHORT)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(level, taught, SHORT, progress=interrupted)
    assert same(before, weights(level))
    assert [parameter.requires_grad for parameter in level.old_parameters()] == flags
    assert all(parameter.grad is None for parameter in level.parameters())


def test_what_cannot_be_fitted_is_refused() -> None:
    level = both()
    with pytest.raises(InputError, match="fit of P3 needs feature maps, got none"):
        fit(level, [])
    nothing_new = LevelPair(level="P5", old=level.old, pairs=[], num_anchors=ANCHORS)
    with pytest.raises(InputError, match="P5 has no layers of its own to fit"):
        fit(nothing_new, examples(level, 1))
    with pytest.raises(InputError, match="not finite"):
        with_answers(level, torch.full((1, WIDTH, 4, 4), float("nan")), use_bf16=False)
    with pytest.raises(InputError, match=rf"takes maps of shape \(1, {WIDTH}, H, W\)"):
        with_answers(level, torch.zeros(1, WIDTH - 1, 4, 4), use_bf16=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps of the fit cannot be -1; leave it out for 1500"),
        ({"batch_size": 0}, "batch_size"),
        ({"rate": 0.0}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"averaging": 1.0}, "averaging"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FitSettings(**values)
