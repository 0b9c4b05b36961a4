"""From predictions to detections: candidates, decoding, clipping, NMS, and scaling back to the pixels of the original images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from lw_retinanet.boxes import clip, decode
from lw_retinanet.conventions import Conventions, OutputRule
from lw_retinanet.data.preprocess import resize_scale
from lw_retinanet.devices import has_triton, to_device
from lw_retinanet.models.anchors import anchors_per_level, make_anchors
from lw_retinanet.models.candidates import Candidates, best_candidates, starts_and_floors
from lw_retinanet.models.suppression import suppress, suppress_on_device, suppress_without_waiting
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
    to_image = ToImage.of(conventions, size_hw, sizes_hw, images_hw)
    most = conventions.output.max_detections
    if has_triton(predictions.logits.device.type):
        return unpacked(detect_on_device(predictions, to_image, size_hw=size_hw, conventions=conventions).cpu(), most)
    boxes, found, passed = _decoded(predictions, to_image, size_hw, conventions)
    if boxes.shape[1] == 0:
        return _nothing(len(boxes), most)
    groups = _groups(found, conventions.output)
    if boxes.device.type != "cpu":
        kept, is_complete = suppress_without_waiting(boxes, groups, passed, iou=conventions.output.nms_iou, most=most)
        packed = _packed(_finished(boxes, found, kept, to_image), is_complete).cpu()
        if packed[:, -1].all():
            return unpacked(packed, most)
    result = _finished(boxes, found, suppress(boxes, groups, passed, iou=conventions.output.nms_iou, most=most), to_image)
    return result if boxes.device.type == "cpu" else unpacked(_packed(result).cpu(), most)


def detect_on_device(predictions: Predictions, to_image: "ToImage", *, size_hw: tuple[int, int], conventions: Conventions) -> Tensor:
    """:func:`detect` up to the copy to the host, on a CUDA device with Triton. All shapes are fixed and nothing is waited for, so that a
    CUDA graph can hold it.

    Returns:
        (N, values) float32 for :func:`unpacked`, on the device.
    """
    rule = conventions.output
    boxes, found, passed = _decoded(predictions, to_image, size_hw, conventions)
    kept = suppress_on_device(boxes, _groups(found, rule), passed, iou=rule.nms_iou, most=rule.max_detections)
    return _packed(_finished(boxes, found, kept, to_image))


def lasting_tensors(size_hw: tuple[int, int], conventions: Conventions, device: torch.device) -> list[Tensor]:
    """What :func:`detect_on_device` keeps from one call to the next. A CUDA graph reads it, so it must live as long as the graph."""
    levels = tuple(anchors_per_level(size_hw, conventions.anchors))
    return [make_anchors(size_hw, conventions.anchors, device), *starts_and_floors(levels, conventions.output, device), _last_pixel(device)]


def _decoded(
    predictions: Predictions, to_image: "ToImage", size_hw: tuple[int, int], conventions: Conventions
) -> tuple[Tensor, Candidates, Tensor]:
    """Boxes (N, S, 4) of the candidates, the candidates, and (N, S) bool: which of them NMS takes."""
    rule = conventions.output
    anchors = make_anchors(size_hw, conventions.anchors, predictions.logits.device)
    found = best_candidates(predictions.logits, anchors_per_level(size_hw, conventions.anchors), rule)
    boxes = decode(_rows(predictions.deltas, found.anchors).float(), _rows(anchors[None], found.anchors), conventions.boxes)
    if to_image.scales_before_nms:
        boxes = to_image.scaled(boxes)
    passed = found.is_real
    if rule.clip == "before_nms":
        boxes = to_image.clipped(boxes)
        if rule.drop_empty:
            passed = passed & _is_filled(boxes)
    # A diverged network gives boxes that are NaN or infinite. They are no detections, and NMS could not compare them.
    return boxes, found, passed & boxes.isfinite().all(dim=2)


@dataclass(frozen=True, kw_only=True)
class ToImage:
    """Clips boxes to their images, and scales them from pixels of the padded input to pixels of the original images.

    Args:
        rule: The output rule of the conventions.
        factors: (N, 4) of x1, y1, x2, y2.
        limits_hw: (N, 2) largest y and x of a clipped corner.
        last_pixel: (4,) how corners change if a box grows by one pixel, where the conventions' x2 and y2 are the last pixel.
        scales_before_nms: Whether clipping and NMS happen in pixels of the original image.
    """

    rule: OutputRule
    factors: Tensor
    limits_hw: Tensor
    last_pixel: Tensor | float
    scales_before_nms: bool

    @classmethod
    def of(cls, conventions: Conventions, size_hw: tuple[int, int], sizes_hw: Tensor, images_hw: Sequence[tuple[int, int]] | None) -> Self:
        """For one batch; the arguments are those of :func:`detect`."""
        rule, device = conventions.output, sizes_hw.device
        if images_hw is None:
            factors = torch.ones((len(sizes_hw), 4), device=device)
        else:
            factors = factors_to_images(images_hw, sizes_hw, conventions)
        scales_before_nms = images_hw is not None and rule.frame == "picture"
        if images_hw is not None and scales_before_nms:
            sizes_hw = to_device(torch.tensor(images_hw), device)
        return cls(
            rule=rule,
            factors=factors,
            limits_hw=_limits(rule, size_hw, sizes_hw),
            # A framework whose x2 and y2 are a box's last pixel clips and scales those.
            last_pixel=_last_pixel(device) if conventions.boxes.legacy_plus_one else 0.0,
            scales_before_nms=scales_before_nms,
        )

    def scaled(self, boxes: Tensor) -> Tensor:
        """Boxes (N, D, 4) in pixels of the original images."""
        return (boxes - self.last_pixel) * self.factors[:, None] + self.last_pixel

    def clipped(self, boxes: Tensor) -> Tensor:
        """Boxes (N, D, 4) inside their images."""
        return clip(boxes - self.last_pixel, self.limits_hw) + self.last_pixel


def _finished(boxes: Tensor, found: Candidates, kept: Tensor, to_image: ToImage) -> Detections:
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


def _groups(found: Candidates, rule: OutputRule) -> Tensor:
    """(N, S): boxes of equal numbers suppress each other."""
    return torch.zeros_like(found.labels) if rule.class_agnostic else found.labels


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """The rows at ``places`` (N, S) of ``values`` (N, A, 4), or of values (1, A, 4) that all images share. Faster than ``gather``."""
    num_images, number, _ = values.shape
    if num_images > 1:
        places = places + torch.arange(num_images, device=places.device)[:, None] * number
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, 4)


def _packed(result: Detections, is_complete: Tensor | None = None) -> Tensor:
    """(N, values) float32 for :func:`unpacked`, so that one copy brings all to the host. ``is_complete`` (N,) becomes the last column."""
    columns = [result.boxes.flatten(1), result.scores, result.labels.float(), result.counts[:, None].float()]  # exact up to 2^24
    return torch.cat(columns if is_complete is None else [*columns, is_complete[:, None].float()], dim=1)


def unpacked(packed: Tensor, number: int) -> Detections:
    """The detections in what :func:`detect_on_device` returned, once it is on the host.

    Args:
        packed: (N, values) float32.
        number: Largest number of detections of one image.
    """
    boxes, scores, labels, counts, _ = packed.split([4 * number, number, number, 1, packed.shape[1] - 6 * number - 1], dim=1)
    return Detections(
        boxes=boxes.reshape(-1, number, 4).contiguous(),
        scores=scores.contiguous(),
        labels=labels.long(),
        counts=counts.flatten().long(),
    )


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
