"""Detections of all stages of lightening in one pass over a data set: each image is decoded once and passes the backbone once."""

import torch
from torch import Tensor

from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.evaluation.detect_records import detect_records_together
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.lightening.stages import Lightened
from lw_retinanet.models.backbone import Backbone
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress


class _CachingBackbone(Backbone):
    """A backbone that keeps its last output, for networks that share it and get the same images one after the other."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = backbone.channels
        self._last: tuple[Tensor, dict[str, Tensor]] | None = None

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self._last is None or not torch.equal(self._last[0], images):
            self._last = images, self.backbone(images)
        return self._last[1]


def detect_stages(lightened: Lightened, records: Records, *, progress: Progress | None = None) -> dict[str, DetectionTable]:
    """Run every stage on a data set.

    Args:
        lightened: The stages; their backbones have the same weights.
        records: The data set.
        progress: Passes on the batches, for instance to show a bar.

    Returns:
        Detections by name of the stage.
    """
    detector = lightened.detector
    backbone = _CachingBackbone(lightened.stages[0].model.backbone).eval()
    detectors = [
        Detector.of_model(
            RetinaNet(backbone=backbone, fpn=stage.model.fpn, head=stage.model.head, conventions=stage.model.conventions),
            detector.categories,
            device=detector.device,
            precision=detector.chosen_precision or detector.precision,
            fold=False,  # a copy of its own would not share the backbone
        )
        for stage in lightened.stages
    ]
    tables = detect_records_together(detectors, records, progress=progress)
    return dict(zip([stage.name for stage in lightened.stages], tables, strict=True))
