import math
import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lw_retinanet.conventions import STRIDES, AnchorRule
from lw_retinanet.models.anchors import feature_sizes, make_anchors
from lw_retinanet.structures import Targets
from lw_retinanet.training.atss import _nearest_cells, match_adaptively
from lw_retinanet.training.matching import BACKGROUND, IGNORED, AnchorMatches

Box = tuple[float, float, float, float]
Object = tuple[Box, int, bool]

ONE = AnchorRule(base_size=8.0, octave_scales=(1.0,), aspect_ratios=(1.0,))
TWO = AnchorRule(base_size=4.0, octave_scales=(1.0, 2.0), aspect_ratios=(1.0,), centre=0.5)
PADDING: Object = ((0, 0, 0, 0), -1, False)


def anchors_of(size_hw: tuple[int, int], rule: AnchorRule) -> Tensor:
    # All sides are powers of two, so float64 has every corner, overlap and distance of the literal version.
    return make_anchors(size_hw, rule, torch.device("cpu")).double()


def as_targets(images: list[list[Object]], most: int | None = None) -> Targets:
    most = most or max(1, *map(len, images))
    rows = [objects + [PADDING] * (most - len(objects)) for objects in images]
    return Targets(
        boxes=torch.tensor([[box for box, _, _ in row] for row in rows], dtype=torch.float64),
        labels=torch.tensor([[label for _, label, _ in row] for row in rows]),
        is_ignored=torch.tensor([[is_ignored for *_, is_ignored in row] for row in rows]),
    )


def assigned(images: list[list[Object]], size_hw: tuple[int, int], rule: AnchorRule = ONE) -> AnchorMatches:
    return match_adaptively(anchors_of(size_hw, rule), as_targets(images), size_hw=size_hw, num_anchors=rule.num_anchors)


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def literal(size_hw: tuple[int, int], rule: AnchorRule, objects: list[Object]) -> list[tuple[int, Box]]:
    """Label and box of every anchor, written out from algorithm 1 of the paper."""
    anchors: list[Box] = [tuple(box) for box in anchors_of(size_hw, rule).tolist()]
    claims: dict[int, tuple[float, int]] = {}
    for number, (box, label, is_ignored) in enumerate(objects):
        if label < 0 or is_ignored:
            continue
        centre_x, centre_y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        candidates, first = [], 0
        for stride, (height, width) in zip(STRIDES, feature_sizes(size_hw), strict=True):
            places = [((column + rule.centre) * stride, (row + rule.centre) * stride) for row in range(height) for column in range(width)]
            # sorted() keeps cells that are equally near in their own order.
            nearest = sorted(range(len(places)), key=lambda cell: (places[cell][0] - centre_x) ** 2 + (places[cell][1] - centre_y) ** 2)
            candidates += [first + cell * rule.num_anchors + a for cell in nearest[:9] for a in range(rule.num_anchors)]
            first += height * width * rule.num_anchors
        overlaps = []
        for candidate in candidates:
            shared = intersection(anchors[candidate], box)
            overlaps.append(shared / (area(anchors[candidate]) + area(box) - shared))
        threshold = statistics.fmean(overlaps) + statistics.stdev(overlaps)
        for candidate, overlap in zip(candidates, overlaps, strict=True):
            # Sums in another order may differ by their rounding, so a candidate that close to its threshold proves nothing.
            assume(abs(overlap - threshold) > 1e-9)
            x, y = (anchors[candidate][0] + anchors[candidate][2]) / 2, (anchors[candidate][1] + anchors[candidate][3]) / 2
            is_inside = min(x - box[0], y - box[1], box[2] - x, box[3] - y) > 0.01
            if overlap >= threshold and is_inside and overlap > claims.get(candidate, (-1.0, 0))[0]:
                claims[candidate] = overlap, number
    regions = [box for box, label, is_ignored in objects if label >= 0 and is_ignored]
    result = []
    for number, anchor in enumerate(anchors):
        if number in claims:
            box, label, _ = objects[claims[number][1]]
            result.append((label, box))
        elif any(intersection(anchor, region) / area(anchor) >= 0.5 for region in regions):
            result.append((IGNORED, anchor))
        else:
            result.append((BACKGROUND, anchor))
    return result


