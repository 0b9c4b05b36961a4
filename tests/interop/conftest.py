"""torchvision detectors small enough to train in a test: 32 channels, five levels, images of some 64 pixels."""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

WIDTH, CLASSES = 32, 4


class TinyBackbone(nn.Module):
    """Five maps of strides 8 to 128, one convolution each."""

    out_channels = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 8, 8)
        self.down = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 2, 1) for _ in range(4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(images)]
        for conv in self.down:
            maps.append(conv(maps[-1].relu()))
        return OrderedDict((str(i), each) for i, each in enumerate(maps))


def _make_detector(kind: str, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"min_size": 64, "max_size": 96, "detections_per_img": 20, **settings}
    if kind == "fcos":
        return FCOS(TinyBackbone(), CLASSES, **{"score_thresh": 0.01, **sizes})
    head = RetinaNetHead(WIDTH, 9, CLASSES, norm_layer=partial(nn.GroupNorm, 32)) if kind == "v2" else None
    return RetinaNet(TinyBackbone(), CLASSES, **{"head": head, "score_thresh": 0.005, **sizes})


@pytest.fixture(scope="session")
def make_detector() -> Callable[..., Any]:
    """``make_detector("v1" | "v2" | "fcos", **settings)``: an untrained model, the same at every call."""
    return _make_detector


@pytest.fixture
def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(3, 64, 80, generator=generator), torch.rand(3, 70, 64, generator=generator)]


@pytest.fixture
def targets() -> list[dict[str, Tensor]]:
    return [
        {"boxes": torch.tensor([[4.0, 6.0, 40.0, 44.0], [30.0, 20.0, 62.0, 60.0]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.tensor([[10.0, 10.0, 42.0, 40.0]]), "labels": torch.tensor([2])},
    ]
