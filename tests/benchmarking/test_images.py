import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lw_retinanet.benchmarking.images import MADE_UP, BenchmarkImages, images_of, made_up_images
from lw_retinanet.errors import ImageError, InputError


def test_made_up_images_are_jpeg_of_four_fifths_and_the_same_each_time() -> None:
    made = made_up_images(50)
    assert len(set(made.files)) == MADE_UP
    assert all(file.startswith(b"\xff\xd8\xff") for file in made.files)
    assert made.decoded(0).shape == (40, 40, 3)
    assert made_up_images(50).files == made.files


def test_batches_go_round() -> None:
    images = BenchmarkImages(files=(b"0", b"1", b"2"), source="")
    assert [images.batch(number, 2) for number in range(3)] == [[b"0", b"1"], [b"2", b"0"], [b"1", b"2"]]


def test_images_of_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no images in this folder"):
        images_of(tmp_path)
    Image.fromarray(np.full((6, 9, 3), 77, dtype=np.uint8)).save(tmp_path / "a.png")
    found = images_of(tmp_path)
    assert found.files == ((tmp_path / "a.png").read_bytes(),)
    assert found.source == f"1 images of {tmp_path}"
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(ImageError, match=r"b\.jpg"):  # before anything is timed
        images_of(tmp_path)


def test_squares_are_cut_from_the_middle() -> None:
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[:, 20:60] = 200  # the middle square
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    square = BenchmarkImages(files=(stream.getvalue(),), source="one").squares(64)
    assert square.decoded(0).shape == (64, 64, 3)
    assert square.decoded(0).min() > 190  # JPEG rounds
    assert square.source == "one, cut to squares of 64 x 64"
