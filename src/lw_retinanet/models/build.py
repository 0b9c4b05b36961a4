"""Names and numbers in, a network out: the one place where settings become modules."""

from lw_retinanet.conventions import Conventions
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.backbone import Norm, make_backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head, Init
from lw_retinanet.models.retinanet import RetinaNet


def build(
    plan: HeadPlan,
    *,
    num_classes: int,
    backbone: str = "resnet50",
    width: int = 256,
    norm: Norm = "frozen",
    init: Init = "fan_in_light",
    conventions: Conventions = Conventions(),
    full_output: bool = False,
) -> RetinaNet:
    """Build a detector with random weights.

    Args:
        plan: of the head; :data:`~lw_retinanet.heads.PRESETS` has the paper's.
        num_classes: K, at least 1.
        backbone: A name from :data:`~lw_retinanet.backbones.BACKBONES`, or ``timm:NAME``.
        width: channels of the pyramid and of the head's towers.
        norm: of the backbone.
        init: of the head.
        conventions: decide stride, norm epsilon, P6, P7 and the number of anchors; the rest is carried along.
        full_output: keep a second convolution that makes P3, for the full head of a lightened model.

    Raises:
        ConfigError: for a backbone that does not exist or does not fit.
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
