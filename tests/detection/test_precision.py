from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lw_retinanet.detection.precision import faster_precision


@pytest.mark.parametrize(
    ("fp32", "bf16", "expected"),
    [
        ([9.0, 2.0, 2.0, 2.0], [9.0, 1.0, 1.0, 1.0], "bf16"),
        ([9.0, 1.0, 1.0, 1.0], [9.0, 2.0, 2.0, 2.0], "fp32"),
        ([9.0, 1.0, 1.0, 1.0], [1.0, 0.95, 0.95, 0.95], "fp32"),  # not worth the rounding
        ([0.1, 2.0, 2.0, 2.0], [99.0, 1.0, 1.0, 1.0], "bf16"),  # the first call warms up
        ([9.0, 2.0, 2.0, 2.0], [9.0, 7.0, 1.0, 7.0], "bf16"),  # what disturbs makes slower, never faster
    ],
)
def test_the_faster_one_wins_by_a_margin(fp32: list[float], bf16: list[float], expected: str) -> None:
    now = 0.0
    shapes = []

    def taking(seconds: list[float]) -> Callable[[Tensor], None]:
        left: Iterator[float] = iter(seconds)

        def run(images: Tensor) -> None:
            nonlocal now
            now += next(left)
            shapes.append(tuple(images.shape))

        return run

    images = torch.zeros(4, 3, 800, 1088)
    assert faster_precision(taking(fp32), taking(bf16), images, clock=lambda: now) == expected
    assert set(shapes) == {(1, 3, 320, 320)}  # a corner is enough on a CPU
    assert len(shapes) == 8
