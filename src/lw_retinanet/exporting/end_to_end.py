"""Images in, boxes out, in one graph of fixed output shapes, for servers and devices where nothing else of this package runs."""

import torch
from torch import Tensor, nn

from lw_retinanet.boxes import clip, decode
from lw_retinanet.conventions import LEVELS, STRIDES, Conventions
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.graph import IMAGES, SIZES, ExportGraph
from lw_retinanet.models.anchors import cell_anchors
from lw_retinanet.models.fold import folded
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.models.suppression import PREFIX, STEPS

_NOTHING = -1e30  # a logit that passes no threshold; infinity would make NaN of zero times infinity


class EndToEnd(ExportGraph):
    """Network, candidates, decoding, clipping and NMS.

    The rules are those of :func:`lw_retinanet.models.postprocess.detect`, in single precision and without a step whose shape depends on
    values. Two limits follow: NMS sees the best 1,024 candidates of an image (twice ``max_detections`` if that is more), and follows
    chains of up to 24 boxes of which each suppresses the next.

    Args:
        model: Not changed. Its ``conventions`` are built in, thresholds included.
        full_head: Answer with the head that a lightened model had before.

    Raises:
        InputError: For weights whose origin suppresses boxes in the pixels of the original image, which the graph does not see.
    """

    inputs = (IMAGES, SIZES)
    outputs = ("boxes", "scores", "labels", "counts")

    def __init__(self, model: RetinaNet, *, full_head: bool = False) -> None:
        super().__init__()
        self.conventions: Conventions = model.conventions
        if self.conventions.output.frame == "picture":
            raise InputError(
                "this model's origin clips and suppresses in the original image's pixels, which a graph with NMS inside does not know; "
                "export raw outputs instead"
            )
        self.network = folded(model).cpu().float()
        self.full_head = full_head
        for level, stride in zip(LEVELS, STRIDES, strict=True):
            self.register_buffer(f"cell_{level}", cell_anchors(stride, self.conventions.anchors), persistent=False)

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes of N images; D is ``max_detections``.

        Args:
            images: (N, 3, H, W) float32, resized, normalised, zeros in padding.
            sizes_hw: (N, 2) int64 image size inside the padding.

        Returns:
            (N, D, 4) xyxy pixels of the input, (N, D) scores in falling order, (N, D) int64 labels, (N,) int64 counts. Padding
            behind the last detection is 0, and -1 for labels.
        """
        rule, boxes_rule = self.conventions.output, self.conventions.boxes
        size_hw = (images.shape[2], images.shape[3])
        pyramid = self.network.fpn(self.network.backbone(images), full=self.full_head)
        levels = [self._candidates(pyramid[level], level, size_hw) for level in LEVELS]
        scores, labels, anchors, deltas = (torch.cat(column, dim=1) for column in zip(*levels, strict=True))
        number = min(scores.shape[1], max(PREFIX, 2 * rule.max_detections))
        scores, places = scores.topk(number, dim=1)  # candidates come by level and anchor, and equal scores keep their order
        labels = labels.gather(1, places)
        rows = places[..., None].expand(-1, -1, 4)
        boxes = decode(deltas.gather(1, rows), anchors.gather(1, rows), boxes_rule)

        last_pixel = torch.tensor([0.0, 0.0, 1.0, 1.0]) * float(boxes_rule.legacy_plus_one)
        limits_hw = sizes_hw
        if rule.clip_to == "padded_minus_one":
            limits_hw = torch.zeros_like(sizes_hw) + torch.tensor([1, 1]) * torch.stack([torch.tensor(side - 1) for side in size_hw])
        elif rule.clip_to == "picture_minus_one":
            limits_hw = sizes_hw - 1
        clipped = clip(boxes - last_pixel, limits_hw) + last_pixel
        is_filled = (clipped[..., 2:] > clipped[..., :2]).all(dim=-1)
        is_real = (scores > 0) & (boxes.abs() < -_NOTHING).all(dim=-1)  # boxes of a diverged network may be infinite or NaN
        if rule.clip == "before_nms":
            boxes = clipped
            if rule.drop_empty:
                is_real = is_real & is_filled
        is_kept = survivors(boxes, labels * 0 if rule.class_agnostic else labels, is_real, iou=rule.nms_iou)
        if rule.clip == "after_nms":
            # Boxes without an area count towards the limit, because it is applied before they are dropped.
            is_kept = is_kept & (is_kept.int().cumsum(dim=1) <= rule.max_detections)
            boxes = clipped
            if rule.drop_empty:
                is_kept = is_kept & is_filled
        return self._first(boxes, scores, labels, is_kept)

    def _candidates(self, features: Tensor, level: str, size_hw: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The level's C best pairs of anchor and class: (N, C) scores, 0 where there is no candidate, (N, C) labels, (N, C, 4) anchors and
        deltas."""
        rule, anchor_rule, head = self.conventions.output, self.conventions.anchors, self.network.head
        num_classes, number, num_anchors = head.num_classes, rule.candidates_per_level, anchor_rule.num_anchors
        of_cls, of_bbox = head.maps(features, level, full=self.full_head)
        logits, deltas = _by_anchor(of_cls, num_classes), _by_anchor(of_bbox, 4)
        height, width = features.shape[2], features.shape[3]
        logits = torch.where(logits.isnan(), _NOTHING, logits)
        # Padding makes at least as many rows as are asked for, whatever the size, so that their number is a constant.
        padding = torch.full((number, num_classes), _NOTHING)[None].expand(logits.shape[0], -1, -1)
        logits = torch.cat([logits, padding], dim=1)
        best = logits.amax(dim=2).topk(number, dim=1).indices.sort(dim=1).values  # in order of anchors, which decides between equal scores
        pairs = logits.gather(1, best[..., None].expand(-1, -1, num_classes)).flatten(1)
        values, places = pairs.topk(number, dim=1)
        anchor = best.gather(1, places // num_classes).clamp(max=height * width * num_anchors - 1)
        threshold = rule.score_threshold
        if level == LEVELS[-1] and rule.last_level_score_threshold is not None:
            threshold = rule.last_level_score_threshold
        scores = values.sigmoid()
        scores = torch.where((scores > threshold) & (values > _NOTHING), scores, 0.0)
        cell = anchor // num_anchors
        row = cell // width
        column = cell - row * width  # ONNX has no remainder by a size that is unknown while tracing
        step_y = step_x = float(STRIDES[LEVELS.index(level)])
        if anchor_rule.stride_rule == "padded_over_feature":
            step_y, step_x = size_hw[0] // height, size_hw[1] // width
        y, x = (row.float() + anchor_rule.centre) * step_y, (column.float() + anchor_rule.centre) * step_x
        of_cell = getattr(self, f"cell_{level}")[anchor % num_anchors]
        anchors = torch.stack([x, y, x, y], dim=-1) + of_cell
        return scores, places % num_classes, anchors, deltas.gather(1, anchor[..., None].expand(-1, -1, 4))

    def _first(self, boxes: Tensor, scores: Tensor, labels: Tensor, is_kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first ``max_detections`` boxes that are kept, and padding behind them."""
        wanted, there = self.conventions.output.max_detections, boxes.shape[1]
        number = min(wanted, there)
        # Whole numbers below 2^24 are exact in float32, which every runtime can sort.
        rank = torch.where(is_kept, torch.arange(there, 0, -1).float(), 0.0)
        values, places = rank.topk(number, dim=1)
        is_there = values > 0
        boxes = torch.where(is_there[..., None], boxes.gather(1, places[..., None].expand(-1, -1, 4)), 0.0)
        scores = torch.where(is_there, scores.gather(1, places), 0.0)
        labels = torch.where(is_there, labels.gather(1, places), -1)
        if number < wanted:
            missing = wanted - number
            boxes = nn.functional.pad(boxes, (0, 0, 0, missing))
            scores, labels = nn.functional.pad(scores, (0, missing)), nn.functional.pad(labels, (0, missing), value=-1)
        return boxes, scores, labels, is_there.long().sum(dim=1)


def survivors(boxes: Tensor, labels: Tensor, is_real: Tensor, *, iou: float) -> Tensor:
    """Greedy NMS within each class by repeated matrix products: (N, M) bool.

    Whether a box is kept depends on the kept boxes before it. Starting from "all are kept", each step makes one more link of every chain
    right.

    Args:
        boxes: (N, M, 4) xyxy, the best first.
        labels: (N, M).
        is_real: (N, M) bool. Other boxes are not kept, and suppress nothing.
        iou: A box suppresses later boxes of its class whose IoU with it is larger.
    """
    boxes = torch.where(is_real[..., None], boxes, 0.0)
    areas = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    width = torch.minimum(boxes[:, :, None, 2], boxes[:, None, :, 2]) - torch.maximum(boxes[:, :, None, 0], boxes[:, None, :, 0])
    height = torch.minimum(boxes[:, :, None, 3], boxes[:, None, :, 3]) - torch.maximum(boxes[:, :, None, 1], boxes[:, None, :, 1])
    common = width.clamp(min=0) * height.clamp(min=0)
    # Multiplied out, since two empty boxes would divide 0 by 0.
    overlaps = common > iou * (areas[:, :, None] + areas[:, None, :] - common)
    places = torch.arange(boxes.shape[1])
    is_before = places[:, None] < places[None, :]
    is_pair = (labels[:, :, None] == labels[:, None, :]) & is_real[:, :, None] & is_real[:, None, :]
    suppresses = (overlaps & is_pair & is_before).float()
    real = is_real.float()[:, None]
    kept = real
    for _ in range(STEPS):
        kept = real * (torch.bmm(kept, suppresses) == 0).float()
    return kept[:, 0] > 0


def _by_anchor(maps: Tensor, values: int) -> Tensor:
    """(N, anchors * values, H, W) -> (N, H * W * anchors, values)."""
    return maps.permute(0, 2, 3, 1).reshape(maps.shape[0], -1, values)
