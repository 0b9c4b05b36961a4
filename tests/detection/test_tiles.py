from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lw_retinanet.conventions import OutputRule
from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result, TiledResult
from lw_retinanet.detection.tiles import ArraySource, detect_tiled
from lw_retinanet.detection.tiling import Tiling
from lw_retinanet.errors import InputError

CATEGORIES = (Category(id=3, name="green"), Category(id=5, name="red"))
RECTANGLES = np.array([[10, 20, 50, 60], [50, 20, 90, 60], [100, 90, 160, 110], [180, 10, 270, 40], [0, 0, 8, 8], [290, 190, 300, 200]])


def painted(size_hw: tuple[int, int] = (200, 300)) -> NDArray[np.uint8]:
    """Rectangle number k has the value k + 1 in the green channel, or in the red one if k is odd."""
    image = np.zeros((*size_hw, 3), np.uint8)
    for number, (x1, y1, x2, y2) in enumerate(RECTANGLES):
        image[y1:y2, x1:x2, 0 if number % 2 else 1] = number + 1
    return image


def exact(images: Iterator[NDArray[np.uint8]]) -> Iterator[Result]:
    """A detector that looks at pixels alone, and is the less sure the less it sees."""
    for image in images:
        boxes, labels = [], []
        for number in range(len(RECTANGLES)):
            rows, columns = np.nonzero(image[..., 0 if number % 2 else 1] == number + 1)
            if len(rows):
                boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                labels.append(number % 2)
        table = np.array(boxes, np.float32).reshape(-1, 4)
        scores = np.minimum((table[:, 2:] - table[:, :2]).prod(axis=1) / 5000, 0.99)
        yield Result(file=None, image=image, boxes=table, scores=scores, labels=np.array(labels, np.int64), categories=CATEGORIES)


def tiled(image: NDArray[np.uint8], tiling: Tiling) -> TiledResult:
    return detect_tiled(ArraySource(image), tiling, exact, rule=OutputRule(), categories=CATEGORIES, file="a.png")


def test_tiles_cover_the_image_and_the_last_ones_are_moved_inward() -> None:
    windows = Tiling(tile=128, overlap=0.25).windows((128, 300))
    assert windows == [(0, 0, 128, 128), (96, 0, 224, 128), (172, 0, 300, 128)]
    assert Tiling(tile=400, overlap=0.25).windows((128, 300)) == [(0, 0, 300, 128)]
    assert Tiling(tile=128, overlap=0).windows((130, 128)) == [(0, 0, 128, 128), (0, 2, 128, 130)]
    for side in range(128, 400):  # no gap, no tile twice, none without need
        starts = [window[0] for window in Tiling(tile=128, overlap=0.1).windows((128, side))]
        assert starts[0] == 0
        assert starts[-1] + 128 == side
        assert all(0 < later - start <= 115 for start, later in pairwise(starts))


@pytest.mark.parametrize("overlap", [0, 0.2, 0.33, 0.75])
def test_objects_are_found_where_they_are(overlap: float) -> None:
    result = tiled(painted(), Tiling(tile=128, overlap=overlap))
    if overlap == 0:  # nothing shows that two parts belong together
        assert len(result) > len(RECTANGLES)
        return
    order = np.lexsort(result.boxes.T)
    np.testing.assert_array_equal(result.boxes[order], RECTANGLES[np.lexsort(RECTANGLES.T)])
    assert {tuple(box): int(label) for box, label in zip(result.boxes.tolist(), result.labels, strict=True)} == {
        tuple(box): number % 2 for number, box in enumerate(RECTANGLES.tolist())
    }
    assert (np.diff(result.scores) <= 0).all()


