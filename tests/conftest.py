"""Fixtures that several folders of tests share."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lw_retinanet.data.records import Category, Records

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start, too: threads fight over few cores
os.environ.setdefault("TRITON_INTERPRET", "0" if Path("/dev/nvidia0").exists() else "1")  # triton reads it when it is imported

Object = tuple[float, float, float, float, int]
COLOURS = ((220, 30, 30), (30, 200, 60), (40, 60, 230))
BACKGROUND = (110, 110, 110)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Sums in one order on every machine, and no threads that fight over few cores."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photographs, fixtures and weights; a test that asks for it is skipped where it is not."""
    folder = Path(os.environ.get("LW_RETINANET_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set LW_RETINANET_SHARED to the folder that holds data/ and fixtures/")
    return folder


@pytest.fixture(scope="session")
def draw_records() -> Callable[..., Records]:
    """A function that writes pictures of coloured rectangles as PNG and returns their records, see :func:`_draw_records`."""
    return _draw_records


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    """A function that writes a video of grey frames, see :func:`_make_video`; the test is skipped without OpenCV."""
    pytest.importorskip("cv2")
    return _make_video


def _make_video(path: Path, *, frames: int = 20, size: tuple[int, int] = (64, 48), rate: float = 25.0) -> Path:
    """Frame k is grey, of level 10 * k + 20, and red in its upper left quarter. ``size`` is (width, height)."""
    from lw_retinanet.data.video import VideoWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = VideoWriter(path, rate=rate, size_hw=(size[1], size[0]))
    for number in range(frames):
        image = np.full((size[1], size[0], 3), (10 * number + 20) % 256, np.uint8)
        image[: size[1] // 2, : size[0] // 2] = (250, 0, 0)
        writer.add(image, number / rate)
    assert writer.close()
    return path


def _draw_records(root: Path, pictures: Sequence[tuple[tuple[int, int], Sequence[Object]]]) -> Records:
    """``pictures`` are (height, width) and objects (x, y, width, height, label 0..2); the rectangle of label k has colour k."""
    root.mkdir(parents=True, exist_ok=True)
    names = []
    for number, ((height, width), objects) in enumerate(pictures):
        image = Image.new("RGB", (width, height), BACKGROUND)
        for x, y, w, h, label in objects:
            ImageDraw.Draw(image).rectangle((x, y, max(x, x + w - 1), max(y, y + h - 1)), fill=COLOURS[label])
        names.append(f"picture {number}.png")
        image.save(root / names[-1])
    table = np.array([row for _, objects in pictures for row in objects], np.float64).reshape(-1, 5)
    count = len(table)
    return Records(
        root=root,
        file_names=names,
        image_ids=list(range(len(pictures))),
        sizes_hw=np.array([size_hw for size_hw, _ in pictures], np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *(len(objects) for _, objects in pictures)]).astype(np.int64),
        boxes_xywh=table[:, :4],
        labels=table[:, 4].astype(np.int32),
        is_crowd=np.zeros(count, bool),
        is_difficult=np.zeros(count, bool),
        areas=table[:, 2] * table[:, 3],
        annotation_ids=np.arange(1, count + 1),
        categories=tuple(Category(id=10 * label, name=name) for label, name in enumerate(("red", "green", "blue"))),
    )
