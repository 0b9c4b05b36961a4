"""Predict on a video: the same video with boxes, and a line of detections for each frame."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.video import Frame, VideoReader, VideoWriter
from lw_retinanet.data.video_names import CODECS
from lw_retinanet.detection.detector import Detector
from lw_retinanet.detection.display_score import DISPLAY_SCORE, SmallestScore
from lw_retinanet.detection.pipeline import in_background
from lw_retinanet.detection.video import FrameResult, video_batch, watch
from lw_retinanet.devices import Precision
from lw_retinanet.errors import InputError, OutputError
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.files import output_folder, replacing
from lw_retinanet.progress import Progress, tracked

LINES_SUFFIX = ".jsonl"
_FORMATS = ", ".join(CODECS)
_AHEAD = 4  # detected frames that wait to be drawn


@dataclass(frozen=True, kw_only=True)
class PredictedVideo:
    """What was found in a video.

    Args:
        images: A dictionary for each frame that was looked at, if they were to be kept.
        video: The video with boxes; None if nothing was written.
        lines: The file with a line for each frame that was looked at; None if nothing was written.
        num_frames: Frames that were read.
        num_looked_at: Frames that went through the network.
        num_missing: Frames that the file states and that could not be read.
        num_detections: Objects in all frames that were looked at.
        per_second: Frames that were read for each second that it took.
    """

    images: tuple[dict[str, Any], ...]
    video: Path | None
    lines: Path | None
    num_frames: int
    num_looked_at: int
    num_missing: int
    num_detections: int
    per_second: float

    def as_dict(self) -> dict[str, Any]:
        """``{"images": [...], "frames", "missing", "per_second"}``."""
        return {"images": list(self.images), "frames": self.num_frames, "missing": self.num_missing, "per_second": self.per_second}


def run_video_prediction(
    model: str | Path | Detector,
    source: str | Path,
    *,
    out: Path | None = None,
    every: int = 1,
    score: SmallestScore | None = DISPLAY_SCORE,
    head: str | None = None,
    precision: Precision = "fp32",
    device: str = "auto",
    batch_size: int | None = None,
    max_pixels: int = MAX_PIXELS,
    output: Mapping[str, Any] | None = None,
    keep: bool = False,
    progress: Progress | None = None,
) -> PredictedVideo:
    """Detect in a video. Reading, the network, and drawing with writing run at the same time.

    Both files appear when the last frame is done; whatever ends the work before, those that were there stay as they were.

    Args:
        model, score, head, precision, device, max_pixels: As for :func:`lw_retinanet.predict`.
        source: The video.
        out: The video to write, see ``CODECS`` for its formats; ``OUT.jsonl`` goes beside it. None writes nothing.
        every: Look at every so many frames; those between are drawn with the boxes of the last one that was looked at.
        batch_size: As for :meth:`lw_retinanet.Detector.stream`.
        output: As for :func:`~lw_retinanet.jobs.predict.run_prediction`.
        keep: Fill ``images`` of the answer.
        progress: Shows how far it is.

    Raises:
        InputError: If the source is no video that can be read, or ``out`` is the source itself.
        OutputError, MissingExtraError: If ``out`` cannot be written, or OpenCV is not installed.
    """
    if out is not None:
        _require_writable(out, Path(source))
    reader = VideoReader(source, max_pixels=max_pixels)
    detector = open_detector(model, head=head, device=device, precision=precision).with_output(**(output or {}))
    number = video_batch(detector.device, batch_size, is_live=False)
    detect = partial(detector.predict_arrays, score=score)
    watched = in_background(watch(reader, detect, every=every, batch_size=number, with_rest=out is not None), number=_AHEAD)
    images: list[dict[str, Any]] = []
    num_looked_at = num_detections = 0
    started = time.perf_counter()
    with closing(watched), nullcontext() if out is None else _writing(out, reader.rate) as write:
        for frame, result in tracked(watched, reader.num_frames, "predict", progress):
            if write is not None:
                write(frame, result)
            if result is not None:
                num_looked_at += 1
                num_detections += len(result)
                images += [result.to_dict()] if keep else []
    return PredictedVideo(
        images=tuple(images),
        video=out,
        lines=out and out.with_suffix(LINES_SUFFIX),
        num_frames=reader.num_read,
        num_looked_at=num_looked_at,
        num_missing=reader.num_missing,
        num_detections=num_detections,
        per_second=reader.num_read / (time.perf_counter() - started),
    )


def _require_writable(out: Path, source: Path) -> None:
    if out.suffix.lower() not in CODECS:
        raise InputError(f"{out}: a video's name must end in one of {_FORMATS}")
    if os.path.realpath(out) == os.path.realpath(source) or (out.exists() and source.exists() and out.samefile(source)):
        raise InputError(f"{out} is the video that is read and would be overwritten; choose another name")
    for path in (out, out.with_suffix(LINES_SUFFIX)):
        if path.is_dir():
            raise InputError(f"{path} is a folder, so no file of this name can be written; choose another name")
    output_folder(out.parent)


@contextmanager
def _writing(out: Path, rate: float) -> Iterator[Callable[[Frame, FrameResult | None], None]]:
    """A function that draws a frame into the video ``out`` and writes its line. Both files get their names at the end."""
    writer: VideoWriter | None = None
    last: FrameResult | None = None

    def write(frame: Frame, result: FrameResult | None) -> None:
        nonlocal writer, last
        if result is not None:
            file.write(json.dumps(result.to_dict()) + "\n")
            last = result
        shown = frame.pixels if last is None else replace(last, image=frame.pixels).plot()
        if writer is None:
            writer = VideoWriter(video, rate=rate, size_hw=(shown.shape[0], shown.shape[1]))
        writer.add(shown, frame.seconds)

    with replacing(out) as video, replacing(out.with_suffix(LINES_SUFFIX)) as lines, lines.open("w", encoding="utf-8") as file:
        try:
            yield write
        finally:
            is_whole = writer is None or writer.close()
        if not is_whole:
            raise OutputError(
                f"{out}: the video could not be written whole; check the free space of the disk, or try another of {_FORMATS}"
            )
