import torch

from lw_retinanet.exporting.matches import Detected, match_lists


def line_of(number: int, *, start: float = 0.9, step: float = 0.01, shift: float = 0.0) -> Detected:
    """Boxes apart from one another, scores falling."""
    places = torch.arange(number, dtype=torch.float32)
    boxes = torch.stack([places * 10 + shift, places * 0, places * 10 + 8 + shift, places * 0 + 8], dim=1)
    return Detected(boxes, start - step * places, torch.zeros(number, dtype=torch.int64))


def cut(detected: Detected, number: int) -> Detected:
    return Detected(*(values[:number] for values in detected))


def missing(wanted: Detected, given: Detected, *, most: int = 10, threshold: float = 0.0) -> int:
    return match_lists(wanted, given, most=most, box=0.05, score=1e-4, threshold=threshold).missing


def test_what_is_the_same_has_no_distance_but_its_own() -> None:
    found = match_lists(line_of(5), line_of(5, shift=0.02), most=10, box=0.05, score=1e-4)
    assert found.missing == 0
    assert 0.019 < found.box < 0.021
    assert missing(line_of(5), line_of(5, shift=0.06)) == 10  # of either


def test_a_list_that_ends_early_misses_all_behind_its_end() -> None:
    # It could have held more, so its end says nothing about what comes next, however many the other one holds.
    full = line_of(10)
    assert [missing(full, cut(full, number)) for number in (0, 1, 5, 9)] == [9, 8, 4, 0]  # the last of a full list may go either way
    assert missing(cut(full, 5), cut(full, 2)) == 3


def test_behind_the_end_of_a_full_list_nothing_is_missed() -> None:
    # Both hold ten; the one begins a place later, so that each has one that the other lacks.
    longer = line_of(11)
    one, other = cut(longer, 10), Detected(*(values[1:] for values in longer))
    assert missing(one, other) == 1  # the best of the first
    assert missing(other, one) == 1


def test_near_the_threshold_it_may_fall_either_way() -> None:
    detected = line_of(3, start=0.05005, step=0.00002)
    assert missing(detected, cut(detected, 0), threshold=0.05) == 0
    assert missing(detected, cut(detected, 0), threshold=0.04) == 3


def test_another_class_is_another_detection() -> None:
    other = line_of(4)._replace(labels=torch.ones(4, dtype=torch.int64))
    assert missing(line_of(4), other) == 8


def test_what_nms_keeps_by_a_rounding_error_may_be_there_or_not() -> None:
    # IoU of the second box with the first: 50 / 100; of the third: 60 / 100.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5.0001], [0, 0, 10, 6]])
    both = Detected(boxes[:2], torch.tensor([0.9, 0.5]), torch.zeros(2, dtype=torch.int64))
    for one, other in ((both, cut(both, 1)), (cut(both, 1), both)):
        assert match_lists(one, other, most=10, box=0.05, score=1e-4, nms_iou=0.5).missing == 0
        assert match_lists(one, other, most=10, box=0.05, score=1e-4).missing == 1
    certain = [
        both._replace(boxes=boxes[[0, 2]]),  # another overlap
        both._replace(labels=torch.tensor([0, 1])),  # with a box of another class
    ]
    for one in certain:
        assert match_lists(one, cut(one, 1), most=10, box=0.05, score=1e-4, nms_iou=0.5).missing == 1
    # The better one of the two does not depend on it.
    assert match_lists(both, Detected(*(values[1:] for values in both)), most=10, box=0.05, score=1e-4, nms_iou=0.5).missing == 1
