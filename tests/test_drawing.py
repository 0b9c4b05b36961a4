import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lw_retinanet.drawing import class_colour, contact_sheet, draw_boxes

NAMES = ("disc", "square", "a class with a name much longer than any image is wide")


def grey(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 128, np.uint8)


def test_the_frame_lies_around_the_box_and_leaves_the_object_visible() -> None:
    image = grey(200, 200)
    drawn = draw_boxes(image, [[50, 60, 58, 70]], [0], NAMES)
    # 200 pixels: lines of one pixel, on columns 49 and 58 and rows 59 and 70, just outside of the box
    colour = class_colour(0)
    for row, column in ((59, 50), (70, 57), (60, 49), (69, 58)):
        assert tuple(drawn[row, column]) == colour
    np.testing.assert_array_equal(drawn[60:70, 50:58], image[60:70, 50:58])
    assert (image == 128).all()  # the input is not written to
    assert drawn.shape == image.shape


def test_the_tag_does_not_cover_a_small_neighbour() -> None:
    # The usual place, above the box, is where the small object is.
    boxes = [[60, 80, 140, 140], [62, 66, 74, 76]]
    drawn = draw_boxes(grey(200, 200), boxes, [0, 1], NAMES)
    assert (drawn[66:76, 62:74] == 128).all()


def test_a_tag_at_the_border_moves_inside() -> None:
    drawn = draw_boxes(grey(120, 120), [[112, 0, 120, 8]], [1], NAMES, scores=[0.5])
    # text needs some 50 x 10 pixels of the tag's colour, all of which must have found room
    assert (drawn == class_colour(1)).all(axis=2).sum() > 250


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    boxes=st.lists(st.lists(st.floats(-200, 200) | st.sampled_from([np.nan, np.inf, -np.inf]), min_size=4, max_size=4), max_size=4),
    zoom=st.integers(1, 3),
)
def test_any_boxes_on_any_image(height: int, width: int, boxes: list[list[float]], zoom: int) -> None:
    count = len(boxes)
    crowd = [index % 2 == 0 for index in range(count)]
    drawn = draw_boxes(grey(height, width), boxes, list(range(count)), NAMES, scores=[0.5] * count, crowd=crowd, zoom=zoom)
    assert drawn.shape == (zoom * height, zoom * width, 3)


def test_boxes_that_cannot_be_seen_change_nothing() -> None:
    image = grey(40, 40)
    hidden: list[list[float]] = [[-30, -30, -10, -10], [50, 5, 60, 9], [np.nan, 0, 9, 9]]
    np.testing.assert_array_equal(draw_boxes(image, hidden, [0, 1, 2], NAMES), image)
    np.testing.assert_array_equal(draw_boxes(image, [], [], NAMES), image)


def test_crowd_frames_are_dashed() -> None:
    whole, dashed = (draw_boxes(grey(100, 100), [[10, 50, 90, 90]], [0], NAMES, crowd=[crowd]) for crowd in (False, True))
    colour = class_colour(0)
    row = 90  # the lower line, away from the tag above
    assert (whole[row, 10:90] == colour).all()
    share = (dashed[row, 10:90] == colour).all(axis=1).mean()
    assert 0.3 < share < 0.7


def test_colours_of_classes_differ() -> None:
    colours = [class_colour(label) for label in range(21)]
    assert len(set(colours)) == 21
    assert all(0 <= channel <= 255 for colour in colours for channel in colour)


@pytest.mark.parametrize(("labels", "scores"), [([0, 1], None), ([0], [0.1, 0.2])])
def test_counts_that_differ_are_refused(labels: list[int], scores: list[float] | None) -> None:
    with pytest.raises(ValueError, match="for 1 boxes"):
        draw_boxes(grey(9, 9), [[1, 1, 3, 3]], labels, NAMES, scores=scores)


def test_a_float_image_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_boxes(np.zeros((4, 4, 3)), [], [], NAMES)  # type: ignore[arg-type]


def test_contact_sheet_places_every_image_in_its_cell() -> None:
    # width 800: margins 10, two columns of (800 - 3 * 10) / 2 = 385; the second row holds the third image
    colours = ((200, 0, 0), (0, 200, 0), (0, 0, 200))
    images = [np.full((50, 100, 3), colour, np.uint8) for colour in colours]
    sheet = contact_sheet(images, columns=2, width=800)
    row_height = round(385 / 2)
    assert sheet.shape == (10 + 2 * (row_height + 10), 800, 3)
    for colour, (row, column) in zip(colours, ((60, 100), (60, 500), (300, 100)), strict=True):
        assert tuple(sheet[row, column]) == colour
    assert (sheet[300, 500] == 255).all()
    assert (sheet[:10] == 255).all()


def test_contact_sheet_with_titles_and_a_tall_image() -> None:
    images = [grey(400, 20), grey(20, 400)]
    plain = contact_sheet(images, columns=2, width=400)
    titled = contact_sheet(images, columns=2, titles=["x" * 200, "two\nlines"], width=400)
    assert titled.shape[0] > plain.shape[0]
    assert titled.shape[1] == 400
    below = titled[plain.shape[0] - 5 :]
    assert (below[:, 200 - 2 : 200 + 2] == 255).all()  # the long title ends with its cell


def test_contact_sheet_without_images_or_with_missing_titles() -> None:
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([])
    with pytest.raises(ValueError, match="1 titles for 2"):
        contact_sheet([grey(4, 4)] * 2, titles=["a"])
