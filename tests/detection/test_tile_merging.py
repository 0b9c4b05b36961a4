"""Objects in tiles, as an exact detector gives them: each object clipped to each tile that shows some of it."""

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from lw_retinanet.detection.tile_merging import TileBoxes, merge
from lw_retinanet.detection.tiling import Tiling

Boxes = NDArray[np.float64]


def seen(objects: ArrayLike, tiles: ArrayLike, size_hw: tuple[int, int], labels: ArrayLike = 0, seed: int = 0) -> TileBoxes:
    """What an exact detector gives: every object cut off at the tiles' borders, with scores at random."""
    boxes, tiles = np.asarray(objects, np.float64).reshape(-1, 1, 4), np.asarray(tiles, np.float64)
    clipped = np.concatenate([np.maximum(boxes[..., :2], tiles[:, :2]), np.minimum(boxes[..., 2:], tiles[:, 2:])], axis=-1)
    row, tile_of = np.nonzero((clipped[..., 2:] > clipped[..., :2]).all(axis=-1))
    order = np.random.default_rng(seed).permutation(len(row))
    row, tile_of = row[order], tile_of[order]
    scores = np.random.default_rng(seed + 1).uniform(0.1, 1, len(row))
    labels = np.broadcast_to(np.asarray(labels, np.int64), len(boxes))[row]
    return TileBoxes(boxes=clipped[row, tile_of], scores=scores, labels=labels, tile_of=tile_of, tiles=tiles, size_hw=size_hw)


def found(objects: ArrayLike, tiling: Tiling, size_hw: tuple[int, int], labels: ArrayLike = 0, seed: int = 0) -> Boxes:
    """Rows of x1, y1, x2, y2, label, sorted."""
    boxes, scores, classes = merge(seen(objects, tiling.windows(size_hw), size_hw, labels, seed), iou=0.5)
    assert (np.diff(scores) <= 0).all()
    return in_order(boxes, classes)


def in_order(boxes: ArrayLike, labels: ArrayLike = 0) -> Boxes:
    table = np.concatenate([np.asarray(boxes, np.float64), np.broadcast_to(labels, len(np.asarray(boxes)))[:, None]], axis=1)
    return table[np.lexsort(table.T)]


def grid(width: float, height: float, first: tuple[float, float], size_hw: tuple[int, int]) -> Boxes:
    """Touching objects that fill the image from ``first`` on."""
    x, y = np.meshgrid(np.arange(first[0], size_hw[1] - width, width), np.arange(first[1], size_hw[0] - height, height))
    return np.stack([x, y, x + width, y + height], axis=-1).reshape(-1, 4)


@pytest.mark.parametrize("sides", [(30, 30), (51, 51), (110, 25), (25, 120), (110, 90), (200, 40)])
def test_touching_objects_at_a_hundred_positions_are_found_once_each_and_not_joined(sides: tuple[int, int]) -> None:
    """Also objects larger than the overlap of 51 pixels, which no tile may show whole, and tiles that were moved inward."""
    tiling, size_hw = Tiling(tile=128, overlap=0.4), (290, 310)
    for offset in range(100):
        objects = grid(*sides, (offset * 3 % sides[0] + offset / 128, offset * 7 % sides[1]), size_hw)
        np.testing.assert_allclose(found(objects, tiling, size_hw, seed=offset), in_order(objects), rtol=0, atol=1e-9, err_msg=str(offset))


def test_touching_objects_of_two_classes_in_one_place_are_all_found() -> None:
    tiling, size_hw = Tiling(tile=256, overlap=0.2), (560, 610)
    objects = np.repeat(grid(40, 30, (3, 5), size_hw), 2, axis=0)
    labels = np.arange(len(objects)) % 2
    np.testing.assert_allclose(found(objects, tiling, size_hw, labels), in_order(objects, labels))


def test_objects_that_overlap_by_less_than_the_limit_are_kept_apart() -> None:
    # Squares of 40 every 20 pixels along x: IoU of neighbours 20 / 60 = 1/3.
    x = np.arange(0, 560, 20.0)
    objects = np.stack([x, np.full_like(x, 100), x + 40, np.full_like(x, 140)], axis=-1)
    np.testing.assert_allclose(found(objects, Tiling(tile=256, overlap=0.2), (256, 600)), in_order(objects))


@pytest.mark.parametrize("overlap", [0.05, 0.2, 0.5, 0.8])
def test_one_object_at_every_place_and_of_every_size(overlap: float) -> None:
    tiling, size_hw, random = Tiling(tile=128, overlap=overlap), (400, 330), np.random.default_rng(0)
    for number in range(40):
        corners = np.sort(random.uniform(0, (330, 400), (2, 2)), axis=0)
        if (corners[1] - corners[0]).min() >= 2:
            np.testing.assert_allclose(found([corners.ravel()], tiling, size_hw, seed=number)[:, :4], [corners.ravel()])


TILES = [(0, 0, 100, 100), (80, 0, 180, 100)]


def pair(one: ArrayLike, other: ArrayLike, scores: tuple[float, float] = (0.9, 0.6)) -> tuple[Boxes, Boxes]:
    """What becomes of a box of each of two tiles: [0, 100] and [80, 180] along x, in an image that is 300 wide."""
    boxes = np.array([one, other], np.float64)
    given = TileBoxes(
        boxes=boxes, scores=np.array(scores), labels=np.zeros(2, np.int64), tile_of=np.arange(2), tiles=np.array(TILES), size_hw=(100, 300)
    )
    merged, kept, _ = merge(given, iou=0.5)
    return merged, kept


