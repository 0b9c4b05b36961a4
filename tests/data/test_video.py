import importlib
import os
import struct
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.data.video import Frame, VideoReader, VideoWriter, opencv
from lw_retinanet.data.video_names import CODECS, is_video
from lw_retinanet.errors import ImageError, InputError, MissingExtraError

MakeVideo = Callable[..., Path]
TRACK = (b"moov", b"trak")
TIMES = (*TRACK, b"mdia", b"minf", b"stbl", b"stts")
TICKS = 12800  # a second, in the MP4 files that OpenCV writes at 25 frames a second


def read(path: Path, **options: int) -> tuple[VideoReader, list[Frame]]:
    """A reader at its end, and the frames that it gave."""
    reader = VideoReader(path)
    frames = list(reader.frames(**options))
    reader.close()
    return reader, frames


def level(frame: Frame) -> float:
    """The grey of the lower right quarter, 10 * number + 20 when it was written."""
    height, width, _ = frame.pixels.shape
    return float(frame.pixels[height // 2 + 4 :, width // 2 + 4 :].mean())


def boxes(content: bytes | bytearray, path: Sequence[bytes]) -> list[int]:
    """Where the boxes of an MP4 file start that lead to the last one of ``path``."""
    start, end, places = 0, len(content), []
    for name in path:
        while content[start + 4 : start + 8] != name:
            start += struct.unpack_from(">I", content, start)[0]
            assert start < end, name
        places.append(start)
        start, end = start + 8, start + struct.unpack_from(">I", content, start)[0]
    return places


def with_box(content: bytes, path: Sequence[bytes], body: bytes) -> bytes:
    """The file with another content in a box; those around it grow. What they say of places in the file holds, since `moov` comes last."""
    *outer, place = boxes(content, path)
    old = struct.unpack_from(">I", content, place)[0]
    new = bytearray(content)
    new[place : place + old] = struct.pack(">I4s", 8 + len(body), path[-1]) + body
    for start in outer:
        struct.pack_into(">I", new, start, struct.unpack_from(">I", content, start)[0] + 8 + len(body) - old)
    return bytes(new)


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_frames_of_every_format_come_in_order_with_their_times(make_video: MakeVideo, tmp_path: Path, suffix: str) -> None:
    reader, frames = read(make_video(tmp_path / f"clip{suffix}"))
    assert [frame.number for frame in frames] == list(range(20))
    assert [frame.seconds for frame in frames] == pytest.approx([number / 25 for number in range(20)], abs=0.002)
    assert [level(frame) for frame in frames] == pytest.approx([10 * number + 20 for number in range(20)], abs=4)
    red, green, blue = frames[0].pixels[4:16, 4:24].mean(axis=(0, 1))
    assert red > 220 > 40 > max(green, blue)  # RGB
    assert (reader.rate, reader.num_frames, reader.num_read, reader.num_missing) == (25, 20, 20, 0)


def test_every_third_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    reader, frames = read(make_video(tmp_path / "clip.mp4"), every=3)
    assert [frame.number for frame in frames] == [0, 3, 6, 9, 12, 15, 18]
    assert [level(frame) for frame in frames] == pytest.approx([10 * frame.number + 20 for frame in frames], abs=4)
    assert reader.num_read == 20


def test_a_name_with_a_colon_is_a_file(make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_video(Path("concat:1.mp4"))
    assert len(read(Path("concat:1.mp4"))[1]) == 20


def test_times_come_from_the_container(make_video: MakeVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "clip.mp4")
    ticks = [TICKS // 25] * 8 + [TICKS // 10] * 6 + [TICKS // 50] * 6
    table = struct.pack(">II", 0, len(ticks)) + b"".join(struct.pack(">II", 1, one) for one in ticks)
    content = with_box(path.read_bytes(), TIMES, table)
    length = struct.pack(">IIIIHH", 0, 1, 1000 * sum(ticks) // TICKS, 0, 1, 0)  # the list of edits shows all of it
    path.write_bytes(with_box(content, (*TRACK, b"edts", b"elst"), length))
    _, frames = read(path)
    assert [frame.seconds for frame in frames] == pytest.approx(np.cumsum([0, *ticks[:-1]]) / TICKS)
    assert not caplog.records


@pytest.mark.parametrize(("turn", "size", "red"), [(90, (48, 64), "right"), (180, (64, 48), "below"), (270, (48, 64), "left")])
def test_a_phone_that_was_held_upright(make_video: MakeVideo, tmp_path: Path, turn: int, size: tuple[int, int], red: str) -> None:
    path = make_video(tmp_path / "clip.mp4")
    content = bytearray(path.read_bytes())
    sine, cosine = {90: (1, 0), 180: (0, -1), 270: (-1, 0)}[turn]
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0)
    # A track header has its matrix 48 bytes after its start, in 16.16; the last number is in 2.30.
    struct.pack_into(">9i", content, boxes(content, (*TRACK, b"tkhd"))[-1] + 48, *(65536 * one for one in matrix), 1 << 30)
    path.write_bytes(content)
    _, (first, *_) = read(path)
    height, width, _ = first.pixels.shape
    assert (width, height) == size
    # The red quarter was above and on the left; a quarter turn clockwise takes it to the right, once more below.
    corners = {"right": (4, width - 8), "below": (height - 8, width - 8), "left": (height - 8, 4)}
    is_red = {place: first.pixels[row, column, 0] > 200 > first.pixels[row, column, 1] for place, (row, column) in corners.items()}
    assert is_red == {place: place == red for place in corners}


def test_broken_frames_are_counted(make_video: MakeVideo, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = make_video(tmp_path / "clip.avi")
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"movi") + (len(content) - content.index(b"movi")) // 2])
    reader, frames = read(path)
    assert 0 < len(frames) < 20
    assert reader.num_missing == 20 - len(frames)
    assert f"clip.avi: {20 - len(frames)} of 20 frames could not be read" in caplog.text


def test_frames_that_are_missing_inside_are_counted(
    make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = make_video(tmp_path / "clip.webm")
    seconds = VideoReader._seconds
    # As if frames 5, 6 and 7 had gone.
    monkeypatch.setattr(VideoReader, "_seconds", lambda reader, number: seconds(reader, number) + 3 / 25 * (number >= 5))
    reader, frames = read(path)
    assert len(frames) == 20
    assert reader.num_missing == 3
    assert "3 of 23 frames could not be read" in caplog.text


def with_name_of_a_video(folder: Path, kind: str) -> Path:
    """Something that is no video."""
    path = folder / "clip.mp4"
    if kind == "sound":
        with wave.open(str(path), "wb") as sound:
            sound.setparams((1, 2, 8000, 0, "NONE", ""))
            sound.writeframes(bytes(16000))
    elif kind == "image":
        Image.new("RGB", (64, 48)).save(path, format="PNG")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        path.write_bytes({"empty": b"", "rubbish": bytes(range(256)) * 8}[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("sound", "no video can be read from it: it holds sound only"),
        ("rubbish", "no video can be read from it"),
        ("image", "is an image (PNG) with a video's name; rename it to end in .png"),
        ("folder", "is a folder; name one video in it"),
        ("pipe", "is no ordinary file; name a video file"),
        ("empty", "is empty; replace it"),
        ("gone", "No such file or directory"),
    ],
)
def test_what_is_no_video(tmp_path: Path, kind: str, part: str, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(InputError) as caught:
        read(with_name_of_a_video(tmp_path, kind))
    assert str(caught.value).startswith(f"{tmp_path / 'clip.mp4'}")
    assert part in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_video_without_a_single_frame(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4")
    content = bytearray(path.read_bytes())
    start = boxes(content, (b"mdat",))[-1]
    content[start + 8 : boxes(content, (b"moov",))[-1]] = bytes(boxes(content, (b"moov",))[-1] - start - 8)
    path.write_bytes(content)
    with pytest.raises(InputError, match="no video can be read from it"):
        read(path)


def test_large_frames_are_refused_before_one_is_read(make_video: MakeVideo, tmp_path: Path) -> None:
    path = make_video(tmp_path / "clip.mp4")
    with pytest.raises(ImageError, match=r"64 x 48 is more than the limit of 3,071 pixels; .* raise max_pixels"):
        VideoReader(path, max_pixels=3071)
    VideoReader(path, max_pixels=3072).close()


def test_a_camera_that_is_not_there() -> None:
    pytest.importorskip("cv2")
    with pytest.raises(InputError, match="camera 99 cannot be opened; check that it is connected"):
        VideoReader(99)


def test_a_written_video_keeps_the_times_of_its_frames(make_video: MakeVideo, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = VideoWriter(path, rate=10, size_hw=(48, 64))
    # At ten frames a second, 0.4 s leaves the places 1 to 3 to the first image, and 0.41 s finds its place taken.
    for seconds, grey in ((0.0, 50), (0.4, 100), (0.41, 250), (0.5, 150)):
        writer.add(np.full((24 if grey == 150 else 48, 64, 3), grey, np.uint8), seconds)  # an image of another size is stretched
    assert writer.close()
    assert [level(frame) for frame in read(path)[1]] == pytest.approx([50, 50, 50, 50, 100, 150], abs=5)


AGAIN = "install it with: pip install --force-reinstall --no-deps opencv-python-headless"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            ModuleNotFoundError("No module named 'cv2'", name="cv2"),
            r"videos need OpenCV; install it with: pip install 'lw-retinanet\[video\]'",
        ),
        (ImportError("libGL.so.1: cannot open"), rf"OpenCV is damaged and cannot read videos \(libGL.so.1: cannot open\); {AGAIN}"),
        (SimpleNamespace(), f"OpenCV is damaged .*; {AGAIN}"),  # the empty folder that pip leaves when one of the two packages is removed
        (
            SimpleNamespace(__version__="5", CAP_FFMPEG=1900, videoio_registry=SimpleNamespace(hasBackend=lambda _: False)),
            f"OpenCV 5 was built without FFmpeg and cannot read videos; {AGAIN}",
        ),
    ],
)
def test_the_remedies_for_opencv(monkeypatch: pytest.MonkeyPatch, found: object, message: str) -> None:
    def load(_: str) -> object:
        if isinstance(found, Exception):
            raise found
        return found

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", load)
        with pytest.raises(MissingExtraError, match=message):
            opencv()


def test_names_of_videos() -> None:
    assert is_video("a/CLIP.MP4")
    assert not is_video("a/clip.gif")
    assert not is_video("clip")
