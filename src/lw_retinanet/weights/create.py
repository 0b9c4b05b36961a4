"""Creates a model from settings."""

from pathlib import Path

import torch

from lw_retinanet.config import MAX_SIZE, ModelConfig, Resize
from lw_retinanet.conventions import AnchorRule, Conventions, InputRule
from lw_retinanet.data.records import Category
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.backbone_file import find_stride, load_backbone
from lw_retinanet.weights.model_file import ModelRecord, make_record, save_model

# The values of the setting model.anchors. One square with a side of eight strides: Zhang et al. 2020 (ATSS), section 3.2.
ANCHORS = {"nine": AnchorRule(), "one": AnchorRule(base_size=8.0, octave_scales=(1.0,), aspect_ratios=(1.0,))}


class CreatedModel(RetinaNet):
    """A network that still knows the settings that it was made from, so that it can be saved and opened as a detector.

    Args:
        network: The network, whose parts this one takes over.
        record: Its record.
    """

    def __init__(self, network: RetinaNet, record: ModelRecord) -> None:
        super().__init__(backbone=network.backbone, fpn=network.fpn, head=network.head, conventions=network.conventions)
        self.record = record

    def save(self, path: str | Path) -> Path:
        """Write the model file and return its path."""
        save_model(Path(path), self, self.record.model_copy(update={"conventions": self.conventions}))
        return Path(path)


def created(config: ModelConfig, *, num_classes: int, image_size: int) -> CreatedModel:
    """What :func:`create_model` makes, with a record in which the classes are ``class_0``, ``class_1``, ..."""
    model = create_model(config, num_classes=num_classes, image_size=image_size)
    record = make_record(
        model,
        preset=config.preset,
        backbone=config.backbone,
        width=config.head_width,
        norm="frozen" if config.norm == "auto" else config.norm,
        plan=plan_of(config.preset),
        categories=tuple(Category(id=number, name=f"class_{number}") for number in range(num_classes)),
        notes={},
    )
    return CreatedModel(model, record)


def with_stride(config: ModelConfig) -> ModelConfig:
    """The settings with a stride rule in place of ``auto``, see :func:`~lw_retinanet.weights.backbone_file.find_stride`."""
    if config.stride_in != "auto" or config.start is not None:
        return config
    return config.model_copy(update={"stride_in": find_stride(config.backbone_weights, name=config.backbone)})


def create_model(
    config: ModelConfig,
    *,
    num_classes: int,
    image_size: int = 640,
    resize: Resize = "long_side",
    max_size: int = MAX_SIZE,
    seed: int | None = None,
) -> RetinaNet:
    """Create a model with a random head and with the backbone weights that the settings name.

    Args:
        config: Resolved settings.
        num_classes: Number of classes.
        image_size: Length in pixels to which the side that ``resize`` names is scaled; the model's conventions store it.
        resize: ``long_side`` or ``short_side``.
        max_size: Largest length of the longer side, for ``short_side``.
        seed: Seed for the random weights; None uses torch's generator in its present state.

    Raises:
        ConfigError: For a backbone that does not exist or does not fit the other settings.
        WeightsError: If the backbone's weights cannot be read or do not fit.
    """
    stride_in = with_stride(config).stride_in
    assert stride_in != "auto"
    conventions = Conventions(
        stride_in=stride_in,
        anchors=ANCHORS[config.anchors],
        input=InputRule(resize=resize, size=image_size, max_size=max_size),
    )
    if seed is not None:
        torch.manual_seed(seed)
    model = build(
        plan_of(config.preset),
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
