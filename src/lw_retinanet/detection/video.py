"""Detection in the frames of a video: reading them overlaps with the network."""

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lw_retinanet.data.video import Frame, VideoReader
from lw_retinanet.detection.pipeline import in_background
from lw_retinanet.detection.result import Result

Detect = Callable[[Sequence[NDArray[np.uint8]]], list[Result]]
GPU_BATCH = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameResult(Result):
    """The detections of one frame of a video.

    Args:
        frame: Number of the frame, from 0.
        seconds: Its time from the start of the video, by the container's timestamps.
    """

    frame: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as those of an image, with ``frame`` and ``seconds``."""
        return {**super().to_dict(), "frame": self.frame, "seconds": round(self.seconds, 6)}


def video_batch(device: torch.device, batch_size: int | None, *, is_live: bool) -> int:
    """Frames that go through the network together: a GPU gains by several, which a camera's viewer would have to wait for."""
    return batch_size or (GPU_BATCH if device.type == "cuda" and not is_live else 1)


def watch(
    reader: VideoReader, detect: Detect, *, every: int = 1, batch_size: int = 1, with_rest: bool = False
) -> Generator[tuple[Frame, FrameResult | None], None, None]:
    """Yield frames in order, each with its detections. A thread reads ahead; the reader is closed at the end.

    Args:
        reader: The video.
        detect: Gives one result for each image.
        every: Detect in frames 0, ``every``, ``2 * every``, ...
        batch_size: Frames that are taken together.
        with_rest: Yield the frames between those as well, with None in place of detections.
    """
    try:
        with closing(in_background(reader.frames(every=1 if with_rest else every), number=2 * batch_size)) as frames:
            while group := list(islice(frames, batch_size)):
                chosen = [frame for frame in group if frame.number % every == 0]
                found = iter(detect([frame.pixels for frame in chosen]) if chosen else ())
                for frame in group:
                    yield frame, _of_frame(next(found), frame, reader.name) if frame.number % every == 0 else None
    finally:
        reader.close()


def frame_results(watched: Generator[tuple[Frame, FrameResult | None], None, None]) -> Generator[FrameResult, None, None]:
    """The results alone, of frames that have one."""
    with closing(watched):
        for _, result in watched:
            if result is not None:
                yield result


def _of_frame(result: Result, frame: Frame, file: str) -> FrameResult:
    return FrameResult(**{**vars(result), "file": file}, frame=frame.number, seconds=frame.seconds)
