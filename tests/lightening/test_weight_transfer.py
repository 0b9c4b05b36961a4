import pytest
import torch
from tests.lightening.tower_pairs import WIDTH, branch_pair, make_tower, miss, smooth_maps
from torch import Tensor, nn

from lw_retinanet.heads import D_BLOCKS
from lw_retinanet.lightening.towers import Tower
from lw_retinanet.lightening.weight_transfer import transfer_weights

ORIGINAL = ("3x3",) * 4
OUTPUTS = {"prediction": 6}


def constant_map(side: int = 24) -> Tensor:
    return torch.randn(1, WIDTH, 1, 1, generator=torch.Generator().manual_seed(2)).expand(1, WIDTH, side, side)


def centre(outputs: Tensor, border: int = 6) -> Tensor:
    return outputs[..., border:-border, border:-border]


@torch.no_grad()
def outputs(tower: Tower, maps: Tensor) -> Tensor:
    return torch.cat(list(tower(maps).values()), dim=1)


def convs(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def test_summed_kernels_are_exact_where_nothing_changes_from_cell_to_cell() -> None:
    teacher = make_tower(ORIGINAL, OUTPUTS, predict="3x3")
    student = make_tower(("1x1",) * 4, OUTPUTS, predict="1x1", seed=1)
    transfer_weights(branch_pair(teacher, student))
    old, new = outputs(teacher, constant_map()), outputs(student, constant_map())
    # Five layers of 3x3 see the padding five cells from the border.
    torch.testing.assert_close(centre(new), centre(old), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(new, old, rtol=1e-2, atol=1e-2)


def test_separable_kernels_are_found_again() -> None:
    teacher = make_tower(ORIGINAL, OUTPUTS, predict="3x3")
    with torch.no_grad():
        for layer in teacher.layers:
            (conv,) = convs(layer)
            shape = torch.randn(1, conv.in_channels, 3, 3)
            conv.weight.copy_(conv.weight[:, :, 1:2, 1:2] * shape)
    student = make_tower(("dw3x3+1x1",) * 4, OUTPUTS, predict="dw3x3+1x1", seed=1)
    pair = branch_pair(teacher, student)
    transfer_weights(pair)
    assert miss(pair, smooth_maps(2)) < 1e-8


@pytest.mark.parametrize("old", ["original", "v1", "v2", "narrow", "dw5"])
@pytest.mark.parametrize("old_predict", ["3x3", "dw3x3+1x1"])
def test_the_same_layers_are_copied(old: str, old_predict: str) -> None:
    units = D_BLOCKS[old].units
    width = 24 if old == "narrow" else None
    teacher = make_tower(units, OUTPUTS, predict=old_predict, width=width)
    student = make_tower(units, OUTPUTS, predict=old_predict, width=width, seed=1)
    pair = branch_pair(teacher, student)
    transfer_weights(pair)
    assert miss(pair, smooth_maps(2)) < 1e-8


def test_a_wider_tower_than_the_old_one_has_room_for_all_of_it() -> None:
    # The first of five layers must pass on 16 channels, in both signs, and the others copy.
    teacher = make_tower(ORIGINAL, OUTPUTS, predict="1x1")
    student = make_tower(("1x1", *ORIGINAL), OUTPUTS, predict="1x1", width=2 * WIDTH + 8, seed=1)
    pair = branch_pair(teacher, student)
    transfer_weights(pair)
    assert miss(pair, smooth_maps(2)) < 1e-8


def test_a_depthwise_layer_ahead_passes_its_input_on() -> None:
    teacher = make_tower(("1x1",) * 4, OUTPUTS, predict="1x1")
    student = make_tower(("dw5x5", *("1x1",) * 4), OUTPUTS, predict="1x1", seed=1)
    pair = branch_pair(teacher, student)
    transfer_weights(pair)
    maps = smooth_maps(1)[0]
    with torch.no_grad():
        torch.testing.assert_close(student.units[0](maps), maps)
    assert miss(pair, [maps]) < 1e-8


def test_a_narrower_tower_keeps_the_channels_that_count() -> None:
    # Half of the teacher's channels are dead; a tower half as wide keeps the others and is exact.
    teacher = make_tower(ORIGINAL, OUTPUTS, predict="1x1")
    with torch.no_grad():
        for unit in teacher.units:
            (conv,) = convs(unit)
            conv.weight[1::2] *= 1e-6
            assert conv.bias is not None
            conv.bias[1::2] = 0
    student = make_tower(ORIGINAL, OUTPUTS, predict="1x1", width=WIDTH // 2, seed=1)
    pair = branch_pair(teacher, student)
    transfer_weights(pair)
    assert miss(pair, smooth_maps(2)) < 1e-6


@pytest.mark.parametrize(("old", "new"), [("narrow", "v3"), ("dw5", "v3"), ("v1", "original"), ("original", "narrow"), ("dw5", "narrow")])
def test_any_tower_from_any_other(old: str, new: str) -> None:
    teacher = make_tower(D_BLOCKS[old].units, OUTPUTS, predict=D_BLOCKS[old].predict, width=24 if old == "narrow" else None)
    student = make_tower(D_BLOCKS[new].units, OUTPUTS, predict=D_BLOCKS[new].predict, width=24 if new == "narrow" else None, seed=1)
    before = [conv.weight.clone() for layer in student.layers for conv in convs(layer)]
    transfer_weights(branch_pair(teacher, student))
    after = [conv.weight for layer in student.layers for conv in convs(layer)]
    assert not any(torch.equal(old_weight, new_weight) for old_weight, new_weight in zip(before, after, strict=True))
    assert all(weight.isfinite().all() for weight in after)


def test_fewer_layers_keep_the_first_and_the_last() -> None:
    teacher = make_tower(("1x1",) * 4, OUTPUTS, predict="1x1", width=24)
    student = make_tower(("1x1",) * 2, OUTPUTS, predict="1x1", width=24, seed=1)
    transfer_weights(branch_pair(teacher, student))
    for new, old in zip(student.layers, [teacher.units[0], *teacher.layers[3:]], strict=True):
        torch.testing.assert_close(convs(new)[0].weight, convs(old)[0].weight)


def test_shared_layers_and_units_with_a_norm_stay_as_they_are() -> None:
    teacher = make_tower(ORIGINAL, OUTPUTS, predict="3x3", in_channels=32)
    own = make_tower(("1x1", "3x3-gn"), OUTPUTS, predict="1x1", in_channels=32, seed=1)
    student = Tower(units=[*own.units, *teacher.units[2:]], predictions=teacher.predictions)
    before = [{key: value.clone() for key, value in layer.state_dict().items()} for layer in student.layers]
    transfer_weights(branch_pair(teacher, student))
    changed = [
        any(not torch.equal(value, old[key]) for key, value in layer.state_dict().items())
        for layer, old in zip(student.layers, before, strict=True)
    ]
    assert changed == [True, False, False, False, False]


def test_group_norm_of_the_old_tower_is_taken_at_its_usual_size() -> None:
    # Inputs of unit variance, independent: GroupNorm divides by what the weights make of them, and the 1x1 student must not be larger.
    teacher = make_tower(("3x3-gn",) * 2, OUTPUTS, predict="3x3", in_channels=64)
    student = make_tower(("3x3",) * 2, OUTPUTS, predict="3x3", in_channels=64, seed=1)
    transfer_weights(branch_pair(teacher, student))
    maps = torch.randn(1, 64, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        old, new = teacher.units[0](maps), student.units[0](maps)
    assert new.std().item() == pytest.approx(old.std().item(), rel=0.1)
    assert torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1] > 0.9


def test_two_predictions_and_more_outputs_than_channels() -> None:
    teacher = make_tower(ORIGINAL, {"bbox_reg": 4, "bbox_ctrness": 1}, predict="3x3")
    student = make_tower(("1x1",) * 4, {"bbox_reg": 4, "bbox_ctrness": 1}, predict="1x1", seed=1)
    transfer_weights(branch_pair(teacher, student, "bbox"))
    for name, predict in student.predictions.items():
        torch.testing.assert_close(
            centre(predict(student.features(constant_map()))), centre(teacher(constant_map())[name]), rtol=1e-4, atol=1e-4
        )
    wide = make_tower(ORIGINAL, {"prediction": 720}, predict="3x3")
    narrow = make_tower(D_BLOCKS["narrow"].units, {"prediction": 720}, predict="1x1", width=D_BLOCKS["narrow"].width, seed=1)
    transfer_weights(branch_pair(wide, narrow))
    assert outputs(narrow, smooth_maps(1)[0]).isfinite().all()
