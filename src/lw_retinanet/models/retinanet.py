"""The detector's network: images in, logits and deltas out."""

from torch import Tensor, nn

from lw_retinanet.conventions import Conventions
from lw_retinanet.models.backbone import Backbone
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Head
from lw_retinanet.structures import Predictions


class RetinaNet(nn.Module):
    """Backbone, pyramid and head. Losses, decoding and NMS are separate functions of its output.

    Args:
        backbone: Images -> C3..C5.
        fpn: C3..C5 -> P3..P7.
        head: P3..P7 -> predictions.
        conventions: What the weights expect of anchors, images and decoding. The network keeps them for its users.

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
        """Number of classes."""
        return self.head.num_classes

    def forward(self, images: Tensor, *, full_head: bool = False) -> Predictions:
        """Images (N, 3, H, W), normalised as ``conventions.input`` says -> predictions for all anchors.

        torchvision's backbones take any height and width; some of timm's need multiples of 32, which padding gives. ``full_head`` uses the
        shared head on every level. In a lightened model that is the head from before lightening.
        """
        return self.head(self.fpn(self.backbone(images), full=full_head), full=full_head)