def test_a_whole_box_is_preferred_to_a_part_of_it_with_a_better_score() -> None:
    boxes, scores = pair((85, 10, 100, 30), (85, 10, 115, 30), scores=(0.9, 0.3))
    assert (boxes.tolist(), scores.tolist()) == ([[85, 10, 115, 30]], [0.3])


def test_of_two_whole_boxes_the_better_one_stays() -> None:
    assert pair((82, 10, 97, 30), (82, 11, 97, 31))[0].tolist() == [[82, 10, 97, 30]]
    assert pair((82, 10, 97, 30), (82, 11, 97, 31), scores=(0.6, 0.9))[0].tolist() == [[82, 11, 97, 31]]


def test_a_box_that_is_whole_and_lies_in_a_large_one_is_no_part_of_it() -> None:
    # Whole in the first tile, and the other box does not go across the first tile's border.
    assert len(pair((85, 10, 95, 30), (82, 0, 98, 90))[0]) == 2
    # The other box goes across, but the small one does not reach the border.
    assert len(pair((85, 10, 95, 30), (82, 0, 150, 90))[0]) == 2
    # It does: the other box has what is missing.
    assert len(pair((85, 10, 100, 30), (82, 0, 150, 90))[0]) == 1


def test_both_parts_of_an_object_are_joined_and_have_the_better_score() -> None:
    boxes, scores = pair((20, 10, 100, 30), (80, 11, 160, 30), scores=(0.4, 0.7))
    assert (boxes.tolist(), scores.tolist()) == ([[20, 10, 160, 30]], [0.7])


def test_parts_that_do_not_agree_where_both_tiles_look_are_two_objects() -> None:
    # One row below the other: where both look, [80, 100], their IoU is 5 / 35.
    assert len(pair((20, 10, 100, 30), (80, 25, 160, 45))[0]) == 2
    # One ends where the other begins, and a border cuts neither.
    assert len(pair((20, 10, 90, 30), (90, 10, 160, 30))[0]) == 2
    # The first is cut, and the second begins to the right of its tile's border, so it has a left side of its own.
    assert len(pair((20, 10, 100, 30), (90, 10, 160, 30))[0]) == 2


def test_two_objects_that_other_borders_cut_are_not_joined() -> None:
    # The first is cut at its tile's far left, the second at its tile's far right; where both tiles look, [180, 200], their IoU is 13 / 20.
    given = TileBoxes(
        boxes=np.array([[100, 10, 195, 30], [182, 10, 280, 30]], np.float64),
        scores=np.array([0.9, 0.8]),
        labels=np.zeros(2, np.int64),
        tile_of=np.arange(2),
        tiles=np.array([(100, 0, 200, 100), (180, 0, 280, 100)], np.float64),
        size_hw=(100, 400),
    )
    assert merge(given, iou=0.5)[0].tolist() == given.boxes.tolist()


def test_boxes_of_one_tile_are_never_merged() -> None:
    given = TileBoxes(
        boxes=np.array([[10, 10, 50, 50], [12, 10, 50, 50]], np.float64),
        scores=np.array([0.9, 0.8]),
        labels=np.zeros(2, np.int64),
        tile_of=np.zeros(2, np.int64),
        tiles=np.array(TILES),
        size_hw=(100, 300),
    )
    assert len(merge(given, iou=0.5)[0]) == 2


def test_two_neighbours_may_not_both_be_the_same_box_of_another_tile() -> None:
    # The second tile gives two boxes that overlap by less than the limit; one of them is the first tile's, though both overlap it enough.
    boxes = np.array([[84, 10, 96, 30], [84, 8, 96, 26], [84, 15, 96, 34]], np.float64)
    given = TileBoxes(
        boxes=boxes,
        scores=np.array([0.9, 0.8, 0.7]),
        labels=np.zeros(3, np.int64),
        tile_of=np.array([0, 1, 1]),
        tiles=np.array(TILES),
        size_hw=(100, 300),
    )
    assert merge(given, iou=0.5)[0].tolist() == [boxes[0].tolist(), boxes[2].tolist()]


def test_many_boxes_are_compared_with_few() -> None:
    """As many comparisons as neighbours, whatever the size of the image: the work of 30,000 boxes must not grow with their square."""
    tiling, size_hw = Tiling(tile=800, overlap=0.2), (4600, 4600)
    objects = grid(30, 30, (3, 7), size_hw)
    given = seen(objects, tiling.windows(size_hw), size_hw)
    assert len(given.boxes) > 33_000
    assert len(merge(given, iou=0.5)[0]) == len(objects)


def test_boxes_of_two_classes_are_one_object_only_if_classes_do_not_matter() -> None:
    given = TileBoxes(
        boxes=np.array([[82, 10, 97, 30], [82, 11, 97, 31]], np.float64),
        scores=np.array([0.6, 0.9]),
        labels=np.array([4, 7]),
        tile_of=np.arange(2),
        tiles=np.array(TILES),
        size_hw=(100, 300),
    )
    assert merge(given, iou=0.5)[2].tolist() == [7, 4]
    assert merge(given, iou=0.5, class_agnostic=True)[2].tolist() == [7]


def test_nothing_gives_nothing() -> None:
    boxes, scores, labels = merge(seen(np.zeros((0, 4)), TILES, (100, 300)), iou=0.5)
    assert (boxes.shape, scores.shape, labels.shape) == ((0, 4), (0,), (0,))
