from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from lw_retinanet.conventions import AnchorRule
from lw_retinanet.data.records import Records
from lw_retinanet.models.anchors import make_anchors
from lw_retinanet.training.anchor_recall import anchor_recall, best_ious

DrawRecords = Callable[..., Records]


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], tuple[int, int], AnchorRule]:
    """Boxes anywhere in a image, some reaching out of it, and a rule of anchors."""
    height, width = draw(st.integers(20, 200)), draw(st.integers(20, 200))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    corners = rng.uniform(-10, [width, height], (6, 2))
    sides = np.exp(rng.uniform(0, np.log(300), (6, 2)))
    rule = AnchorRule(centre=draw(st.sampled_from([0.0, 0.5])), octave_scales=draw(st.sampled_from([(1.0,), (1.0, 2 ** (1 / 3))])))
    return np.concatenate([corners, sides], axis=1), (height, width), rule


@settings(deadline=None, max_examples=30)
@given(case=cases())
def test_the_nearest_cell_is_as_good_as_all_anchors(case: tuple[np.ndarray[Any, Any], tuple[int, int], AnchorRule]) -> None:
    boxes, size_hw, rule = case
    anchors = make_anchors(size_hw, rule, torch.device("cpu")).double()
    every = box_iou(torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)), anchors)
    # Anchors are float32: 1e-5 of an IoU.
    np.testing.assert_allclose(best_ious(boxes, np.array([size_hw] * len(boxes)), rule), every.amax(dim=1).numpy(), rtol=0, atol=1e-5)


def test_each_box_meets_the_anchors_of_its_own_image() -> None:
    # In a image of 20 pixels only the largest anchors reach a place at 150; one of 200 has small ones there.
    box = np.array([[134.0, 134.0, 32.0, 32.0]] * 2)
    near, far = best_ious(box, np.array([[200, 200], [20, 20]]), AnchorRule())
    assert near > 0.6
    assert far < 0.05


def test_an_anchor_itself_is_met_fully() -> None:
    # The square anchor of P3 around the cell at (8, 16): 32 x 32.
    assert best_ious(np.array([[-8.0, 0.0, 32.0, 32.0]]), np.array([[64, 64]]), AnchorRule()) == pytest.approx(1, abs=1e-6)
    assert best_ious(np.zeros((0, 4)), np.zeros((0, 2), dtype=np.int64), AnchorRule()).shape == (0,)


def test_boxes_are_measured_after_resizing(draw_records: DrawRecords, tmp_path: Path) -> None:
    # 8 pixels of 64: at 256 they are 32, an anchor's size; at 64 they cover 64 of the 1024 pixels of the smallest square one.
    records = draw_records(tmp_path, [((64, 64), [(12, 12, 8, 8, 0)])])
    large, small = anchor_recall(records, 256), anchor_recall(records, 64)
    assert large.mean_iou == pytest.approx(1, abs=1e-6)
    assert (large.covered, large.lost) == (1.0, 0.0)
    assert small.mean_iou == pytest.approx(64 / 1024)
    assert (small.covered, small.lost) == (0.0, 1.0)
    assert small.by_size == {"small": 0.0, "medium": None, "large": None}
    assert any("larger image size" in line for line in small.lines())
    assert not any("larger image size" in line for line in large.lines())


def test_boxes_that_no_training_uses_are_left_out(draw_records: DrawRecords, tmp_path: Path) -> None:
    records = draw_records(tmp_path, [((64, 64), [(12, 12, 8, 8, 0), (0, 0, 40, 40, 1), (5, 5, 0.4, 9, 1)]), ((64, 64), [])])
    is_crowd = np.array([False, True, False])
    assert anchor_recall(replace(records, is_crowd=is_crowd), 64).boxes == 1
    unknown = replace(records, sizes_hw=np.zeros((2, 2), np.int32))
    assert anchor_recall(unknown, 64).boxes == 0


def test_no_boxes_are_no_error(draw_records: DrawRecords, tmp_path: Path) -> None:
    recall = anchor_recall(draw_records(tmp_path, [((64, 48), [])]), 64)
    assert (recall.boxes, recall.covered, recall.mean_iou) == (0, 0.0, 0.0)
    assert recall.as_dict()["by_size"] == {"small": None, "medium": None, "large": None}
    assert recall.lines()