def test_a_look_at_the_whole_image_finds_what_is_larger_than_a_tile() -> None:
    image = np.zeros((400, 500, 3), np.uint8)
    image[30:380, 40:470, 1] = 1
    image[5:20, 5:25, 0] = 2

    def cautious(images: Iterator[NDArray[np.uint8]]) -> Iterator[Result]:
        """Leaves out what the border of an image may have cut."""
        for found in exact(images):
            height, width = found.size_hw
            inner = (found.boxes[:, :2] > 0).all(axis=1) & (found.boxes[:, 2:] < (width, height)).all(axis=1)
            yield replace(found, boxes=found.boxes[inner], scores=found.scores[inner], labels=found.labels[inner])

    for whole_image, expected in ((False, [[5, 5, 25, 20]]), (True, [[40, 30, 470, 380], [5, 5, 25, 20]])):
        tiling = Tiling(tile=128, overlap=0.2, whole_image=whole_image)
        result = detect_tiled(ArraySource(image), tiling, cautious, rule=OutputRule(), categories=CATEGORIES)
        assert result.boxes.tolist() == expected
    assert result.num_tiles == 20  # the whole image is not counted


def test_small_objects_are_taken_from_the_tiles_even_if_the_whole_image_is_looked_at() -> None:
    def unsharp(images: Iterator[NDArray[np.uint8]]) -> Iterator[Result]:
        """In a large image, all rectangles are one."""
        for found in exact(images):
            if found.image.shape[1] > 128:
                around = np.concatenate([found.boxes[:, :2].min(axis=0), found.boxes[:, 2:].min(axis=0)])[None]
                found = replace(found, boxes=around, scores=np.ones(1, np.float32), labels=np.zeros(1, np.int64))
            yield found

    image = painted()
    result = detect_tiled(
        ArraySource(image), Tiling(tile=128, overlap=0.75, whole_image=True), unsharp, rule=OutputRule(), categories=CATEGORIES
    )
    assert len(result) == len(RECTANGLES)


def test_a_tile_larger_than_the_image_changes_nothing(detector: Detector) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (plain,), (result,) = detector.predict(image), detector.predict(image, tile=128)
    assert len(plain)
    np.testing.assert_array_equal(result.boxes, plain.boxes)
    np.testing.assert_array_equal(result.scores, plain.scores)
    np.testing.assert_array_equal(result.labels, plain.labels)
    assert result.to_dict() == {**plain.to_dict(), "tiles": 1, "empty_tiles": 0}


def test_each_tile_is_an_image_of_its_own_whatever_the_batch(detector: Detector, tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    one, many = (detector.predict(tmp_path / "a.png", tile=128, overlap=0.25, batch_size=size, head="light")[0] for size in (1, 4))
    assert one.to_dict()["tiles"] == 6
    assert one.file == str(tmp_path / "a.png")
    np.testing.assert_allclose(one.boxes, many.boxes, rtol=0, atol=0.01)
    # What is in the middle of the first tile, far from all others, is what that tile alone gives.
    (alone,) = detector.predict(image[:128, :128])
    inner = alone.boxes[(alone.boxes[:, 2:] < 70).all(axis=1)]
    assert len(inner)
    np.testing.assert_allclose(one.boxes[(one.boxes[:, 2:] < 70).all(axis=1)], inner, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 127}, "tile must be at least 128 pixels, .* got 127"),
        ({"tile": 128, "overlap": 1.0}, r"overlap must be from 0 to 0\.9, .* got 1\.0"),
        ({"tile": 128, "overlap": -0.1}, r"got -0\.1"),
        ({"tile": 128, "overlap": float("nan")}, "got nan"),
        ({"tile": 128, "value_range": (5, 5)}, "value_range must be a lower and a higher number, got 5,5"),
        ({"tile": 128, "value_range": (0, float("inf"))}, "got 0,inf"),
        ({"tile": 128, "value_range": (3,)}, "got 3"),
        ({"bands": (1, 2, 3)}, "bands is for images that are cut into tiles; give tile, too"),
        ({"whole_image": True}, "whole_image is for images"),
        ({"value_range": (0, 1)}, "value_range is for images"),
    ],
)
def test_tilings_that_mean_nothing_are_refused(detector: Detector, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector.predict(np.zeros((200, 300, 3), np.uint8), **arguments)
