"""From predictions to detections: candidates, decoding, clipping, NMS, and scaling back to the pixels of the original images."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from lw_retinanet.boxes import clip, decode
from lw_retinanet.conventions import Conventions, OutputRule
from lw_retinanet.data.preprocess import resize_scale
from lw_retinanet.devices import to_device
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.models.candidates import Candidates, best_candidates
from lw_retinanet.models.suppression import suppress, suppress_without_waiting
from lw_retinanet.structures import Detections, Predictions


def detect(
    predictions: Predictions,
    *,
    size_hw: tuple[int, int],
    sizes_hw: Tensor,
    conventions: Conventions,
    images_hw: Sequence[tuple[int, int]] | None = None,
) -> Detections:
    """Turn predictions into detections.

    Args:
        predictions: Predictions for a padded input of ``size_hw``.
        size_hw: Height and width of the padded input.
        sizes_hw: (N, 2) height and width of each resized image inside it.
        conventions: The conventions of the weights.
        images_hw: Heights and widths of the N original images; None gives detections in pixels of the padded input.

    Returns:
        Detections with the highest scores first. Corners x2, y2 are the end of the last pixel, whatever the conventions. They are on the
        CPU, wherever the predictions are; the copy at the end is the only moment at which the host waits for the device.
    """
    rule = conventions.output
    anchors = make_anchors(size_hw, conventions.anchors, predictions.logits.device)
    found = best_candidates(predictions.logits, anchors_per_level(size_hw, conventions.anchors), rule)
    boxes = decode(_rows(predictions.deltas, found.anchors).float(), _rows(anchors[None], found.anchors), conventions.boxes)
    to_image = _ToImage(conventions, size_hw, sizes_hw, images_hw)
    if to_image.scales_before_nms:
        boxes = to_image.scaled(boxes)
    passed = found.is_real
    if rule.clip == "before_nms":
        boxes = to_image.clipped(boxes)
        if rule.drop_empty:
            passed = passed & _is_filled(boxes)
    # A diverged network gives boxes that are NaN or infinite. They are no detections, and NMS could not compare them.
    passed = passed & boxes.isfinite().all(dim=2)

    def finished(kept: Tensor) -> Detections:
        if boxes.shape[1] == 0:
            return _nothing(len(boxes), rule.max_detections)
        return _finished(boxes, found, kept, to_image)

    if boxes.device.type != "cpu":
        kept, is_complete = suppress_without_waiting(boxes, found.labels, passed, iou=rule.nms_iou, most=rule.max_detections)
        result, all_complete = _on_host(finished(kept), is_complete)
        if all_complete:
            return result
    kept = suppress(boxes, found.labels, passed, iou=rule.nms_iou, most=rule.max_detections)
    return _on_host(finished(kept), None)[0]


class _ToImage:
    """Clips boxes to their images, and scales them from pixels of the padded input to pixels of the original images."""

    def __init__(
        self, conventions: Conventions, size_hw: tuple[int, int], sizes_hw: Tensor, images_hw: Sequence[tuple[int, int]] | None
    ) -> None:
        self.rule = conventions.output
        # A framework whose x2 and y2 are a box's last pixel clips and scales those.
        self.last_pixel = _last_pixel(sizes_hw.device) if conventions.boxes.legacy_plus_one else 0.0
        self.factors = 1.0 if images_hw is None else factors_to_images(images_hw, sizes_hw, conventions)[:, None]
        self.scales_before_nms = images_hw is not None and self.rule.frame == "picture"
        if images_hw is not None and self.scales_before_nms:
            sizes_hw = to_device(torch.tensor(images_hw), sizes_hw.device)
        self.limits_hw = _limits(self.rule, size_hw, sizes_hw)

    def scaled(self, boxes: Tensor) -> Tensor:
        return (boxes - self.last_pixel) * self.factors + self.last_pixel

    def clipped(self, boxes: Tensor) -> Tensor:
        return clip(boxes - self.last_pixel, self.limits_hw) + self.last_pixel


def _finished(boxes: Tensor, found: Candidates, kept: Tensor, to_image: _ToImage) -> Detections:
    """Detections at the places ``kept`` (N, D), -1 in padding, clipped and scaled if that was not done before NMS."""
    is_kept, rows = kept >= 0, kept.clamp(min=0)
    result = Detections(
        boxes=boxes.gather(1, rows[..., None].expand(-1, -1, 4)),
        scores=found.scores.gather(1, rows) * is_kept,
        labels=found.labels.gather(1, rows).where(is_kept, -1),
        counts=is_kept.sum(dim=1),
    )
    if to_image.rule.clip == "after_nms":
        result = replace(result, boxes=to_image.clipped(result.boxes))
        if to_image.rule.drop_empty:
            result = _without_empty(result)
    if to_image.rule.frame == "input":
        result = replace(result, boxes=to_image.scaled(result.boxes))
    return replace(result, boxes=result.boxes.where((result.labels >= 0)[..., None], 0.0))


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """The rows at ``places`` (N, S) of ``values`` (N, A, 4), or of values (1, A, 4) that all images share. Faster than ``gather``."""
    num_images, number, _ = values.shape
    if num_images > 1:
        places = places + torch.arange(num_images, device=places.device)[:, None] * number
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, 4)


def _on_host(result: Detections, is_complete: Tensor | None) -> tuple[Detections, bool]:
    """Bring the detections to the CPU by one copy, for which the host waits; and whether all of ``is_complete`` (N,) is true."""
    if result.boxes.device.type == "cpu":
        return result, True
    number = result.scores.shape[1]
    columns = [result.boxes.flatten(1), result.scores, result.labels.float(), result.counts[:, None].float()]  # exact up to 2^24
    if is_complete is not None:
        columns.append(is_complete[:, None].float())
    packed = torch.cat(columns, dim=1).cpu()
    boxes, scores, labels, counts, *complete = packed.split([4 * number, number, number] + [1] * (len(columns) - 3), dim=1)
    host = Detections(
        boxes=boxes.reshape(-1, number, 4).contiguous(),
        scores=scores.contiguous(),
        labels=labels.long(),
        counts=counts.flatten().long(),
    )
    return host, not complete or bool(complete[0].all())


def _nothing(num_images: int, number: int) -> Detections:
    return Detections(
        boxes=torch.zeros((num_images, number, 4)),
        scores=torch.zeros((num_images, number)),
        labels=torch.full((num_images, number), -1, dtype=torch.int64),
        counts=torch.zeros(num_images, dtype=torch.int64),
    )


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def _last_pixel(device: torch.device) -> Tensor:
    """(4,) how the corners of a box change if it becomes one pixel wider and higher."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device)


