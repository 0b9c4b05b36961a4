"""A small detector that finds plenty, without training."""

import pytest

from lw_retinanet.data.records import Category
from lw_retinanet.detection.detector import Detector


@pytest.fixture(scope="session")
def detector() -> Detector:
    """Random weights, but scores spread around a half, so that every image has detections; class ids with gaps and a string."""
    import torch

    from lw_retinanet.config import ModelConfig
    from lw_retinanet.weights.create import create_model

    config = ModelConfig(backbone="mobilenet_v2", head_width=16, norm="batch", init="fan_in")
    model = create_model(config, num_classes=3, image_size=64, seed=0)
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name.endswith("bias") and parameter.numel() == 3 * 9:
                parameter.zero_()
    categories = (Category(id=7, name="red"), Category(id="x", name="green"), Category(id=90, name="blue"))
    return Detector.of_model(model, categories, name="tiny")
