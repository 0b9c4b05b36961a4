"""The graph with NMS inside gives what the package's own post-processing gives."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from lw_retinanet.conventions import Conventions
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.end_to_end import EndToEnd, survivors
from lw_retinanet.exporting.graph import RawGraph, example_inputs
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Detections, Predictions


def changed(model: RetinaNet, rules: dict[str, dict[str, Any]]) -> RetinaNet:
    import copy

    made = copy.copy(model)
    values = model.conventions.model_dump()
    made.conventions = Conventions.model_validate(values | {part: values[part] | rule for part, rule in rules.items()})
    return made


def both(model: RetinaNet, images: torch.Tensor, sizes_hw: torch.Tensor) -> tuple[Detections, Detections]:
    with torch.no_grad():
        predictions = Predictions(*RawGraph(model)(images))
        given_ = EndToEnd(model)(images, sizes_hw)
    size_hw = (images.shape[2], images.shape[3])
    expected = detect(predictions, size_hw=size_hw, sizes_hw=sizes_hw, conventions=model.conventions)
    return expected, Detections(**dict(zip(("boxes", "scores", "labels", "counts"), given_, strict=True)))


@pytest.mark.parametrize(
    "rules",
    [
        {},
        {"output": {"clip": "after_nms", "drop_empty": True, "max_detections": 20}},
        {"output": {"clip_to": "padded_minus_one", "drop_empty": True, "candidates_per_level": 30}},
        {"output": {"clip_to": "picture_minus_one", "last_level_score_threshold": 0.0, "score_threshold": 0.12}},
        {"boxes": {"legacy_plus_one": True, "clamp": "none"}, "anchors": {"inclusive": True, "centre": 0.5}},
        {"anchors": {"rounding": "torchvision", "stride_rule": "padded_over_feature"}, "boxes": {"clamp": "both"}},
        {"output": {"candidates_per_level": 10, "max_detections": 300, "nms_iou": 0.3}},
    ],
    ids=lambda rules: "-".join(key for rule in rules.values() for key in rule) or "defaults",
)
def test_boxes_are_those_of_our_own_postprocessing(model: RetinaNet, rules: dict[str, Any]) -> None:
    model = changed(model, rules)
    images = example_inputs(RawGraph(model), 3, (96, 160), seed=3)[0]
    sizes_hw = torch.tensor([[96, 160], [70, 160], [96, 101]])
    expected, found = both(model, images, sizes_hw)
    assert int(expected.counts.min()) > 3
    assert found.counts.tolist() == expected.counts.tolist()
    assert torch.equal(found.labels, expected.labels)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.boxes, expected.boxes, atol=1e-3, rtol=0)  # pixels; single against double precision


def test_nothing_found_is_padding_only(model: RetinaNet) -> None:
    model = changed(model, {"output": {"score_threshold": 0.99}})
    _, found = both(model, torch.zeros((2, 3, 64, 64)), torch.tensor([[64, 64], [64, 64]]))
    assert found.counts.tolist() == [0, 0]
    assert not found.boxes.any()
    assert not found.scores.any()
    assert (found.labels == -1).all()
    assert found.boxes.shape == (2, 100, 4)


def test_nan_is_no_detection(model: RetinaNet) -> None:
    images = torch.full((1, 3, 64, 64), torch.nan)
    _, found = both(model, images, torch.tensor([[64, 64]]))
    assert found.counts.tolist() == [0]
    assert found.boxes.isfinite().all()


def test_boxes_of_the_original_image_are_refused(model: RetinaNet) -> None:
    with pytest.raises(InputError, match="export raw outputs instead"):
        EndToEnd(changed(model, {"output": {"frame": "picture"}}))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), number=st.integers(1, 60), iou=st.sampled_from([0.3, 0.5, 0.7]))
def test_survivors_are_those_of_greedy_nms(seed: int, number: int, iou: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(0, 30, (number, 2), generator=generator).float()
    boxes = torch.cat([corners, corners + torch.randint(0, 25, (number, 2), generator=generator)], dim=1)
    labels = torch.randint(0, 2, (number,), generator=generator)
    ranks = torch.arange(number, 0, -1).double()
    # Empty boxes divide nothing by nothing in torchvision's; ours never overlap anything.
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    boxes, labels, ranks = boxes[has_area], labels[has_area], ranks[has_area]
    kept = torch.zeros(len(boxes), dtype=torch.bool)
    kept[batched_nms(boxes.double(), ranks, labels, iou)] = True
    found = survivors(boxes[None], labels[None], torch.ones((1, len(boxes)), dtype=torch.bool), iou=iou)[0]
    assert torch.equal(found, kept)


def test_what_is_not_real_neither_stays_nor_suppresses() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60]])[None]
    found = survivors(boxes, torch.zeros((1, 3), dtype=torch.int64), torch.tensor([[False, True, True]]), iou=0.5)
    assert found.tolist() == [[False, True, True]]