def _limits(rule: OutputRule, size_hw: tuple[int, int], sizes_hw: Tensor) -> Tensor:
    """(N, 2) largest y and x of a clipped corner."""
    if rule.clip_to == "padded_minus_one":
        return torch.stack([torch.full_like(sizes_hw[:, 0], side - 1) for side in size_hw], dim=1)
    return sizes_hw - 1 if rule.clip_to == "picture_minus_one" else sizes_hw


def factors_to_images(images_hw: Sequence[tuple[int, int]], sizes_hw: Tensor, conventions: Conventions) -> Tensor:
    """(N, 4) factors of x1, y1, x2, y2 from pixels of the padded input to pixels of the original images."""
    if conventions.output.scale_back == "uniform":
        factors = [1 / resize_scale(image_hw, conventions.input) for image_hw in images_hw]
        return to_device(torch.tensor(factors, dtype=torch.float32), sizes_hw.device)[:, None].expand(-1, 4)
    return (to_device(torch.tensor(images_hw), sizes_hw.device) / sizes_hw).float().flip(1).repeat(1, 2)


def _is_filled(boxes: Tensor) -> Tensor:
    """(N, D) bool: whether a box has width and height."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _without_empty(detections: Detections) -> Detections:
    """Remove boxes without width or height; the others keep their order and move to the front."""
    is_kept = _is_filled(detections.boxes) & (detections.labels >= 0)
    order = torch.argsort(is_kept.int(), dim=1, descending=True, stable=True)
    is_kept = is_kept.gather(1, order)
    return Detections(
        boxes=detections.boxes.gather(1, order[..., None].expand(-1, -1, 4)) * is_kept[..., None],
        scores=detections.scores.gather(1, order) * is_kept,
        labels=detections.labels.gather(1, order).where(is_kept, -1),
        counts=is_kept.sum(dim=1),
    )
