import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from lw_retinanet.data.images import decode
from lw_retinanet.data.records import Category, Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.evaluation.detect_records import detect_records, detect_records_together

RED, GREEN, VIOLET = Category(id=0, name="red"), Category(id=10, name="green"), Category(id=3, name="violet")
Asked = list[tuple[float, list[tuple[int, ...]]]]


class Always:
    """Finds a square of a given side in every image, once for each class, and writes down when it was asked."""

    def __init__(self, side: float, categories: Sequence[Category], asked: Asked) -> None:
        self.side, self.categories, self.asked = side, tuple(categories), asked

    def predict_arrays(self, images: Sequence[NDArray[np.uint8]], **_: Any) -> list[Result]:
        self.asked.append((self.side, [image.shape[:2] for image in images]))
        count = len(self.categories)
        boxes = np.tile(np.array([0, 0, self.side, self.side], np.float32), (count, 1))
        scores, labels = np.full(count, 0.5, np.float32), np.arange(count)
        return [Result(file=None, image=image, boxes=boxes, scores=scores, labels=labels, categories=self.categories) for image in images]


def detector(side: float, categories: Sequence[Category], asked: Asked | None = None) -> Detector:
    return cast(Detector, Always(side, categories, [] if asked is None else asked))


@pytest.fixture
def records(draw_records: Callable[..., Records], tmp_path: Path) -> Records:
    """Of three shapes, portrait between landscape ones, so that the order of the batches is not that of the rows."""
    return draw_records(tmp_path, [((20, 30), [(1, 1, 5, 5, 0)]), ((40, 20), []), ((24, 36), [(1, 1, 5, 5, 1)])])


def test_each_detector_gets_the_table_that_it_has_alone(records: Records) -> None:
    both = (detector(4.0, [GREEN, VIOLET, RED]), detector(8.0, [RED]))
    together = detect_records_together(both, records, batch_size=2)
    for one, table in zip(both, together, strict=True):
        alone = detect_records(one, records, batch_size=2)
        for column in ("image", "boxes_xywh", "scores", "labels"):
            np.testing.assert_array_equal(getattr(table, column), getattr(alone, column))
    # Violet is no class of the data set, and labels are those of the data set.
    assert sorted(zip(together[0].image.tolist(), together[0].labels.tolist(), strict=True)) == [(i, k) for i in range(3) for k in (0, 1)]
    assert set(together[0].boxes_xywh[:, 2].tolist()) == {4.0}
    assert (together[1].image.size, set(together[1].boxes_xywh[:, 2].tolist())) == (3, {8.0})


def test_every_image_is_decoded_once_and_shown_to_all_before_the_next(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(path: Path, *, max_pixels: int | None = None) -> NDArray[np.uint8]:
        opened.append(path.name)
        return decode(path, max_pixels=max_pixels)

    monkeypatch.setattr("lw_retinanet.data.records.decode", counted)
    asked: Asked = []
    shown: list[int] = []

    def progress(batches: Iterable[Any], total: int, _: str) -> Iterable[Any]:
        shown.append(total)
        return batches

    detect_records_together([detector(4.0, [RED], asked), detector(8.0, [RED], asked)], records, progress=progress)
    assert sorted(opened) == sorted(records.file_names)
    assert asked == [(side, [size_hw]) for size_hw in ((20, 30), (24, 36), (40, 20)) for side in (4.0, 8.0)]
    assert shown == [3]


def test_what_holds_for_all_is_said_once(records: Records, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        detect_records_together([detector(4.0, [RED]), detector(8.0, [RED]), detector(8.0, [GREEN])], records)
    assert [message.count("'green'") for message in caplog.messages] == [1, 0]


def test_no_detector_is_a_mistake_of_the_caller(records: Records) -> None:
    with pytest.raises(ValueError, match="at least one detector"):
        detect_records_together([], records)


def test_images_of_one_shape_come_together(draw_records: Callable[..., Records], tmp_path: Path) -> None:
    sizes: list[tuple[int, int]] = [(10, 40), (20, 30), (20, 80), (40, 60), (30, 20)]
    records = draw_records(tmp_path, [(size_hw, [(1, 1, 5, 5, 0)]) for size_hw in sizes])
    asked: Asked = []
    table = detect_records(detector(4.0, [RED], asked), records, batch_size=2)
    assert [shapes for _, shapes in asked] == [[(10, 40), (20, 80)], [(20, 30), (40, 60)], [(30, 20)]]
    assert sorted(table.image.tolist()) == [0, 1, 2, 3, 4]
