from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from lw_retinanet.conventions import InputRule
from lw_retinanet.data.preprocess import normalise, pad_to, padded_size, resize, resize_scale, resized_size, to_tensor

FLOATS: dict[str, Any] = {"antialias": False, "resample_as": "float32"}
DETECTRON = InputRule(resize="short_side", size=24, rounding="detectron", **FLOATS)


@pytest.mark.parametrize(
    ("size_hw", "rule", "expected"),
    [
        ((480, 640), InputRule(size=416), (312, 416)),
        ((640, 480), InputRule(size=416), (416, 312)),
        ((333, 500), InputRule(size=416), (277, 416)),  # 277.06
        ((1, 5000), InputRule(size=416), (1, 416)),  # 0.08 rows are one
        ((480, 640), InputRule(resize="short_side", size=800, max_size=1333), (800, 1067)),  # 1066.7
        ((480, 640), InputRule(resize="short_side", size=800, max_size=1333, rounding="floor"), (800, 1066)),
        ((300, 900), InputRule(resize="short_side", size=800, max_size=1333), (444, 1333)),  # the long side decides
        ((25, 16), InputRule(resize="short_side", size=24), (38, 24)),  # 37.5: halves go up
        ((27, 16), InputRule(resize="short_side", size=24), (41, 24)),  # 40.5 too
        ((27, 16), DETECTRON, (40, 24)),  # 40.5 goes to the even number
        ((102, 100), DETECTRON.model_copy(update={"size": 60, "max_size": 61}), (61, 60)),  # 61.2 is not more than 61, once rounded
        ((103, 100), DETECTRON.model_copy(update={"size": 60, "max_size": 61}), (61, 59)),  # 61.8 is
    ],
)
def test_sizes_by_hand(size_hw: tuple[int, int], rule: InputRule, expected: tuple[int, int]) -> None:
    assert resized_size(size_hw, rule) == expected


@settings(deadline=None, max_examples=50)
@given(height=st.integers(8, 260), width=st.integers(8, 260))
def test_sizes_are_torchvisions_to_the_pixel(height: int, width: int) -> None:
    # 97 x 97 is among those that torchvision's arithmetic makes one pixel short.
    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3)
    rule = InputRule(resize="short_side", size=80, max_size=133, rounding="floor")
    for size_hw in ((height, width), (97, 97)):
        images, _ = transform([torch.zeros(3, *size_hw)])
        assert resized_size(size_hw, rule) == images.image_sizes[0]
        assert padded_size([resized_size(size_hw, rule)], 32) == tuple(images.tensors.shape[2:])


def test_one_padded_size_serves_all() -> None:
    assert padded_size([(31, 64), (33, 20)], 32) == (64, 64)
    assert padded_size([(31, 64), (33, 20)], 1) == (33, 64)


def test_normalise_by_hand() -> None:
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[:, 0], images[:, 1], images[:, 2] = 51, 102, 255
    rule = InputRule(channel_order="bgr", scale=51.0, mean=(1.0, 1.0, 1.0), std=(1.0, 2.0, 4.0))
    # Blue first: (255 / 51 - 1) / 1 = 4, (102 / 51 - 1) / 2 = 0.5, (51 / 51 - 1) / 4 = 0.
    result = normalise(images, torch.tensor([[2, 2], [1, 2]]), rule)
    assert result[0, :, 1, 1].tolist() == [4.0, 0.5, 0.0]
    # What lies outside the second image is padding, and padding is zero after the mean is gone.
    assert result[1, :, 0].tolist() == [[4.0, 4.0], [0.5, 0.5], [0.0, 0.0]]
    assert (result[1, :, 1] == 0).all()
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == torch.float32


