import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lw_retinanet.structures import Targets
from lw_retinanet.training.matching import BACKGROUND, IGNORED, match

Box = tuple[int, int, int, int]


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    """Few corners, so that ties and the exact thresholds come up; whole numbers, so that every overlap is the same fraction for all."""
    x, y = draw(st.integers(0, 6)), draw(st.integers(0, 6))
    return x, y, x + draw(st.integers(1, 6)), y + draw(st.integers(1, 6))


def intersection(a: Box, b: Box) -> int:
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def literal(anchors: list[Box], objects: list[tuple[Box, int, bool]]) -> list[tuple[int, Box]]:
    """Label and box of every anchor, written out from the rule."""

    def overlap(anchor: Box, box: Box) -> float:
        shared = intersection(anchor, box)
        return shared / (area(anchor) + area(box) - shared)

    real = [(box, label) for box, label, is_ignored in objects if label >= 0 and not is_ignored]
    regions = [box for box, label, is_ignored in objects if label >= 0 and is_ignored]
    best_of_object = [max(overlap(anchor, box) for anchor in anchors) for box, _ in real]
    result = []
    for anchor in anchors:
        overlaps = [overlap(anchor, box) for box, _ in real]
        best = max(overlaps, default=0.0)
        is_forced = any(own == top and top > 0 for own, top in zip(overlaps, best_of_object, strict=True))
        if best >= 0.5 or is_forced:
            box, label = real[overlaps.index(best)]
            result.append((label, box))
        elif best >= 0.4 or any(intersection(anchor, region) / area(anchor) >= 0.5 for region in regions):
            result.append((IGNORED, anchor))
        else:
            result.append((BACKGROUND, anchor))
    return result


def as_targets(images: list[list[tuple[Box, int, bool]]]) -> Targets:
    most = max(1, *map(len, images))
    padding = ((0, 0, 0, 0), -1, False)
    rows = [objects + [padding] * (most - len(objects)) for objects in images]
    return Targets(
        boxes=torch.tensor([[box for box, _, _ in row] for row in rows], dtype=torch.float64),
        labels=torch.tensor([[label for _, label, _ in row] for row in rows]),
        is_ignored=torch.tensor([[is_ignored for *_, is_ignored in row] for row in rows]),
    )


objects = st.lists(st.tuples(boxes(), st.integers(0, 3), st.sampled_from([False, False, True])), max_size=4)


@settings(deadline=None, max_examples=300)
@given(anchors=st.lists(boxes(), min_size=1, max_size=12), images=st.lists(objects, min_size=2, max_size=3))
def test_equal_to_the_rule_written_out(anchors: list[Box], images: list[list[tuple[Box, int, bool]]]) -> None:
    matches = match(torch.tensor(anchors, dtype=torch.float64), as_targets(images))
    for image, row in enumerate(images):
        expected = literal(anchors, row)
        assert matches.labels[image].tolist() == [label for label, _ in expected]
        assert [tuple(map(int, box)) for box in matches.boxes[image].tolist()] == [box for _, box in expected]


def anchors_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows)


def targets_of(box: list[float], label: int = 2, *, is_ignored: bool = False) -> Targets:
    return Targets(boxes=torch.tensor([[box]]), labels=torch.tensor([[label]]), is_ignored=torch.tensor([[is_ignored]]))


def test_thresholds_by_hand() -> None:
    # Object 10 x 10. Anchors inside it of 10 x 10, 10 x 5, 10 x 4.5, 10 x 4 and 10 x 3 rows: IoU 1, 0.5, 0.45, 0.4, 0.3.
    anchors = anchors_of(*[[0.0, 0.0, 10.0, height] for height in (10.0, 5.0, 4.5, 4.0, 3.0)])
    matches = match(anchors, targets_of([0.0, 0.0, 10.0, 10.0]))
    assert matches.labels.tolist() == [[2, 2, IGNORED, IGNORED, BACKGROUND]]
    assert matches.num_positive.tolist() == [2]


def test_an_object_without_a_good_anchor_gets_its_best_ones() -> None:
    # Two anchors overlap by the same quarter, a third less, a fourth not at all.
    anchors = anchors_of([0.0, 0.0, 20.0, 10.0], [0.0, 0.0, 10.0, 20.0], [8.0, 8.0, 20.0, 20.0], [50.0, 50.0, 60.0, 60.0])
    matches = match(anchors, targets_of([0.0, 0.0, 5.0, 5.0]))
    assert matches.labels.tolist() == [[2, 2, BACKGROUND, BACKGROUND]]


def test_an_object_that_no_anchor_touches_does_not_take_them_all() -> None:
    # Its best overlap is 0, which every anchor has.
    matches = match(anchors_of([0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]), targets_of([50.0, 50.0, 60.0, 60.0]))
    assert matches.labels.tolist() == [[BACKGROUND, BACKGROUND]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padding_alone_is_background(dtype: torch.dtype) -> None:
    anchors = anchors_of([0.0, 0.0, 10.0, 10.0], [-5.0, -5.0, 5.0, 5.0]).to(dtype)
    matches = match(anchors, as_targets([[], []]))
    assert matches.labels.tolist() == [[BACKGROUND] * 2] * 2
    assert matches.num_positive.tolist() == [0, 0]
    assert torch.equal(matches.boxes[0].double(), anchors.double())


def test_a_crowd_is_neither_right_nor_wrong() -> None:
    # Half of the first anchor lies in the region, 0.4 of the second; the region's own anchor is not positive either.
    anchors = anchors_of([45.0, 0.0, 55.0, 10.0], [46.0, 0.0, 56.0, 10.0], [0.0, 0.0, 50.0, 50.0])
    matches = match(anchors, targets_of([0.0, 0.0, 50.0, 50.0], is_ignored=True))
    assert matches.labels.tolist() == [[IGNORED, BACKGROUND, IGNORED]]
    # The same place holds an object inside the crowd: positive wins.
    both = Targets(
        boxes=torch.tensor([[[0.0, 0.0, 50.0, 50.0], [45.0, 0.0, 55.0, 10.0]]]),
        labels=torch.tensor([[1, 3]]),
        is_ignored=torch.tensor([[True, False]]),
    )
    assert match(anchors, both).labels.tolist() == [[3, 3, IGNORED]]
