"""The network alone, as a module of tensors that exporters take."""

from torch import Tensor, nn

from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet

INPUT = "images"
RAW_OUTPUTS = ("logits", "deltas")


class RawGraph(nn.Module):
    """(N, 3, H, W) normalised images -> (N, A, K) logits and (N, A, 4) deltas, batch norm folded into the convolutions.

    Args:
        model: not changed.
        full_head: the head of before lightening.
    """

    inputs: tuple[str, ...] = (INPUT,)
    outputs: tuple[str, ...] = RAW_OUTPUTS

    def __init__(self, model: RetinaNet, *, full_head: bool = False) -> None:
        super().__init__()
        self.network = folded(model).cpu().float()
        self.full_head = full_head

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        predictions = self.network(images, full_head=self.full_head)
        return predictions.logits, predictions.deltas
