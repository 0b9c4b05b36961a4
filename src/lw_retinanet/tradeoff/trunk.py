"""The trunk of an experiment: the trained detector whose backbone and pyramid all heads share."""

from pathlib import Path

import torch

from lw_retinanet.config import Config
from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Records
from lw_retinanet.errors import InputError
from lw_retinanet.heads import plan_of
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.tradeoff.experiment import Experiment
from lw_retinanet.weights.create import ANCHORS
from lw_retinanet.weights.model_file import LoadedModel, find_model_file, load_model


def open_trunk(experiment: Experiment, records: Records) -> LoadedModel | None:
    """Load the trunk, frozen; None for an experiment without one.

    Raises:
        InputError: if its head is light already, or it has other classes than the training data.
    """
    if experiment.trunk is None:
        return None
    trunk = load_model(find_model_file(Path(experiment.trunk)))
    plan = trunk.model.head.plan
    if plan.cls or plan.bbox:
        raise InputError(f"trunk {experiment.trunk} has a light head already; start from a detector whose levels share one head")
    theirs, ours = [c.name for c in trunk.record.categories], list(records.class_names)
    if theirs != ours:
        raise InputError(f"trunk {experiment.trunk} has other classes than {experiment.data}; train it there first")
    trunk.model.requires_grad_(False)
    return trunk


def at_scale(conventions: Conventions, scale: int) -> Conventions:
    """The same conventions, for images whose longer side is ``scale`` pixels."""
    rule = conventions.input.model_copy(update={"resize": "long_side", "size": scale})
    return conventions.model_copy(update={"input": rule})


def with_head(trunk: RetinaNet, config: Config, num_classes: int) -> RetinaNet:
    """A detector of the trunk's backbone and pyramid and a new head, for the input size of the settings."""
    assert config.data.image_size is not None
    conventions = at_scale(trunk.conventions, config.data.image_size)
    anchors = ANCHORS[config.model.anchors]
    if anchors.num_anchors != conventions.anchors.num_anchors:  # otherwise keep the trunk's, which may be rounded as in its framework
        conventions = conventions.model_copy(update={"anchors": anchors})
    torch.manual_seed(config.train.seed)
    head = Head(
        in_channels=trunk.fpn.out_channels,
        num_classes=num_classes,
        num_anchors=conventions.anchors.num_anchors,
        plan=plan_of(config.model.preset),
        init=config.model.init or "fan_in",
    )
    return RetinaNet(backbone=trunk.backbone, fpn=trunk.fpn, head=head, conventions=conventions)
