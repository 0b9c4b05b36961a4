import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lw_retinanet.data.video import VideoReader
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.detection.video import watch
from lw_retinanet.errors import InputError, LwRetinaNetError

MakeVideo = Callable[..., Path]


def threads() -> int:
    """Threads that produce items in the background."""
    return sum(thread.name.startswith("in_background") for thread in threading.enumerate())


@pytest.fixture
def clip(make_video: MakeVideo, tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_stream_gives_what_predict_gives_for_its_frames(detector: Detector, clip: Path, batch_size: int | None) -> None:
    reader = VideoReader(clip)
    expected = detector.predict([frame.pixels for frame in reader.frames()], score=0.1)
    reader.close()
    found = list(detector.stream(clip, score=0.1, batch_size=batch_size))
    assert [(result.frame, result.file) for result in found] == [(number, str(clip)) for number in range(20)]
    for one, other in zip(found, expected, strict=True):
        assert len(one)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)  # a batch of another size rounds differently
    plain = found[7].to_dict()
    assert list(plain) == ["file", "width", "height", "detections", "frame", "seconds"]
    assert (plain["frame"], plain["seconds"]) == (7, 0.28)


def test_every_eighth_frame_alone_is_looked_at(detector: Detector, clip: Path) -> None:
    assert [result.frame for result in detector.stream(clip, every=8)] == [0, 8, 16]


def test_the_rest_comes_without_detections_and_in_order(detector: Detector, clip: Path) -> None:
    sizes: list[int] = []

    def detect(images: Sequence[NDArray[np.uint8]]) -> list[Result]:
        sizes.append(len(images))
        return detector.predict_arrays(images)

    pairs = list(watch(VideoReader(clip), detect, every=3, batch_size=4, with_rest=True))
    assert [frame.number for frame, _ in pairs] == list(range(20))
    assert [result.frame for _, result in pairs if result] == [0, 3, 6, 9, 12, 15, 18]
    assert all(result is None or result.frame == frame.number for frame, result in pairs)
    assert sizes == [2, 1, 1, 2, 1]  # of 0-3, 4-7, 8-11, 12-15, 16-19


def test_closing_a_stream_ends_its_thread_and_lets_go_of_the_file(detector: Detector, clip: Path) -> None:
    stream = detector.stream(clip)
    next(stream)
    assert threads() == 1
    stream.close()
    assert threads() == 0
    for number, _ in enumerate(detector.stream(clip)):
        if number == 3:
            break  # the generator is dropped here
    assert threads() == 0


def test_bad_arguments_are_refused_at_the_call(detector: Detector, clip: Path) -> None:
    for options in ({"score": 1.5}, {"head": "ful"}, {"every": 0}):
        with pytest.raises(LwRetinaNetError):
            detector.stream(clip, **options)
    with pytest.raises(InputError, match="No such file"):
        detector.stream(clip.with_name("gone.mp4"))
