"""Predictions -> detections: the best candidates of each level, decoding, clipping, NMS, and back to the picture's pixels."""

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
from lw_retinanet.models.candidates import best_candidates
from lw_retinanet.models.suppression import suppress, suppress_without_waiting
from lw_retinanet.structures import Detections, Predictions


def detect(
    predictions: Predictions,
    *,
    size_hw: tuple[int, int],
    sizes_hw: Tensor,
    conventions: Conventions,
    pictures_hw: Sequence[tuple[int, int]] | None = None,
) -> Detections:
    """Turn predictions into boxes.

    Args:
        predictions: of a padded input of ``size_hw``.
        size_hw: height and width of the padded input.
        sizes_hw: (N, 2) height and width of each resized picture inside it.
        conventions: of the weights.
        pictures_hw: N original heights and widths; None where pictures and input have the same pixels.

    Returns:
        Detections, the best first, in pixels of the original pictures where ``pictures_hw`` is given, else of the padded input. Corners
        x2, y2 are where the last pixel ends, also for origins whose own corners are that pixel. On the CPU, wherever the predictions are:
        the copy at the end is the one moment at which the host waits for the device.
    """
    rule = conventions.output
    anchors = make_anchors(size_hw, conventions.anchors, predictions.logits.device)
    found = best_candidates(predictions.logits, anchors_per_level(size_hw, conventions.anchors), rule)
    boxes = decode(_rows(predictions.deltas, found.anchors).float(), _rows(anchors[None], found.anchors), conventions.boxes)
    # Where the origin's corners are its boxes' last pixels, those are what it clips and scales.
    last_pixel = _last_pixel(anchors.device) if conventions.boxes.legacy_plus_one else 0.0
    factors: Tensor | float = 1.0
    limits_hw = _limits(rule, size_hw, sizes_hw)
    if pictures_hw is not None:
        factors = factors_to_pictures(pictures_hw, sizes_hw, conventions)[:, None]
        if rule.frame == "picture":
            boxes = (boxes - last_pixel) * factors + last_pixel
            limits_hw = _limits(rule, size_hw, to_device(torch.tensor(pictures_hw), anchors.device))
    passed = found.is_real
    if rule.clip == "before_nms":
        boxes = clip(boxes - last_pixel, limits_hw) + last_pixel
        if rule.drop_empty:
            passed = passed & _is_filled(boxes)
    # A box of a diverged network may be NaN or infinite: no detection, and no poison for the comparisons of NMS.
    passed = passed & boxes.isfinite().all(dim=2)

    def finished(kept: Tensor) -> Detections:
        is_kept, rows = kept >= 0, kept.clamp(min=0)
        if boxes.shape[1] == 0:
            return _nothing(len(boxes), rule.max_detections)
        result = Detections(
            boxes=boxes.gather(1, rows[..., None].expand(-1, -1, 4)),
            scores=found.scores.gather(1, rows) * is_kept,
            labels=found.labels.gather(1, rows).where(is_kept, -1),
            counts=is_kept.sum(dim=1),
        )
        if rule.clip == "after_nms":
            result = replace(result, boxes=clip(result.boxes - last_pixel, limits_hw) + last_pixel)
            if rule.drop_empty:
                result = _without_empty(result)
        if rule.frame == "input":
            result = replace(result, boxes=(result.boxes - last_pixel) * factors + last_pixel)
        return replace(result, boxes=result.boxes.where((result.labels >= 0)[..., None], 0.0))

    if boxes.device.type != "cpu":
        kept, is_complete = suppress_without_waiting(boxes, found.labels, passed, iou=rule.nms_iou, most=rule.max_detections)
        result, all_complete = _on_host(finished(kept), is_complete)
        if all_complete:
            return result
    kept = suppress(boxes, found.labels, passed, iou=rule.nms_iou, most=rule.max_detections)
    return _on_host(finished(kept), None)[0]


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """(N, S, 4): of (N, A, 4), or of one (1, A, 4) for all images, the rows at (N, S). Three times as fast as ``gather``."""
    num_images, number, _ = values.shape
    if num_images > 1:
        places = places + torch.arange(num_images, device=places.device)[:, None] * number
    return values.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, 4)


def _on_host(result: Detections, is_complete: Tensor | None) -> tuple[Detections, bool]:
    """All of it by one copy, which is where the host waits for the device."""
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
    """(4,) what a pixel more or less changes in a box's corners."""
    return torch.tensor([0.0, 0.0, 1.0, 1.0], device=device)


def _limits(rule: OutputRule, size_hw: tuple[int, int], sizes_hw: Tensor) -> Tensor:
    """(N, 2) largest y and x that corners may have."""
    if rule.clip_to == "padded_minus_one":
        return torch.stack([torch.full_like(sizes_hw[:, 0], side - 1) for side in size_hw], dim=1)
    return sizes_hw - 1 if rule.clip_to == "picture_minus_one" else sizes_hw


def factors_to_pictures(pictures_hw: Sequence[tuple[int, int]], sizes_hw: Tensor, conventions: Conventions) -> Tensor:
    """(N, 4) factors of x1, y1, x2, y2 from input to picture pixels."""
    if conventions.output.scale_back == "uniform":
        factors = [1 / resize_scale(picture_hw, conventions.input) for picture_hw in pictures_hw]
        return to_device(torch.tensor(factors, dtype=torch.float32), sizes_hw.device)[:, None].expand(-1, 4)
    return (to_device(torch.tensor(pictures_hw), sizes_hw.device) / sizes_hw).float().flip(1).repeat(1, 2)


def _is_filled(boxes: Tensor) -> Tensor:
    """(N, D) bool: wider and higher than nothing."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


def _without_empty(detections: Detections) -> Detections:
    """The rest moves up, in order."""
    is_kept = _is_filled(detections.boxes) & (detections.labels >= 0)
    order = torch.argsort(is_kept.int(), dim=1, descending=True, stable=True)
    is_kept = is_kept.gather(1, order)
    return Detections(
        boxes=detections.boxes.gather(1, order[..., None].expand(-1, -1, 4)) * is_kept[..., None],
        scores=detections.scores.gather(1, order) * is_kept,
        labels=detections.labels.gather(1, order).where(is_kept, -1),
        counts=is_kept.sum(dim=1),
    )
