import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection.retinanet import RetinaNetHead

from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.heads import BATCH_NORM_UNITS, HeadPlan, TowerPlan
from lw_retinanet.models.blocks import UNITS
from lw_retinanet.models.build import build

GROUP_NORM_HEAD = HeadPlan(shared=TowerPlan(units=("3x3-gn",) * 4, predict="3x3"))


def test_group_norm_unit_is_torchvisions() -> None:
    torch.manual_seed(0)
    head = RetinaNetHead(64, 1, 1, norm_layer=lambda channels: nn.GroupNorm(32, channels))
    theirs = head.classification_head.conv[0]
    ours = UNITS["3x3-gn"](64, 64)
    with torch.no_grad():
        theirs[1].weight.uniform_(0.5, 2)
        theirs[1].bias.uniform_(-1, 1)
    ours.load_state_dict(theirs.state_dict())
    features = torch.randn(2, 64, 5, 7)
    torch.testing.assert_close(ours(features), theirs(features))


def test_group_norm_needs_a_width_that_its_groups_divide() -> None:
    with pytest.raises(ValueError, match="multiple of 32 channels, got 48"):
        UNITS["3x3-gn"](256, 48)


def test_cost_of_torchvision_v2s_head() -> None:
    # At 800 x 800 the maps have 100^2, 50^2, 25^2, 13^2 and 7^2 cells. Two towers of four 3x3 convolutions, 256 -> 256, and the predictions
    # of 9 * 91 and 36 channels.
    with torch.device("meta"):
        model = build(GROUP_NORM_HEAD, num_classes=91, backbone="resnet18")
    blocks = count_blocks(model, (800, 800))
    a_cell = 8 * 256 * 256 * 9 + 256 * (9 * 91 + 36) * 9
    sides = {"D3": 100, "D4": 50, "D5": 25, "D6": 13, "D7": 7}
    assert {name: blocks[name].macs for name in sides} == {name: a_cell * side**2 for name, side in sides.items()}
    # No bias beside the group norms' factors and offsets.
    params = sum(parameter.numel() for parameter in model.head.parameters())
    assert params == 8 * (256 * 256 * 9 + 2 * 256) + (256 * 9 + 1) * (9 * 91 + 36)


@pytest.mark.parametrize(("name", "plain"), [("1x1-bn", "1x1"), ("dw3x3+1x1-bn", "dw3x3+1x1")])
def test_a_unit_with_batch_norm_is_the_plain_one_with_norms_behind_its_convolutions(name: str, plain: str) -> None:
    torch.manual_seed(0)
    unit, features = UNITS[name](24, 16), torch.randn(2, 24, 5, 7)
    expected = features
    convs = [conv for conv in unit.modules() if isinstance(conv, nn.Conv2d)]
    for conv in convs:
        assert conv.bias is None
        expected = F.conv2d(expected, conv.weight, padding=conv.padding, groups=conv.groups)
        mean, variance = expected.mean(dim=(0, 2, 3), keepdim=True), expected.var(dim=(0, 2, 3), keepdim=True, correction=0)
        expected = (expected - mean) / (variance + 1e-5).sqrt()
    torch.testing.assert_close(unit.train()(features), expected.relu())
    theirs = [conv for conv in UNITS[plain](24, 16).modules() if isinstance(conv, nn.Conv2d)]
    assert [conv.weight.shape for conv in convs] == [conv.weight.shape for conv in theirs]


def test_units_that_depend_on_the_batch_are_known_as_such() -> None:
    with_norm = {name for name, make in UNITS.items() if any(isinstance(part, nn.BatchNorm2d) for part in make(32, 32).modules())}
    assert with_norm == set(BATCH_NORM_UNITS)
