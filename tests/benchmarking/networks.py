"""Small networks that answer as trained ones do, and images for them."""

from functools import lru_cache

import torch

from lw_retinanet.benchmarking.entries import give_scores, made_up_network
from lw_retinanet.benchmarking.images import BenchmarkImages, made_up_images
from lw_retinanet.models.retinanet import RetinaNet

SIZE, CLASSES = 64, 3


@lru_cache(maxsize=1)
def images() -> BenchmarkImages:
    return made_up_images(SIZE)


def network(preset: str = "retinanet", *, candidates: int = 100) -> RetinaNet:
    """ResNet-18, 16 channels wide."""
    before = torch.get_rng_state()
    made = made_up_network(preset, size=SIZE, num_classes=CLASSES, backbone="resnet18", width=16)
    give_scores(made, images(), candidates=candidates)
    torch.set_rng_state(before)
    return made
