from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lw_retinanet.config import DataConfig
from lw_retinanet.conventions import InputRule
from lw_retinanet.data.augment import Geometry, apply_colours, apply_geometry, plan_geometry
from lw_retinanet.data.preprocess import resized_size

RULE = InputRule(size=96)
sizes_hw = st.tuples(st.integers(40, 200), st.integers(40, 200))


def image_with(size_hw: tuple[int, int], box: Sequence[int]) -> Tensor:
    image = torch.full((3, *size_hw), 60, dtype=torch.uint8)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = torch.tensor([250, 20, 20], dtype=torch.uint8)[:, None, None]
    return image


def find_red(image: Tensor) -> list[float]:
    """Extent of the red pixels, those on a border counting by their share of red."""
    share = ((image[0].double() - image[1]).clamp(min=0) / 230).numpy()
    columns, rows = share.max(axis=0), share.max(axis=1)
    extents = []
    for line in (columns, rows):
        inside = np.flatnonzero(line > 0.1)
        first, last = inside[0], inside[-1]
        extents.append((first + 1 - line[first], last + line[last]))
    return [extents[0][0], extents[1][0], extents[0][1], extents[1][1]]


@settings(deadline=None, max_examples=60)
@given(size_hw=sizes_hw, seed=st.integers(0, 2**40), augment=st.sampled_from(["none", "flip", "jitter"]), data=st.data())
def test_boxes_follow_their_pixels(size_hw: tuple[int, int], seed: int, augment: str, data: st.DataObject) -> None:
    height, width = size_hw
    x1, y1 = data.draw(st.integers(0, width - 20)), data.draw(st.integers(0, height - 20))
    box = (x1, y1, data.draw(st.integers(x1 + 16, width)), data.draw(st.integers(y1 + 16, height)))
    geometry = plan_geometry(size_hw, seed=seed, epoch=3, index=5, config=DataConfig.model_validate({"augment": augment}), rule=RULE)
    image, boxes, visible = apply_geometry(image_with(size_hw, box), torch.tensor([box], dtype=torch.float32), geometry, RULE)
    assert tuple(image.shape[1:]) == geometry.size_hw
    found, expected = boxes[0].tolist(), boxes[0]
    sides = expected[2:] - expected[:2]
    if (sides < 3).any():
        return  # next to nothing is left to be found
    # 1.5 px: resampling blurs a border over two pixels.
    assert found == pytest.approx(find_red(image), abs=1.5)
    full = (box[2] - box[0]) * (box[3] - box[1]) * geometry.resized_hw[0] * geometry.resized_hw[1] / (height * width)
    assert float(visible) == pytest.approx(float(sides.prod()) / full, abs=1e-4)


@settings(deadline=None)
@given(size_hw=sizes_hw, seed=st.integers(0, 10**6), low=st.floats(0.2, 1), high=st.floats(1, 3))
def test_jitter_never_makes_an_image_larger(size_hw: tuple[int, int], seed: int, low: float, high: float) -> None:
    config = DataConfig(augment="jitter", jitter=(low, high))
    geometry = plan_geometry(size_hw, seed=seed, epoch=0, index=0, config=config, rule=RULE)
    usual = resized_size(size_hw, RULE)
    assert geometry.size_hw[0] <= usual[0]
    assert geometry.size_hw[1] <= usual[1]
    top, left, height, width = geometry.crop
    assert min(top, left) >= 0
    assert top + height <= geometry.resized_hw[0]
    assert left + width <= geometry.resized_hw[1]


def test_geometry_is_a_function_of_seed_epoch_and_index() -> None:
    config = DataConfig(augment="jitter")

    def plan(seed: int, epoch: int, index: int) -> Geometry:
        return plan_geometry((100, 80), seed=seed, epoch=epoch, index=index, config=config, rule=RULE)

    first = [plan(1, 2, index) for index in range(5)]
    np.random.default_rng().random()
    torch.rand(3)
    assert [plan(1, 2, index) for index in range(5)] == first
    assert len({plan(*place) for place in ((1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 2, 1), (2, 3, 1), (3, 1, 2))}) == 6


def test_jitter_covers_its_range_and_flips_half() -> None:
    config = DataConfig(augment="jitter", jitter=(0.5, 2.0))
    plans = [plan_geometry((100, 100), seed=0, epoch=0, index=index, config=config, rule=RULE) for index in range(400)]
    scales = np.array([plan.resized_hw[0] / 96 for plan in plans])
    assert scales.min() < 0.55
    assert scales.max() > 1.9
    # As many shrink as grow: the draw is uniform in the logarithm. 400 coins: 200 +- 10, so five sigma.
    assert 150 < (scales < 1).sum() < 250
    assert 150 < sum(plan.flip for plan in plans) < 250
    assert len({plan.crop[:2] for plan in plans if plan.resized_hw[0] > 120}) > 20


@pytest.mark.parametrize(("augment", "flips"), [("none", 0), ("flip", 5)])
def test_without_jitter_only_the_flip_is_drawn(augment: str, flips: int) -> None:
    config = DataConfig.model_validate({"augment": augment})
    plans = [plan_geometry((50, 100), seed=0, epoch=0, index=index, config=config, rule=RULE) for index in range(40)]
    assert {(plan.resized_hw, plan.crop) for plan in plans} == {((48, 96), (0, 0, 48, 96))}
    assert (sum(plan.flip for plan in plans) > flips) == (augment == "flip")


def test_visible_share_by_hand() -> None:
    # Twice as large, of which the left upper quarter is kept: the first box stays whole, the second keeps a quarter, the third nothing.
    geometry = Geometry(flip=True, resized_hw=(192, 192), crop=(0, 0, 96, 96))
    boxes = torch.tensor([[4.0, 4.0, 14.0, 24.0], [38.0, 38.0, 58.0, 58.0], [60.0, 60.0, 90.0, 90.0]])
    _, moved, visible = apply_geometry(torch.zeros(3, 96, 96, dtype=torch.uint8), boxes, geometry, RULE)
    assert visible.tolist() == [1.0, 0.25, 0.0]
    # 2 x (4..14) = 8..28, mirrored in 96: 68..88.
    assert moved[0].tolist() == [68, 8, 88, 48]
    assert moved[1].tolist() == [0, 76, 20, 96]


def test_an_image_without_boxes_is_augmented_too() -> None:
    geometry = Geometry(flip=True, resized_hw=(96, 96), crop=(0, 0, 96, 96))
    _, boxes, visible = apply_geometry(torch.zeros(3, 50, 50, dtype=torch.uint8), torch.zeros(0, 4), geometry, RULE)
    assert boxes.shape == (0, 4)
    assert visible.shape == (0,)


def test_colours_are_a_function_too_and_leave_the_worlds_dice_alone() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    results = [apply_colours(image, seed=0, epoch=0, index=index) for index in range(8)]
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    again = [apply_colours(image, seed=0, epoch=0, index=index) for index in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(results, again, strict=True))
    assert len({result.numpy().tobytes() for result in results}) > 4
    assert all(result.shape == image.shape and result.dtype == torch.uint8 for result in results)
