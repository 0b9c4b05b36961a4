"""The detector's network: images in, logits and deltas out."""

from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.models.backbone import Backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head
from lw_retinanet.structures import Predictions


class RetinaNet(nn.Module):
    """Backbone, pyramid and head, and nothing else: losses, decoding and NMS are functions of its output.

    Args:
        backbone: images -> C3..C5.
        fpn: C3..C5 -> P3..P7.
        head: P3..P7 -> predictions.
        conventions: what the weights expect of anchors, pictures and decoding; carried, not used here.

    Source: Lin et al., Focal Loss for Dense Object Detection (2017); Li & Ren, Light-Weight RetinaNet (2019).
    """

    def __init__(self, *, backbone: Backbone, fpn: FPN, head: Head, conventions: Conventions = Conventions()) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = fpn
        self.head = head
        self.conventions = conventions

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """(N, 3, H, W) float, normalised as ``conventions.input`` says -> predictions for all anchors.

        Any height and width will do for torchvision's backbones; some of timm's round down and need multiples of 32, which padding gives.
        Anchors follow :func:`~lw_retinanet.models.anchors.feature_sizes`. ``full_head`` runs the shared head at every level: of a lightened
        model that is the head that it had before.
        """
        return self.head(self.fpn(self.backbone(images), full=full_head), full=full_head)
