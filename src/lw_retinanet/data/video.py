"""Videos and cameras, frame by frame. OpenCV decodes them; whichever of its packages is installed is taken."""

import contextlib
import importlib
import logging
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.config import MAX_PIXELS
from lw_retinanet.data.image_formats.signatures import image_format
from lw_retinanet.data.images import too_large
from lw_retinanet.data.video_names import CODECS
from lw_retinanet.errors import ImageError, InputError, MissingExtraError, OutputError, first_line, printable

_FASTEST_RATE = 240.0  # a container may state its clock instead, a thousand or ninety thousand ticks a second
_USUAL_RATE = 25.0
_REINSTALL = "pip install --force-reinstall --no-deps opencv-python-headless"

log = logging.getLogger(__name__)


def opencv() -> Any:
    """OpenCV, kept quiet.

    Raises:
        MissingExtraError: If it is not installed, or cannot read videos.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg writes to standard error by itself; read when it is loaded
    try:
        cv2 = importlib.import_module("cv2")
        if not cv2.videoio_registry.hasBackend(cv2.CAP_FFMPEG):
            raise MissingExtraError(
                f"OpenCV {cv2.__version__} was built without FFmpeg and cannot read videos; install it with: {_REINSTALL}"
            )
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    except (ImportError, AttributeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
            raise MissingExtraError("videos need OpenCV; install it with: pip install 'lw-retinanet[video]'") from None
        # A library that it needs is missing, or pip removed files that both of its packages had.
        raise MissingExtraError(f"OpenCV is damaged and cannot read videos ({first_line(error)}); install it with: {_REINSTALL}") from None
    return cv2


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """A frame of a video.

    Args:
        number: Frames that could be read before it.
        seconds: Its time by the container's timestamps, from the start; for a camera since it was opened.
        pixels: (H, W, 3) uint8 RGB, turned as the file says.
    """

    number: int
    seconds: float
    pixels: NDArray[np.uint8]


class VideoReader:
    """An open video or camera.

    Args:
        source: A file, or the number of a camera.
        max_pixels: Refuse frames with more pixels; None is the image decoder's own limit.

    Attributes:
        name: The file, or ``camera 0``.
        rate: Frames a second, on average.
        num_read: Frames that were read, skipped ones included.
        num_missing: Frames that the file states or has gaps for and that could not be read, once :meth:`frames` has ended.

    Raises:
        InputError: If it cannot be opened.
        ImageError: If its frames are too large.
        MissingExtraError: If OpenCV is not installed.
    """

    def __init__(self, source: str | Path | int, *, max_pixels: int | None = None) -> None:
        self._cv2 = opencv()
        self._opened_at = time.monotonic()
        self._is_camera = isinstance(source, int)
        self.name = f"camera {source}" if isinstance(source, int) else str(source)
        head = b"" if isinstance(source, int) else _checked_head(Path(source))
        # A whole path, because FFmpeg takes what comes before a colon for a protocol.
        self._capture = (
            self._cv2.VideoCapture(source)
            if isinstance(source, int)
            else self._cv2.VideoCapture(os.path.abspath(source), self._cv2.CAP_FFMPEG)  # noqa: PTH100 - resolve() follows links
        )
        if not self._capture.isOpened():
            raise InputError(self._unreadable())
        self._capture.set(self._cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        size_hw = self._stated("FRAME_HEIGHT"), self._stated("FRAME_WIDTH")
        if size_hw[0] * size_hw[1] > (max_pixels or MAX_PIXELS):
            raise ImageError(f"{printable(self.name)}: {too_large((round(size_hw[0]), round(size_hw[1])), max_pixels)}")
        rate = self._stated("FPS")
        self.rate = rate if 0 < rate <= _FASTEST_RATE else _USUAL_RATE
        self._stated_frames = round(self._stated("FRAME_COUNT"))
        # These list their frames; for other containers, OpenCV makes a number from the duration, which may be that of the sound.
        self._lists_frames = head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide") or head[8:12] == b"AVI "
        self.num_read = 0
        self.num_missing = 0

    @property
    def num_frames(self) -> int:
        """The number of frames that the file states; 0 if it states none."""
        return max(0, self._stated_frames)

    def frames(self, *, every: int = 1) -> Iterator[Frame]:
        """Frames 0, ``every``, ``2 * every``, ... in order, until the video ends.

        Raises:
            InputError: If not a single frame can be read.
        """
        seconds, is_regular = 0.0, True
        while self._capture.grab():
            number = self.num_read
            seconds = max(seconds, self._seconds(number))
            is_regular = is_regular and abs(seconds * self.rate - round(seconds * self.rate)) < 0.1
            is_wanted = number % every == 0
            is_whole, pixels = self._capture.retrieve() if is_wanted else (True, None)
            if is_whole:
                self.num_read += 1
            if is_whole and is_wanted:
                yield Frame(number=number, seconds=seconds, pixels=self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB))
        if not self.num_read:
            raise InputError(self._unreadable())
        self.num_missing = self._missing(round(seconds * self.rate) + 1 if is_regular else 0)
        if self.num_missing:
            log.warning(
                "%s: %d of %d frames could not be read: they are broken, cut off, or left out by the video's list of edits",
                printable(self.name),
                self.num_missing,
                self.num_missing + self.num_read,
            )

    def close(self) -> None:
        """Close the file or camera."""
        self._capture.release()

    def _seconds(self, number: int) -> float:
        if self._is_camera:
            return time.monotonic() - self._opened_at
        seconds = self._stated("POS_MSEC") / 1000
        return seconds if 0 <= seconds < 1e9 else number / self.rate  # raw streams have no timestamps

    def _missing(self, num_places: int) -> int:
        """Frames that are missing, if there were ``num_places`` until the last one that was read."""
        stated = self.num_frames
        if self._is_camera:
            return 0
        if not self._lists_frames and stated - num_places < self.rate:  # up to a second of sound may follow
            stated = num_places
        return max(0, stated - self.num_read) if num_places or self._lists_frames else 0

    def _stated(self, what: str) -> float:
        value = float(self._capture.get(getattr(self._cv2, f"CAP_PROP_{what}")))
        return value if abs(value) < 1e15 else 0.0  # what is unknown is some -9e18, or nan

    def _unreadable(self) -> str:
        if self._is_camera:
            return f"{self.name} cannot be opened; check that it is connected and that no other program uses it"
        return (
            f"{printable(self.name)}: no video can be read from it: it holds sound only, is damaged or cut off, or needs another codec; "
            "check that a player shows it, and convert it to MP4 with `ffmpeg -i FILE new.mp4`"
        )


class VideoWriter:
    """A video with a constant rate of frames, under construction.

    Args:
        path: The file; its suffix decides the format.
        rate: Frames a second.
        size_hw: Height and width; an odd last row or column is left out.

    Raises:
        OutputError: If OpenCV cannot write such a file.
    """

    def __init__(self, path: Path, *, rate: float, size_hw: tuple[int, int]) -> None:
        self._cv2 = opencv()
        self._path, self._rate, self._size = path, rate, (size_hw[1], size_hw[0])
        self._last: Any = None
        self._written = 0
        for codec in CODECS[path.suffix.lower()]:
            with _quiet_stderr():
                arguments = os.path.abspath(path), self._cv2.CAP_FFMPEG, self._cv2.VideoWriter_fourcc(*codec), rate, self._size  # noqa: PTH100
                self._writer = self._cv2.VideoWriter(*arguments)
            if self._writer.isOpened():
                return
        raise OutputError(
            f"{path}: OpenCV {self._cv2.__version__} cannot write {path.suffix} with frames of {self._size[0]} x {self._size[1]}; "
            f"try another of {', '.join(CODECS)}"
        )

    def add(self, image: NDArray[np.uint8], seconds: float) -> None:
        """Show an image from a time on.

        Args:
            image: (H, W, 3) uint8 RGB; stretched if its size is not the video's.
            seconds: When it appears. The image before it is repeated until then; of several in one place, the first one is kept.
        """
        pixels = self._cv2.cvtColor(image, self._cv2.COLOR_RGB2BGR)
        if pixels.shape[1::-1] != self._size:
            pixels = self._cv2.resize(pixels, self._size)
        place = round(seconds * self._rate)
        while self._last is not None and self._written < place:
            self._write(self._last)
        if self._written <= place:
            self._write(pixels)
        self._last = pixels

    def _write(self, pixels: Any) -> None:
        self._writer.write(pixels)
        self._written += 1

    def close(self) -> bool:
        """Write what is left; returns whether the file can be read afterwards, which it cannot if the disk is full."""
        self._writer.release()
        written = self._cv2.VideoCapture(os.path.abspath(self._path), self._cv2.CAP_FFMPEG)  # noqa: PTH100
        return bool(written.grab()) and shutil.disk_usage(self._path.parent).free > 2**16


def _checked_head(path: Path) -> bytes:
    """The first bytes of a file that may be a video."""
    shown = printable(path)
    try:
        if path.is_dir():
            raise InputError(f"{shown} is a folder; name one video in it")
        if not stat.S_ISREG(path.stat().st_mode):
            raise InputError(f"{shown} is no ordinary file; name a video file")
        with path.open("rb") as file:
            head = file.read(64)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{shown}: the video cannot be read ({reason}); check the path and its permissions") from None
    if not head:
        raise InputError(f"{shown} is empty; replace it")
    with contextlib.suppress(ImageError):
        form = image_format(head)
        raise InputError(f"{shown} is an image ({form}) with a video's name; rename it to end in .{form.lower()}")
    return head


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep OpenCV's C code from writing about tags that its own table of containers lacks; no setting of it does."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