def test_normalise_equals_torchvision() -> None:
    image = torch.randint(0, 256, (1, 3, 7, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rule = InputRule()
    transform = GeneralizedRCNNTransform(1, 1, list(rule.mean), list(rule.std))
    expected = transform.normalize(image[0].float() / 255)
    torch.testing.assert_close(normalise(image, torch.tensor([[7, 9]]), rule)[0], expected, rtol=0, atol=1e-6)


def test_normalise_leaves_its_input_alone_and_takes_any_memory_format() -> None:
    planar = torch.rand((2, 3, 5, 7), generator=torch.Generator().manual_seed(0)) * 255
    sizes_hw, before = torch.tensor([[5, 7], [3, 4]]), planar.clone()
    expected = normalise(planar.contiguous(memory_format=torch.channels_last), sizes_hw, InputRule())
    assert torch.equal(normalise(planar, sizes_hw, InputRule()), expected)
    assert torch.equal(planar, before)
    last = planar.contiguous(memory_format=torch.channels_last)
    normalise(last, sizes_hw, InputRule())
    assert torch.equal(last, before)


def test_padding_goes_right_and_below() -> None:
    images = [torch.full((3, 2, 3), 7, dtype=torch.uint8), torch.full((3, 4, 1), 9, dtype=torch.uint8)]
    batch = pad_to(images, (4, 5))
    assert batch[0, 0].tolist() == [[7, 7, 7, 0, 0]] * 2 + [[0] * 5] * 2
    assert batch[1, 2].tolist() == [[9, 0, 0, 0, 0]] * 4


def test_to_tensor_takes_read_only_arrays() -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    array.flags.writeable = False
    tensor = to_tensor(array)
    assert tensor.shape == (3, 2, 4)
    assert tensor[:, 1, 3].tolist() == [21, 22, 23]


def test_antialias_is_the_rules_choice() -> None:
    # One white column of eight: shrunk to two, the filter sees it, plain bilinear looks at columns 1.5 and 5.5 only.
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 0] = 240
    assert resize(to_tensor(image), (1, 2), InputRule(antialias=True))[0, 0, 0] > 20
    assert resize(to_tensor(image), (1, 2), InputRule(antialias=False)).flatten().tolist() == [0] * 6


def test_float_images_keep_the_values_between_levels() -> None:
    image = np.repeat(np.array([[0, 3]], np.uint8)[..., None], 3, axis=2)
    # Columns at -0.25, 0.25, 0.75 and 1.25 of two: 0, 0.75, 2.25, 3.
    exact = resize(to_tensor(image), (1, 4), InputRule(**FLOATS))
    assert exact[0, 0].tolist() == [0, 0.75, 2.25, 3]
    whole = resize(to_tensor(image), (1, 4), InputRule(antialias=False))
    assert (whole.dtype, whole[0, 0].tolist()) == (torch.uint8, [0, 1, 2, 3])
    # Also where nothing is resized, or a batch of both could not be stacked.
    same = resize(to_tensor(image), (1, 2), InputRule(**FLOATS))
    batch = pad_to([exact, same], (1, 4))
    assert batch.dtype == torch.float32
    result = normalise(batch, torch.tensor([[1, 4], [1, 2]]), InputRule(scale=1.0, mean=(1.0, 1.0, 1.0), std=(1.0, 1.0, 1.0)))
    assert result[:, 0, 0].tolist() == [[-1, -0.25, 1.25, 2], [-1, 2, 0, 0]]


def test_detectron_samples_at_its_scale_and_not_at_the_ratio_of_the_sides() -> None:
    # 16 -> 24 rows is a scale of 1.5; 27 columns become 40, not 40.5. Column 39 lies at 39.5 / 1.5 - 0.5 = 25.83 of a ramp 0..26, not at
    # 39.5 * 27 / 40 - 0.5 = 26.16, beyond the end.
    ramp = np.repeat(np.tile(np.arange(27, dtype=np.uint8), (16, 1))[..., None], 3, axis=2)
    size_hw = resized_size((16, 27), DETECTRON)
    assert (size_hw, resize_scale((16, 27), DETECTRON)) == ((24, 40), 1.5)
    found = resize(to_tensor(ramp), size_hw, DETECTRON)[0, 0]
    expected = [min(max((column + 0.5) / 1.5 - 0.5, 0.0), 26.0) for column in range(40)]
    assert found.tolist() == pytest.approx(expected, abs=1e-4)
    # A size that augmentation has chosen has no scale of its own.
    assert resize(to_tensor(ramp), (24, 41), DETECTRON)[0, 0, 40] == 26


def test_detectron_neither_filters_nor_rounds() -> None:
    with pytest.raises(ValueError, match="set antialias=False, resample_as=float32"):
        InputRule(rounding="detectron")
