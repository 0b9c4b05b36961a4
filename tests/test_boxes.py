import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lw_retinanet.boxes import MAX_LOG_SCALE, clip, coverage, decode, encode, iou
from lw_retinanet.conventions import BoxRule

side = st.floats(4, 300)
corner = st.floats(-50, 400)


@st.composite
def boxes_xyxy(draw: st.DrawFn) -> Tensor:
    x, y, w, h = draw(corner), draw(corner), draw(side), draw(side)
    return torch.tensor([x, y, x + w, y + h], dtype=torch.float64)


@settings(deadline=None)
@given(box=boxes_xyxy(), anchor=boxes_xyxy(), plus_one=st.booleans())
def test_decode_inverts_encode(box: Tensor, anchor: Tensor, plus_one: bool) -> None:
    # The clamp at ln 62.5 would cut wider ratios, 300 / 4 among them.
    rule = BoxRule(legacy_plus_one=plus_one, clamp="none")
    torch.testing.assert_close(decode(encode(box, anchor, rule), anchor, rule), box, rtol=0, atol=1e-9)


def test_encode_by_hand() -> None:
    # Anchor: centre (20, 20), 20 x 40. Box: centre (25, 30), 40 x 20. dx = 5 / 20, dy = 10 / 40, dw = ln 2, dh = -ln 2.
    deltas = encode(torch.tensor([[5.0, 20.0, 45.0, 40.0]]), torch.tensor([[10.0, 0.0, 30.0, 40.0]]))
    torch.testing.assert_close(deltas, torch.tensor([[0.25, 0.25, math.log(2), -math.log(2)]]))


def test_legacy_anchors_end_with_their_last_pixel_boxes_behind_it() -> None:
    # 0..9 is ten pixels wide; twice as wide is 20 pixels, and dx = 0.5 moves the centre by five of them, from 5 to 10: 0..19, up to 20.
    rule, anchor = BoxRule(legacy_plus_one=True), torch.tensor([0.0, 0.0, 9.0, 9.0])
    box = decode(torch.tensor([0.5, 0.5, math.log(2), math.log(2)]), anchor, rule)
    torch.testing.assert_close(box, torch.tensor([0.0, 0.0, 20.0, 20.0]))
    torch.testing.assert_close(encode(torch.tensor([0.0, 0.0, 10.0, 10.0]), anchor, rule), torch.zeros(4))


@pytest.mark.parametrize(
    ("clamp", "largest", "smallest"), [("max", 62.5, math.exp(-9)), ("both", 62.5, 1 / 62.5), ("none", math.exp(9), math.exp(-9))]
)
def test_clamp(clamp: str, largest: float, smallest: float) -> None:
    anchor = torch.tensor([-0.5, -0.5, 0.5, 0.5], dtype=torch.float64)
    rule = BoxRule.model_validate({"clamp": clamp})
    box = decode(torch.tensor([0.0, 0.0, 9.0, -9.0], dtype=torch.float64), anchor, rule)
    torch.testing.assert_close(box[2:] - box[:2], torch.tensor([largest, smallest], dtype=torch.float64))


def test_decode_of_a_diverged_network_stays_finite() -> None:
    anchors = torch.tensor([0.0, 0.0, 512.0, 512.0])
    assert decode(torch.full((1, 4), 1e4), anchors).isfinite().all()
    assert math.exp(MAX_LOG_SCALE) == pytest.approx(62.5)


def test_iou_of_empty_boxes_is_zero_not_nan() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 10.0, 10.0]])
    assert iou(boxes, boxes).tolist() == [[0, 0], [0, 1]]


def test_coverage_by_hand() -> None:
    # A 10 x 10 box, half of it in the first region, all of it in the second, none in the third, which only touches it.
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    regions = torch.tensor([[5.0, -100.0, 100.0, 100.0], [-5.0, -5.0, 50.0, 50.0], [10.0, 0.0, 20.0, 10.0]])
    assert coverage(box, regions).tolist() == [[0.5, 1.0, 0.0]]
    assert coverage(torch.zeros(1, 4), regions).tolist() == [[0.0, 0.0, 0.0]]


def test_clip_uses_each_images_own_size() -> None:
    boxes = torch.tensor([[[-5.0, -5.0, 100.0, 100.0]]] * 2)
    assert clip(boxes, torch.tensor([[40, 60], [80, 20]])).tolist() == [[[0, 0, 60, 40]], [[0, 0, 20, 80]]]
