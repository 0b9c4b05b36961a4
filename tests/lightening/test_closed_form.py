import copy

import pytest
import torch
from tests.lightening.tower_pairs import ANCHORS, WIDTH, level_pair, make_tower, miss, smooth_maps, trained_like
from torch import Tensor, nn

from lw_retinanet.errors import InputError
from lw_retinanet.heads import D_BLOCKS, PRESETS
from lw_retinanet.lightening import closed_form
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.surgery import level_input, lighten_copy
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower
from lw_retinanet.lightening.weight_transfer import transfer_weights

ORIGINAL = ("3x3",) * 4
CLS, BBOX = {"prediction": ANCHORS * 2}, {"prediction": ANCHORS * 4}


def convs(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def both(old: str, new: str, *, old_predict: str | None = None, new_width: int | None = None) -> LevelPair:
    """A level whose two towers were of one block and are to be of another."""

    def pair(outputs: dict[str, int], seed: int) -> tuple[Tower, Tower]:
        teacher = make_tower(D_BLOCKS[old].units, outputs, predict=old_predict or D_BLOCKS[old].predict, seed=seed)
        student = make_tower(D_BLOCKS[new].units, outputs, predict=D_BLOCKS[new].predict, width=new_width, seed=seed + 1)
        return teacher, student

    return level_pair(pair(CLS, 10), pair(BBOX, 20))


@torch.no_grad()
def make_pointwise(tower: Tower) -> None:
    """Leave 3x3 kernels their centre."""
    for layer in tower.layers:
        for conv in convs(layer):
            middle = conv.weight[:, :, 1:2, 1:2] * 3
            conv.weight.zero_()[:, :, 1:2, 1:2] = middle


def test_a_student_that_can_be_its_teacher_nearly_is() -> None:
    # A third of the channels carries the estimate, so a tower needs 1.5 times the old one's width to have room for all features too.
    level = both("original", "v3", new_width=2 * WIDTH + 16)
    for pair in level.pairs:
        make_pointwise(pair.teacher)
    maps = smooth_maps(6)
    found = solve_closed_form(level, maps)
    for pair in level.pairs:
        assert found.errors[pair.branch] < 1e-3
        assert miss(pair, maps) < 2e-3
        assert miss(pair, smooth_maps(2, seed=9)) < 1e-2  # on maps that it has not seen


def test_separable_kernels_are_found_again() -> None:
    # Read by the old prediction, a layer imitates the old one's features, and of those all outputs look through one kernel a channel.
    pairs = []
    for outputs in (CLS, BBOX):
        teacher = make_tower(("3x3",), outputs, predict="3x3")
        with torch.no_grad():
            (conv,) = convs(teacher.units[0])
            conv.weight.copy_(conv.weight[:, :, 1:2, 1:2] * torch.randn(1, WIDTH, 3, 3))
        student = Tower(units=make_tower(("dw3x3+1x1",), {}, predict="1x1", seed=1).units, predictions=teacher.predictions)
        pairs.append((teacher, student))
    level = level_pair(*pairs)
    solve_closed_form(level, smooth_maps(4))
    assert all(miss(pair, smooth_maps(2, seed=9)) < 1e-5 for pair in level.pairs)


def test_a_linear_teacher_comes_back_exactly() -> None:
    # A ReLU that never cuts: the estimate is exact after the first layer already and is passed on.
    level = both("original", "v3", new_width=64)
    with torch.no_grad():
        for pair in level.pairs:
            make_pointwise(pair.teacher)
            for unit in pair.teacher.units:
                convs(unit)[0].weight *= 0.1
                bias = convs(unit)[0].bias
                assert bias is not None
                bias.fill_(5.0)
    maps = smooth_maps(4)
    solve_closed_form(level, maps)
    for pair in level.pairs:
        with torch.no_grad():
            old, new = pair.teacher(maps[0])["prediction"], pair.student(maps[0])["prediction"]
        # The ridge of 1e-4 takes its share at each of five layers.
        torch.testing.assert_close(new, old, rtol=0, atol=1e-3 + 5e-3 * old.std().item())


@pytest.mark.parametrize("block", ["v1", "v2", "v3", "narrow", "dw5"])
def test_images_help(block: str) -> None:
    level = both("original", block, new_width=24 if block == "narrow" else None)
    maps = smooth_maps(8)
    for pair in level.pairs:
        transfer_weights(pair)
    before = [miss(pair, maps) for pair in level.pairs]
    errors = solve_closed_form(level, maps).errors
    after = [miss(pair, maps) for pair in level.pairs]
    assert all(error < 0.9 for error in errors.values())
    assert all(new < 0.9 * min(1.0, old) for new, old in zip(after, before, strict=True))


def test_the_reported_error_is_the_students_own() -> None:
    level = both("original", "v3")
    maps = smooth_maps(1, size_hw=(4, 4))  # all of its cells are used, each standing for itself
    found = solve_closed_form(level, maps)
    assert found.cells == 16
    pair = level.pairs[1]
    with torch.no_grad():
        best = level.old["cls"](maps[0])["prediction"].sigmoid().flatten(2)[0].amax(dim=0)
        old, new = (tower(maps[0])["prediction"].flatten(2)[0] for tower in (pair.teacher, pair.student))
    weight = best + closed_form._BOX_FLOOR
    mean = (old * weight).sum(dim=1, keepdim=True) / weight.sum()
    expected = (weight * (new - old) ** 2).sum() / (weight * (old - mean) ** 2).sum()
    assert found.errors["bbox"] == pytest.approx(expected.item(), rel=1e-3)


def test_sure_cells_weigh_more() -> None:
    level = both("original", "v3")
    with torch.no_grad():
        for pair in level.pairs:
            pair.teacher.predictions["prediction"].weight.mul_(3.0)  # type: ignore[operator]
        bias = level.old["cls"].predictions["prediction"].bias
        assert isinstance(bias, Tensor)
        bias.fill_(-12.0)  # few places score at all
    maps = smooth_maps(6)
    solve_closed_form(level, maps)
    boxes, best = level.pairs[1], []
    missed = []
    with torch.no_grad():
        for item in maps:
            best.append(level.old["cls"](item)["prediction"].sigmoid().amax(dim=1).flatten())
            missed.append((boxes.student(item)["prediction"] - boxes.teacher(item)["prediction"]).square().mean(dim=1).flatten())
    score, error = torch.cat(best), torch.cat(missed)
    order = score.argsort(descending=True)
    assert error[order[: len(order) // 20]].mean() < 0.8 * error[order[len(order) // 2 :]].mean()


def test_cells_are_the_surest_and_a_sample_that_stands_for_the_others() -> None:
    scores = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    places, importance = closed_form._choose(scores, 100, torch.Generator().manual_seed(0))
    assert len(set(places.tolist())) == 100
    assert set(places[:60].tolist()) == set(scores.topk(60).indices.tolist())
    assert importance[:60].tolist() == [1.0] * 60
    assert importance[60:].tolist() == [940 / 40] * 40
    assert importance.sum() == 1000
    places, importance = closed_form._choose(scores[:7], 100, torch.Generator().manual_seed(0))
    assert places.tolist() == list(range(7))
    assert importance.tolist() == [1.0] * 7


def weights(level: LevelPair) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in level.parameters()]


def test_the_seed_chooses_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(closed_form, "MAX_CELLS", 300)
    level, maps = both("original", "v3"), smooth_maps(3)
    found = []
    for seed in (0, 0, 1):
        assert solve_closed_form(level, maps, seed=seed).cells == 300
        found.append(weights(level))
    assert all(torch.equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_nothing_but_new_layers_is_written() -> None:
    level = both("original", "v3")
    before = copy.deepcopy([layer.state_dict() for tower in level.old.values() for layer in tower.layers])
    solve_closed_form(level, smooth_maps(2))
    after = [layer.state_dict() for tower in level.old.values() for layer in tower.layers]
    assert all(torch.equal(old[key], new[key]) for old, new in zip(before, after, strict=True) for key in old)


def test_a_shared_prediction_reads_what_it_is_used_to() -> None:
    # The last own layer imitates the old tower's last layer; a pointwise teacher can be imitated fully.
    level = both("original", "v3", old_predict="1x1")
    pairs = []
    for pair in level.pairs:
        with torch.no_grad():
            for unit in pair.teacher.units:
                weight = convs(unit)[0].weight
                weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
                weight *= 3
        student = Tower(units=make_tower(("1x1",), {}, predict="1x1", seed=3).units, predictions=pair.teacher.predictions)
        teacher = Tower(units=pair.teacher.units[:1], predictions=pair.teacher.predictions)
        pairs.append(BranchPair(branch=pair.branch, level="P3", teacher=teacher, student=student))
    level = LevelPair(level="P3", old={pair.branch: pair.teacher for pair in pairs}, pairs=pairs, num_anchors=ANCHORS)
    before = [predict.state_dict()["weight"].clone() for pair in pairs for predict in pair.teacher.predictions.values()]
    solve_closed_form(level, smooth_maps(4))
    assert all(miss(pair, smooth_maps(2)) < 1e-5 for pair in pairs)
    after = [predict.state_dict()["weight"] for pair in pairs for predict in pair.teacher.predictions.values()]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_a_shared_unit_reads_what_it_is_used_to() -> None:
    # One layer more than the old tower has stands before it, so that places and depths differ.
    teacher = make_tower(("1x1", "1x1", "1x1", "3x3"), CLS, predict="1x1")
    own = make_tower(("1x1", "1x1", "1x1"), CLS, predict="1x1", seed=1)
    student = Tower(units=[*own.units, teacher.units[3]], predictions=teacher.predictions)
    level = level_pair((teacher, student), (make_tower(ORIGINAL, BBOX, predict="3x3"), make_tower(("1x1",), BBOX, predict="1x1")))
    before = {key: value.clone() for key, value in teacher.units[3].state_dict().items()}
    solve_closed_form(level, smooth_maps(4))
    assert miss(level.pairs[0], smooth_maps(2)) < 0.2
    assert all(torch.equal(value, before[key]) for key, value in teacher.units[3].state_dict().items())


def test_units_with_a_norm_stay_as_they_are() -> None:
    teacher = make_tower(("3x3-gn",) * 4, CLS, predict="3x3", in_channels=64)
    student = make_tower(("1x1", "3x3-gn", "1x1"), CLS, predict="1x1", in_channels=64, seed=1)
    boxes = (make_tower(("3x3-gn",) * 4, BBOX, predict="3x3", in_channels=64), make_tower(("1x1",), BBOX, predict="1x1", in_channels=64))
    level = level_pair((teacher, student), boxes)
    before = copy.deepcopy(student.units[1].state_dict())
    errors = solve_closed_form(level, smooth_maps(3, width=64)).errors
    assert all(torch.equal(value, before[key]) for key, value in student.units[1].state_dict().items())
    assert errors["cls"] < 1


def test_more_outputs_than_the_carried_channels() -> None:
    # 80 classes: 720 outputs, of which a tower 24 wide can carry the 8 main directions.
    outputs = {"prediction": ANCHORS * 80}
    cls = make_tower(ORIGINAL, outputs, predict="3x3"), make_tower(D_BLOCKS["narrow"].units, outputs, predict="1x1", width=24, seed=1)
    boxes = make_tower(ORIGINAL, BBOX, predict="3x3"), make_tower(D_BLOCKS["narrow"].units, BBOX, predict="1x1", width=24, seed=1)
    level = level_pair(cls, boxes)
    errors = solve_closed_form(level, smooth_maps(4)).errors
    assert errors["cls"] < 0.9
    assert errors["bbox"] < 0.9


@pytest.mark.parametrize("width", [1, 2, 4])
def test_towers_too_narrow_to_carry_anything(width: int) -> None:
    level = both("original", "v3", new_width=width)
    errors = solve_closed_form(level, smooth_maps(3)).errors
    assert all(error < 1.01 for error in errors.values())


def test_fcos_predicts_boxes_and_centreness() -> None:
    box_outputs = {"bbox_reg": 4, "bbox_ctrness": 1}
    cls = make_tower(ORIGINAL, {"prediction": 5}, predict="3x3"), make_tower(("1x1",) * 4, {"prediction": 5}, predict="1x1", seed=1)
    boxes = make_tower(ORIGINAL, box_outputs, predict="3x3"), make_tower(("1x1",) * 4, box_outputs, predict="1x1", width=32, seed=1)
    for tower in (cls[0], boxes[0]):
        make_pointwise(tower)
    level = level_pair(cls, boxes, num_anchors=1)
    solve_closed_form(level, smooth_maps(6))
    maps = smooth_maps(1)[0]
    with torch.no_grad():
        old, new = boxes[0](maps), boxes[1](maps)
    for name in box_outputs:  # each in its own place
        assert ((old[name] - new[name]) ** 2).mean() < 0.05 * old[name].var()


def test_one_prediction_shared_and_one_not() -> None:
    teacher = make_tower(("1x1",) * 2, {"bbox_reg": 4, "bbox_ctrness": 1}, predict="1x1")
    student = make_tower(("1x1",) * 2, {"bbox_reg": 4, "bbox_ctrness": 1}, predict="1x1", seed=1)
    mixed = Tower(units=student.units, predictions={**student.predictions, "bbox_reg": teacher.predictions["bbox_reg"]})
    cls = make_tower(ORIGINAL, {"prediction": 5}, predict="3x3"), make_tower(("1x1",), {"prediction": 5}, predict="1x1", seed=1)
    level = level_pair(cls, (teacher, mixed), num_anchors=1)
    solve_closed_form(level, smooth_maps(4))
    assert miss(level.pairs[1], smooth_maps(2)) < 0.2  # five of sixteen channels carry the estimate instead of features


@pytest.mark.parametrize("sizes", [[(16, 16)], [(1, 1)], [(3, 40), (7, 5), (2, 2)]])
def test_maps_of_any_size_and_number(sizes: list[tuple[int, int]]) -> None:
    maps = [smooth_maps(1, size_hw=size_hw, seed=seed)[0] for seed, size_hw in enumerate(sizes)]
    level = both("original", "v2")
    found = solve_closed_form(level, maps)
    assert found.cells == sum(height * width for height, width in sizes)
    assert all(parameter.isfinite().all() for parameter in level.parameters())


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_map_without_any_detail(value: float) -> None:
    level = both("original", "narrow", new_width=24)
    solve_closed_form(level, [torch.full((1, WIDTH, 8, 8), value)])
    assert all(parameter.isfinite().all() for parameter in level.parameters())


def test_half_precision_maps_and_progress() -> None:
    seen = []
    level, maps = both("original", "v3"), [item.bfloat16() for item in smooth_maps(3)]

    def progress(items: object, total: int, _: str) -> object:
        for item in items:  # type: ignore[attr-defined]
            seen.append(total)
            yield item

    assert solve_closed_form(level, maps, progress=progress).errors["cls"] < 0.9  # type: ignore[arg-type]
    assert seen == [3, 3, 3]


def test_the_levels_own_convolution_is_fitted_with_the_towers() -> None:
    model = trained_like()
    images = [torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    errors = []
    for own_output in (False, True):
        light, (level,) = lighten_copy(model, PRESETS["lw-v3"], own_output=own_output)
        old = light.fpn.layer_blocks[0][0].weight.clone()
        maps = [level_input(light, item, "P3") for item in images]
        errors.append(solve_closed_form(level, maps).errors)
        assert torch.equal(light.fpn.layer_blocks[0][0].weight, old) == (not own_output)
        if light.fpn.full_output is not None:
            assert torch.equal(light.fpn.full_output.weight, old)
    # 16 directions of the 144 that patches have, chosen for what the old towers compute, say more than the 16 channels that were there.
    assert all(errors[1][branch] < errors[0][branch] for branch in ("cls", "bbox"))


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ([], "closed form of P3 needs feature maps, got none"),
        ([torch.zeros(1, WIDTH, 4, 4), torch.full((1, WIDTH, 4, 4), float("nan"))], "a map of P3 has values that are not finite"),
        ([torch.full((1, WIDTH, 4, 4), float("inf"))], "not finite"),
        ([torch.zeros(1, WIDTH + 1, 4, 4)], rf"takes maps of shape \(1, {WIDTH}, H, W\), got \(1, {WIDTH + 1}, 4, 4\)"),
        ([torch.zeros(2, WIDTH, 4, 4)], "one by one"),
        ([torch.zeros(WIDTH, 4, 4)], "takes maps of shape"),
        ([torch.zeros(1, WIDTH, 0, 4)], "takes maps of shape"),
    ],
)
def test_maps_that_cannot_be_used_are_refused_before_anything_is_written(maps: list[Tensor], message: str) -> None:
    level = both("original", "v3")
    before = weights(level)
    with pytest.raises(InputError, match=message) as caught:
        solve_closed_form(level, maps)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(old, new) for old, new in zip(before, weights(level), strict=True))
