"""How to measure."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lw_retinanet.benchmarking.realistic import CANDIDATES
from lw_retinanet.config import MAX_SIZE
from lw_retinanet.errors import ConfigError

Timed = Literal["fp32", "bf16"]
"""A precision of PyTorch's networks."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkSettings:
    """How to measure.

    Args:
        against_torchvision: Measure torchvision's RetinaNet, too, as shipped and at its best.
        peers: Measure torchvision's other detectors, too.
        precision: Precision of PyTorch's networks. ``all`` is fp32, and bf16 if the device multiplies in bf16.
        size: Side that images are resized to. None keeps the size of each model; presets get 800.
        rounds: Number of rounds.
        warm_up: Number of rounds before these, which do not count.
        batch_size: Number of images in a call.
        threads: Number of threads. None takes as many as torch does.
        images: Folder of images. None makes some up.
        square: Cut images to squares, so that networks get square inputs.
        device: ``auto``, ``cpu`` or ``cuda``.
        compiled: Measure networks compiled with ``torch.compile``, too.
        openvino: Measure PyTorch's networks in OpenVINO, too, also in int8.
        num_classes: Number of classes of presets.
        backbone: Backbone of presets.
        candidates: Number of (anchor, class) pairs over the score threshold in presets.
    """

    against_torchvision: bool = False
    peers: bool = False
    precision: Literal["fp32", "bf16", "all"] = "fp32"
    size: int | None = None
    rounds: int = 30
    warm_up: int = 5
    batch_size: int = 1
    threads: int | None = None
    images: Path | None = None
    square: bool = False
    device: str = "cpu"
    compiled: bool = False
    openvino: bool = False
    num_classes: int = 80
    backbone: str = "resnet50"
    candidates: int = CANDIDATES

    def __post_init__(self) -> None:
        for name, least in (("rounds", 2), ("warm_up", 0), ("batch_size", 1), ("num_classes", 1), ("candidates", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.size is not None and not 32 <= self.size <= MAX_SIZE:
            raise ConfigError(f"size must be from 32 to {MAX_SIZE} pixels, got {self.size}")
