"""A detector and a data set so small that a training takes a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lw_retinanet.config import Config
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.data.records import Records
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet

MakeConfig = Callable[..., Config]
MakeModel = Callable[..., RetinaNet]

SIZE = 64


@pytest.fixture(scope="session")
def make_model() -> MakeModel:
    """LW-v3 on a ResNet-18 with a pyramid 32 wide, weights of a seed."""

    def make(norm: Any = "frozen", seed: int = 0) -> RetinaNet:
        torch.manual_seed(seed)
        return build(
            PRESETS["lw-v3"], num_classes=3, backbone="resnet18", width=32, norm=norm, conventions=Conventions(input=InputRule(size=SIZE))
        )

    return make


@pytest.fixture(scope="session")
def make_config() -> MakeConfig:
    """Resolved settings; keywords are those of the section ``train``, except ``workers`` and ``augment``."""

    def make(*, workers: int = 0, augment: str = "jitter", **train: Any) -> Config:
        defaults: dict[str, Any] = {"batch_size": 2, "epochs": 1, "precision": "fp32", "rate": 1e-3, "warmup_steps": 2}
        return Config.model_validate(
            {
                "model": {"backbone": "resnet18", "norm": "frozen", "head_width": 32},
                "data": {"image_size": SIZE, "workers": workers, "augment": augment},
                "train": {**defaults, **train},
            }
        ).resolved()

    return make


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, draw_records: Callable[..., Records]) -> Records:
    """Eight images, square, portrait and landscape, of none to three rectangles, some for P3 and some for P4."""
    images = []
    for number in range(8):
        size_hw = [(64, 64), (64, 48), (48, 64)][number % 3]
        objects = [(3.0 * number, 5.0, 20.0, 26.0, 0), (24.0, 20.0, 16.0, 16.0, 1), (1.0, 1.0, 46.0, 62.0, 2)][: number % 4]
        images.append((size_hw, objects))
    return draw_records(tmp_path_factory.mktemp("rectangles"), images)


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    return tmp_path / "run"
