import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lw_retinanet.tradeoff.label_places import place_labels

FRAME = (0.0, 0.0, 360.0, 260.0)
RADIUS = 5.0
coordinates = st.tuples(st.floats(20, 340), st.floats(20, 240))


def apart(a: np.ndarray[tuple[int], np.dtype[np.float64]], b: np.ndarray[tuple[int], np.dtype[np.float64]]) -> bool:
    """Boxes (x, y, x, y) that do not overlap."""
    return bool((a[2:] <= b[:2]).any() or (b[2:] <= a[:2]).any())


@settings(deadline=None, max_examples=15)
@given(points=st.lists(coordinates, min_size=1, max_size=20), is_one_place=st.booleans())
def test_no_name_covers_a_point_or_another_name(points: list[tuple[float, float]], is_one_place: bool) -> None:
    anchors = np.array([points[0]] * len(points) if is_one_place else points)
    sizes = np.array([[60.0 + 5 * (number % 7), 11.0] for number in range(len(points))])
    corners = place_labels(anchors, sizes, FRAME, radius=RADIUS)
    boxes = np.concatenate([corners, corners + sizes], axis=1)
    assert (boxes[:, :2] >= FRAME[:2]).all()
    assert (boxes[:, 2:] <= FRAME[2:]).all()
    for number, box in enumerate(boxes):
        assert all(apart(box, other) for other in boxes[number + 1 :])
        assert all(apart(box, np.concatenate([anchor - RADIUS, anchor + RADIUS])) for anchor in anchors)


def test_a_lonely_name_is_beside_its_point() -> None:
    (corner,) = place_labels(np.array([[100.0, 100.0]]), np.array([[50.0, 10.0]]), FRAME, radius=RADIUS)
    gap = np.linalg.norm(np.clip([100, 100], corner, corner + np.array([50, 10])) - [100, 100])
    assert RADIUS < gap < RADIUS + 4


def test_a_name_gives_way_to_a_line() -> None:
    # A bar runs from the point to the right, another one to the left: the name goes above or below them.
    bars = [(100.0, 99.0, 300.0, 101.0), (10.0, 99.0, 100.0, 101.0)]
    (corner,) = place_labels(np.array([[100.0, 100.0]]), np.array([[50.0, 10.0]]), FRAME, radius=RADIUS, marks=bars)
    assert corner[1] > 101 or corner[1] + 10 < 99


def test_a_point_at_the_edge_keeps_its_name_inside() -> None:
    (corner,) = place_labels(np.array([[358.0, 258.0]]), np.array([[90.0, 10.0]]), FRAME, radius=RADIUS)
    assert corner[0] + 90 <= 360
    assert corner[1] + 10 <= 260
