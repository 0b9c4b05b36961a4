import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from lw_retinanet.conventions import STRIDES, AnchorRule
from lw_retinanet.models.anchors import anchors_per_level, cell_anchors, feature_sizes, make_anchors

CPU = torch.device("cpu")


@pytest.mark.parametrize("size_hw", [(64, 64), (160, 224), (75, 131), (1, 300)])
def test_every_convention_of_torchvision_together_gives_its_anchors(size_hw: tuple[int, int]) -> None:
    sizes = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512))
    generator = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    images = ImageList(torch.zeros(1, 3, *size_hw), [size_hw])
    expected = generator(images, [torch.zeros(1, 1, *size) for size in feature_sizes(size_hw)])[0]
    rule = AnchorRule(rounding="torchvision", stride_rule="padded_over_feature")
    assert torch.equal(make_anchors(size_hw, rule, CPU), expected)


def test_exact_anchors_by_hand() -> None:
    anchors = make_anchors((16, 24), AnchorRule(), CPU)
    # P3 is 2 x 3. The second square anchor (ratio 1, number 3) of its first cell: 32 x 32 around the corner (0, 0).
    assert anchors[3].tolist() == [-16, -16, 16, 16]
    # Row 1, column 2: centre (16, 8).
    assert anchors[(1 * 3 + 2) * 9 + 3].tolist() == [0, -8, 32, 24]
    # Ratio 0.5 is twice as wide as high, of the same area: 45.25 x 22.63.
    assert (anchors[0, 2:] - anchors[0, :2]).tolist() == pytest.approx([32 * 2**0.5, 32 / 2**0.5])


def test_sizes_of_the_octaves() -> None:
    for stride in STRIDES:
        boxes = cell_anchors(stride, AnchorRule())
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt().tolist()
        assert areas == pytest.approx([4 * stride * 2 ** (octave / 3) for octave in (0, 1, 2)] * 3)


def test_order_is_a_permutation_of_the_same_anchors() -> None:
    ratio_major, scale_major = (cell_anchors(8, AnchorRule.model_validate({"order": order})) for order in ("ratio_major", "scale_major"))
    # Number ratio * 3 + scale against scale * 3 + ratio.
    for ratio in range(3):
        for scale in range(3):
            torch.testing.assert_close(ratio_major[ratio * 3 + scale], scale_major[scale * 3 + ratio])
    assert not torch.equal(ratio_major, scale_major)


def test_the_centre_moves_by_its_share_of_a_stride() -> None:
    plain, moved = (make_anchors((64, 64), AnchorRule(centre=centre), CPU) for centre in (0.0, 0.5))
    start = 0
    for stride, count in zip(STRIDES, anchors_per_level((64, 64), AnchorRule()), strict=True):
        torch.testing.assert_close(moved[start : start + count], plain[start : start + count] + 0.5 * stride)
        start += count


def test_detectrons_anchors_by_hand() -> None:
    rule = AnchorRule(rounding="detectron", octave_scales=(1.0,), aspect_ratios=(0.5, 1.0, 2.0), centre=0.5, inclusive=True)
    # Stride 32: sqrt(32^2 / 0.5) = 45.25 -> 45 wide, 22.5 -> 22 high (to the even number); ratio 2: 22.6 -> 23 wide, 46 high; all times 4.
    sides = [(180, 88), (128, 128), (92, 184)]
    start = sum(anchors_per_level((64, 64), rule)[:2])
    # The first cell's pixels are 0..31, its centre 15.5; a box of n pixels around it goes from 15.5 - (n - 1) / 2 to 15.5 + (n - 1) / 2.
    expected = [[15.5 - (w - 1) / 2, 15.5 - (h - 1) / 2, 15.5 + (w - 1) / 2, 15.5 + (h - 1) / 2] for w, h in sides]
    torch.testing.assert_close(make_anchors((64, 64), rule, CPU)[start : start + 3], torch.tensor(expected))


def test_stride_rules_differ_where_the_size_is_no_multiple() -> None:
    # 75 rows: P3 has 10, and torchvision's stride is 75 // 10 = 7.
    fixed, fitted = (
        make_anchors((75, 64), AnchorRule.model_validate({"stride_rule": rule}), CPU) for rule in ("fixed", "padded_over_feature")
    )
    row = 8 * 9  # anchors of one row of P3
    assert float((fixed[row] - fixed[0])[1]) == 8
    assert float((fitted[row] - fitted[0])[1]) == 7


@pytest.mark.parametrize("size_hw", [(64, 96), (65, 97), (1, 1), (800, 1333)])
def test_counts_fit_the_networks_maps(size_hw: tuple[int, int]) -> None:
    rule = AnchorRule(octave_scales=(1.0, 1.5), aspect_ratios=(1.0,))
    assert len(make_anchors(size_hw, rule, CPU)) == sum(anchors_per_level(size_hw, rule))
    # Every map is made from the one before by a layer of stride 2 that rounds up.
    side, sides = size_hw[0], []
    for _ in range(7):
        side = (side + 1) // 2
        sides.append(side)
    assert [height for height, _ in feature_sizes(size_hw)] == sides[2:]


def test_anchors_made_while_predicting_serve_training() -> None:
    rule = AnchorRule(base_size=3.0)  # a rule that no other test has put into the cache
    with torch.inference_mode():
        make_anchors((64, 64), rule, CPU)
    anchors = make_anchors((64, 64), rule, CPU)
    assert not anchors.is_inference()
    assert make_anchors((64, 64), rule, CPU) is anchors
