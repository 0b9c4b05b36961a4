"""Settings in, a model with its weights out."""

import torch

from lw_retinanet.config import ModelConfig
from lw_retinanet.conventions import Conventions, InputRule
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.models.variants import PRESETS
from lw_retinanet.weights.backbone_file import guess_stride, load_backbone


def create_model(config: ModelConfig, *, num_classes: int, image_size: int = 640, seed: int | None = None) -> RetinaNet:
    """A model with a random head, and the backbone weights that the settings name.

    Args:
        config: resolved settings.
        num_classes: K.
        image_size: longer side of the pictures it will see; kept in its conventions.
        seed: of the random weights; None draws from torch's generator as it stands.

    Raises:
        ConfigError: for a backbone that does not exist or does not fit the other settings.
        WeightsError: if backbone weights cannot be had or do not fit.
    """
    stride_in = guess_stride(config.backbone_weights) if config.stride_in == "auto" else config.stride_in
    conventions = Conventions(stride_in=stride_in, input=InputRule(size=image_size))
    if seed is not None:
        torch.manual_seed(seed)
    model = build(
        PRESETS[config.preset](),
        num_classes=num_classes,
        backbone=config.backbone,
        width=config.head_width,
        norm="frozen" if config.norm == "auto" else config.norm,
        init=config.init or "fan_in_light",
        conventions=conventions,
    )
    if config.backbone_weights != "none":
        load_backbone(model.backbone, name=config.backbone, source=config.backbone_weights)
    return model