@st.composite
def objects_in(draw: st.DrawFn, size_hw: tuple[int, int]) -> list[Object]:
    """Corners on a coarse grid, so that cells are equally near, anchors are claimed twice and centres lie on sides."""
    height, width = size_hw

    def draw_object() -> Object:
        x, y = draw(st.integers(-2, width // 4)) * 4, draw(st.integers(-2, height // 4)) * 4
        sides = st.one_of(st.integers(1, 24), st.sampled_from([32, 64, 128]))
        return (x, y, x + 4 * draw(sides), y + 4 * draw(sides)), draw(st.integers(0, 3)), draw(st.sampled_from([False] * 5 + [True]))

    return [draw_object() for _ in range(draw(st.integers(0, 5)))]


# Square, one row of P3 (fewer than nine cells on every level but the first), one cell a level, and sides that no stride divides.
@pytest.mark.parametrize("size_hw", [(96, 96), (8, 120), (8, 8), (70, 131)])
@pytest.mark.parametrize("rule", [ONE, TWO], ids=["one", "two"])
@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_equal_to_the_algorithm_written_out(size_hw: tuple[int, int], rule: AnchorRule, data: st.DataObject) -> None:
    images = [data.draw(objects_in(size_hw)) for _ in range(2)]
    matches = assigned(images, size_hw, rule)
    for image, objects in enumerate(images):
        expected = literal(size_hw, rule, objects)
        assert matches.labels[image].tolist() == [label for label, _ in expected]
        assert matches.boxes[image].tolist() == [list(box) for _, box in expected]


def positives(matches: AnchorMatches) -> list[int]:
    return matches.is_positive[0].nonzero().flatten().tolist()


def test_one_object_by_hand() -> None:
    # The object is the anchor of cell (4, 4) of P3, 64 x 64. Of its nine candidates there, one has IoU 1, four (8 px off along a side)
    # 56 * 64 / (2 * 64^2 - 56 * 64) = 0.778, four (along both) 0.620. On P4 nine contain it, 1/4; on P5 four, 1/16; P6 1/64; P7 1/256.
    # Mean 0.380, standard deviation 0.301 (23 degrees of freedom): the threshold 0.680 keeps the five.
    matches = assigned([[((0, 0, 64, 64), 2, False)]], (64, 64))
    assert positives(matches) == [3 * 8 + 4, 4 * 8 + 3, 4 * 8 + 4, 4 * 8 + 5, 5 * 8 + 4]
    assert matches.labels[0, positives(matches)].tolist() == [2] * 5
    assert matches.num_positive.tolist() == [5]


def test_of_equally_near_cells_the_first_come_first() -> None:
    # Between four cells (row, column) at 5.7 px: (1, 1), (1, 2), (2, 1), (2, 2). The next eight are all at 12.6 px; the first five of them
    # are (0, 1), (0, 2), (1, 0), (1, 3), (2, 0). Rows are eight cells long.
    places = torch.arange(8.0) * 8
    cells = _nearest_cells(torch.tensor([[[12.0, 12.0]]]), places, places[:5])
    assert cells.tolist() == [[[9, 10, 17, 18, 1, 2, 8, 11, 16]]]
    # In one row of twelve, from a place right of its end; of two by two there are but four.
    assert _nearest_cells(torch.tensor([[[99.0, 0.0]]]), torch.arange(12.0) * 8, torch.zeros(1)).tolist() == [[list(range(11, 2, -1))]]
    assert _nearest_cells(torch.tensor([[[99.0, 9.0]]]), places[:2], places[:2]).tolist() == [[[3, 1, 2, 0]]]


def test_the_higher_overlap_wins_and_the_first_of_equals() -> None:
    exact: Object = ((0, 0, 64, 64), 1, False)
    wide: Object = ((-8, 0, 72, 64), 2, False)  # IoU 0.8 with the anchor that is `exact`
    for objects in ([exact, wide], [wide, exact]):
        assert assigned([objects], (64, 64)).labels[0, 4 * 8 + 4] == 1
    twins: list[Object] = [exact, ((0, 0, 64, 64), 3, False)]
    alone = assigned([[exact]], (64, 64))
    for objects in (twins, twins[::-1]):
        matches = assigned([objects], (64, 64))
        assert positives(matches) == positives(alone)
        assert set(matches.labels[0, positives(matches)].tolist()) == {objects[0][1]}


def test_an_object_between_the_cells_gets_no_anchor() -> None:
    # Centres are 8 px apart. From (1, 1) to (7, 7) there is none; a side through one does not hold it.
    assert assigned([[((1, 1, 7, 7), 0, False)]], (64, 64)).num_positive.tolist() == [0]
    assert assigned([[((8, 8, 15, 15), 0, False)]], (64, 64)).num_positive.tolist() == [0]
    assert positives(assigned([[((7, 7, 15, 15), 0, False)]], (64, 64))) == [9]


def test_nothing_to_find_is_background() -> None:
    anchors = anchors_of((64, 64), ONE)
    matches = match_adaptively(anchors, as_targets([[], []], most=3), size_hw=(64, 64), num_anchors=1)
    assert matches.labels.tolist() == [[BACKGROUND] * len(anchors)] * 2
    assert torch.equal(matches.boxes[1], anchors)


def test_padding_decides_nothing() -> None:
    images: list[list[Object]] = [[((4, 8, 60, 50), 1, False), ((-40, -40, 40, 40), 2, True)], [((10, 10, 40, 30), 0, False)]]
    short, long = (
        match_adaptively(anchors_of((64, 96), ONE), as_targets(images, most=most), size_hw=(64, 96), num_anchors=1) for most in (2, 7)
    )
    assert torch.equal(short.labels, long.labels)
    assert torch.equal(short.boxes, long.boxes)
    assert set(short.labels[0].tolist()) == {IGNORED, BACKGROUND, 1}  # the region itself is no object


def test_an_object_of_each_size_is_found_on_its_level() -> None:
    # The anchor of a level is a square of eight strides; an object of that size sits best there.
    for level, stride in enumerate(STRIDES):
        side, size_hw = 8 * stride, (1024, 1024)
        corner = 512 - side // 2
        matches = assigned([[((corner, corner, corner + side, corner + side), 0, False)]], size_hw)
        counts = [math.prod(size) for size in feature_sizes(size_hw)]
        first = sum(counts[:level])
        assert matches.num_positive[0] >= 1
        assert all(first <= number < first + counts[level] for number in positives(matches)), level


def test_single_precision_agrees_with_double() -> None:
    random = torch.Generator().manual_seed(0)
    corners = torch.rand(4, 12, 2, generator=random) * 200
    boxes = torch.cat([corners, corners + torch.rand(4, 12, 2, generator=random) * 120 + 2], dim=2)
    labels = torch.randint(0, 5, (4, 12), generator=random)
    size_hw, rule = (256, 320), AnchorRule()
    single, double = (
        match_adaptively(
            make_anchors(size_hw, rule, torch.device("cpu")).to(dtype),
            Targets(boxes=boxes.to(dtype), labels=labels, is_ignored=torch.zeros_like(labels, dtype=torch.bool)),
            size_hw=size_hw,
            num_anchors=9,
        )
        for dtype in (torch.float32, torch.float64)
    )
    assert single.boxes.dtype == torch.float32
    assert torch.equal(single.labels, double.labels)
    assert int(single.num_positive.sum()) > 100


def test_no_value_is_asked_of_the_device() -> None:
    # Tensors without values: whatever would wait for one (item, nonzero, a mask as an index) is an error.
    with FakeTensorMode() as mode:
        anchors = mode.from_tensor(make_anchors((64, 96), ONE, torch.device("cpu")))
        targets = Targets(
            boxes=torch.zeros(2, 3, 4), labels=torch.zeros(2, 3, dtype=torch.int64), is_ignored=torch.zeros(2, 3, dtype=torch.bool)
        )
        matches = match_adaptively(anchors, targets, size_hw=(64, 96), num_anchors=1)
        assert matches.labels.shape == (2, len(anchors))
        assert matches.boxes.shape == (2, len(anchors), 4)
