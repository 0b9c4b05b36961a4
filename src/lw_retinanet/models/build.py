"""Building a network from names and numbers, and copying one without its numbers."""

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.backbone import Norm, make_backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head, Init
from lw_retinanet.models.retinanet import RetinaNet

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def build(
    plan: HeadPlan,
    *,
    num_classes: int,
    backbone: str = "resnet50",
    width: int = 256,
    norm: Norm = "frozen",
    init: Init = "fan_in_light",
    conventions: Conventions = Conventions(),
    full_output: Sequence[str] = (),
) -> RetinaNet:
    """Build a detector with random weights.

    Args:
        plan: The head's plan; :func:`lw_retinanet.heads.plan_of` gives that of a preset.
        num_classes: Number of classes, at least 1.
        backbone: A name from :data:`~lw_retinanet.backbones.BACKBONES`, or ``timm:NAME``.
        width: Channels of the pyramid and of the head's towers.
        norm: Normalisation of the backbone.
        init: Initialisation of the head.
        conventions: Stride, norm epsilon, P6, P7 and the number of anchors. The network carries the rest along.
        full_output: Levels with a second convolution that makes their map, for the full head of a lightened model.

    Raises:
        ConfigError: For a backbone that does not exist or does not go with the conventions.
    """
    body = make_backbone(backbone, norm=norm, stride_in=conventions.stride_in, norm_eps=conventions.norm_eps)
    return RetinaNet(
        backbone=body,
        fpn=FPN(
            in_channels=body.channels,
            channels=width,
            p6_source=conventions.p6_source,
            p7_relu=conventions.p7_relu,
            full_output=full_output,
        ),
        head=Head(in_channels=width, num_classes=num_classes, num_anchors=conventions.anchors.num_anchors, plan=plan, init=init),
        conventions=conventions,
    )


def meta_copy(module: ModuleT) -> ModuleT:
    """A copy in evaluation mode on the meta device: it has shapes but no numbers, so it needs no memory and runs in no time."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, memo).eval()
