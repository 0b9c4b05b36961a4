import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lw_retinanet.data.records import Category
from lw_retinanet.data.video import VideoReader
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.result import Result
from lw_retinanet.errors import DiskFullError, InputError, OutputError
from lw_retinanet.jobs.predict_video import PredictedVideo, run_video_prediction

MakeVideo = Callable[..., Path]


class Counting(Detector):
    """Finds one box, which moves by two pixels with each image that it is shown."""

    def __init__(self, detector: Detector) -> None:
        vars(self).update(vars(detector))
        self.shown = 0

    def predict_arrays(self, images: Any, **_: Any) -> list[Result]:
        results = []
        for image in images:
            box = np.array([[2 * self.shown, 10, 2 * self.shown + 20, 40]], np.float32)
            scores, labels = np.array([0.5], np.float32), np.array([0])
            self.shown += 1
            results.append(
                Result(file=None, image=image, boxes=box, scores=scores, labels=labels, categories=(Category(id=5, name="fish"),))
            )
        return results


@pytest.fixture(scope="session")
def tiny() -> Detector:
    from lw_retinanet.config import ModelConfig
    from lw_retinanet.weights.create import create_model

    config = ModelConfig(backbone="mobilenet_v2", head_width=16, norm="batch")
    return Detector.of_model(create_model(config, num_classes=1, image_size=64, seed=0), (Category(id=5, name="fish"),))


def pixels(path: Path) -> list[NDArray[np.uint8]]:
    reader = VideoReader(path)
    frames = [frame.pixels for frame in reader.frames()]
    reader.close()
    return frames


def predict(detector: Detector, clip: Path, **options: Any) -> PredictedVideo:
    return run_video_prediction(Counting(detector), clip, **options)


@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
def test_a_video_with_boxes_and_a_line_for_each_frame(tiny: Detector, make_video: MakeVideo, tmp_path: Path, suffix: str) -> None:
    clip = make_video(tmp_path / "clip.mp4", size=(128, 96))
    out = tmp_path / "new" / f"found{suffix}"
    predicted = predict(tiny, clip, out=out, keep=True)
    assert (predicted.num_frames, predicted.num_looked_at, predicted.num_detections, predicted.num_missing) == (20, 20, 20, 0)
    lines = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert lines == list(predicted.images) == predicted.as_dict()["images"]
    for number, line in enumerate(lines):
        assert {key: line[key] for key in ("file", "width", "height", "frame")} == {
            "file": str(clip),
            "width": 128,
            "height": 96,
            "frame": number,
        }
        assert line["seconds"] == pytest.approx(number / 25, abs=0.002)
        x = 2 * number
        assert line["detections"] == [{"box": [x, 10, x + 20, 40], "score": 0.5, "label": 0, "name": "fish", "category_id": 5}]
    plain, drawn = pixels(clip), pixels(out)
    assert len(drawn) == 20
    differs = [np.abs(one.astype(int) - other).max() > 60 for one, other in zip(plain, drawn, strict=True)]
    assert all(differs)
    assert sorted(path.name for path in out.parent.iterdir()) == ["found.jsonl", out.name]


def test_boxes_stay_until_the_next_look(tiny: Detector, make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", frames=10, size=(128, 96))
    predicted = predict(tiny, clip, out=tmp_path / "every.avi", every=4)
    assert (predicted.num_frames, predicted.num_looked_at) == (10, 3)
    lines = [json.loads(line) for line in (tmp_path / "every.jsonl").read_text().splitlines()]
    assert [(line["frame"], line["detections"][0]["box"][0]) for line in lines] == [(0, 0), (4, 2), (8, 4)]
    # On grey, green less blue tells the orange of a box's frame, which is outside the box; the right edge is at 20, 22 and 24.
    drawn = pixels(tmp_path / "every.avi")
    edges = [int(np.flatnonzero((one[30, :, 1].astype(int) - one[30, :, 2]) > 60).max()) for one in drawn]
    assert edges[0] == edges[3] < edges[4] == edges[7] < edges[8] == edges[9]
    assert 20 <= edges[0] < edges[9] < 28


def test_nothing_is_written_without_out(tiny: Detector, make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    predicted = predict(tiny, clip, every=6, keep=True)
    assert [image["frame"] for image in predicted.images] == [0, 6, 12, 18]
    assert (predicted.video, predicted.lines, predicted.num_frames) == (None, None, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_was_there_stays_when_the_work_ends_early(
    tiny: Detector, make_video: MakeVideo, tmp_path: Path, error: type[BaseException] | OSError
) -> None:
    clip, out = make_video(tmp_path / "clip.mp4"), tmp_path / "old.webm"
    out.write_bytes(b"old video")
    out.with_suffix(".jsonl").write_bytes(b"old lines")

    def stop_after_five(items: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        for number, item in enumerate(items):
            if number == 5:
                raise error
            yield item

    with pytest.raises(DiskFullError if isinstance(error, OSError) else KeyboardInterrupt):
        predict(tiny, clip, out=out, progress=stop_after_five)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("in_background")]
    assert out.read_bytes() == b"old video"
    assert out.with_suffix(".jsonl").read_bytes() == b"old lines"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4", "old.jsonl", "old.webm"]


def test_the_video_itself_is_never_written_over(tiny: Detector, make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    os.link(clip, tmp_path / "second name.mp4")
    (tmp_path / "link.mp4").symlink_to(clip)
    before = clip.read_bytes()
    for out in (clip, tmp_path / "sub" / ".." / "clip.mp4", tmp_path / "second name.mp4", tmp_path / "link.mp4"):
        with pytest.raises(InputError, match="is the video that is read and would be overwritten; choose another name"):
            predict(tiny, clip, out=out)
    assert clip.read_bytes() == before


def test_names_that_cannot_be_written(tiny: Detector, make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4")
    (tmp_path / "taken.jsonl").mkdir()
    (tmp_path / "file").write_bytes(b"")
    for out, part in (
        ("a.gif", r"must end in one of \.webm, \.mp4"),
        ("taken.webm", "is a folder"),
        ("file/a.webm", "choose another output folder"),
    ):
        with pytest.raises(InputError, match=part):
            predict(tiny, clip, out=tmp_path / out)


def test_a_video_that_cannot_be_read_again_is_not_left_behind(tiny: Detector, make_video: MakeVideo, tmp_path: Path) -> None:
    clip = make_video(tmp_path / "clip.mp4", size=(2, 2), frames=2)  # too small for VP8
    with pytest.raises(OutputError, match=r"small\.webm: the video could not be written whole; .* try another of .*\.mp4"):
        predict(tiny, clip, out=tmp_path / "small.webm")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    predict(tiny, clip, out=tmp_path / "small.mp4")
    assert len(pixels(tmp_path / "small.mp4")) == 2
