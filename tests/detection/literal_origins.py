"""What each framework does between an image and its boxes, one number after the other, written from the tables of their conventions.

Slow on purpose, in double precision, and sharing nothing with the package: a second opinion. A framework is three functions: ``*_size``
and ``*_input`` make the network's input of a picture, ``*_boxes`` the detections of the head's maps.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
Picture = NDArray[np.uint8]
Box = tuple[float, float, float, float]

MAX_LOG = math.log(1000 / 16)
IOU = 0.5
CANDIDATES = 1000


class Maps(NamedTuple):
    """What the head says of one level, in the framework's own channel order: (A * K, H, W) logits, (A * 4, H, W) deltas."""

    logits: Array
    deltas: Array


class Sized(NamedTuple):
    """Height and width of the resized image, and the scale that led to them."""

    size_hw: tuple[int, int]
    scale: float


class Prepared(NamedTuple):
    """Network input (3, H, W), height and width of the image inside it, and the scale that the framework remembers."""

    values: Array
    size_hw: tuple[int, int]
    scale: float


class Found(NamedTuple):
    """One detection as the framework writes it into a results file: x, y, width, height in the image."""

    label: int
    score: float
    box_xywh: Box


class Candidate(NamedTuple):
    score: float
    label: int
    box: Box


# --- resizing and normalising ---


def bilinear(picture: Picture, size_hw: tuple[int, int], step_y: float, step_x: float) -> Array:
    """Each pixel a mixture of four, ``step`` source pixels apart; no filter, nothing beyond the border."""
    height, width = picture.shape[:2]
    values = picture.astype(np.float64)
    rows = np.zeros((size_hw[0], width, 3))
    for row in range(size_hw[0]):
        y = min(max((row + 0.5) * step_y - 0.5, 0.0), height - 1.0)
        top = int(y)
        rows[row] = values[top] * (1 - (y - top)) + values[min(top + 1, height - 1)] * (y - top)
    result = np.zeros((*size_hw, 3))
    for column in range(size_hw[1]):
        x = min(max((column + 0.5) * step_x - 0.5, 0.0), width - 1.0)
        left = int(x)
        result[:, column] = rows[:, left] * (1 - (x - left)) + rows[:, min(left + 1, width - 1)] * (x - left)
    return result


def pillow(picture: Picture, size_hw: tuple[int, int]) -> Array:
    resized = Image.fromarray(picture).resize((size_hw[1], size_hw[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized).astype(np.float64)


def prepared(rows: Array, mean: Sequence[float], std: Sequence[float], multiple: int, scale: float) -> Prepared:
    """(H, W, 3) in the network's channel order -> normalised, zeros around it up to a multiple."""
    height, width = rows.shape[:2]
    values = np.zeros((3, math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple))
    for channel in range(3):
        values[channel, :height, :width] = (rows[:, :, channel] - mean[channel]) / std[channel]
    return Prepared(values, (height, width), scale)


IMAGENET_BGR = (103.53, 116.28, 123.675)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def torchvision_size(height: int, width: int, short: int, long: int) -> Sized:
    scale = min(short / min(height, width), long / max(height, width))
    return Sized((math.floor(height * scale), math.floor(width * scale)), scale)


def torchvision_input(picture: Picture, sized: Sized) -> Prepared:
    (height, width), (new_h, new_w) = picture.shape[:2], sized.size_hw
    resized = bilinear(picture, sized.size_hw, height / new_h, width / new_w)
    return prepared(resized / 255, IMAGENET_MEAN, IMAGENET_STD, 32, sized.scale)


def detectron2_size(height: int, width: int, short: int, long: int) -> Sized:
    scale = short / min(height, width)
    new_h, new_w = (float(short), scale * width) if height < width else (scale * height, float(short))
    if max(new_h, new_w) > long:
        shrink = long / max(new_h, new_w)
        new_h, new_w = new_h * shrink, new_w * shrink
    return Sized((int(new_h + 0.5), int(new_w + 0.5)), scale)


def detectron2_input(picture: Picture, sized: Sized) -> Prepared:
    return prepared(pillow(picture, sized.size_hw)[:, :, ::-1], IMAGENET_BGR, (1, 1, 1), 32, sized.scale)


def mmdet_size(height: int, width: int, short: int, long: int) -> Sized:
    scale = min(long / max(height, width), short / min(height, width))
    return Sized((int(height * scale + 0.5), int(width * scale + 0.5)), scale)


def _whole_levels(picture: Picture, size_hw: tuple[int, int]) -> Array:
    resized = bilinear(picture, size_hw, picture.shape[0] / size_hw[0], picture.shape[1] / size_hw[1])
    return np.floor(resized + 0.5)


def mmdet_input(picture: Picture, sized: Sized) -> Prepared:
    resized = _whole_levels(picture, sized.size_hw)
    return prepared(resized, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), 32, sized.scale)


def mmdet_caffe_input(picture: Picture, sized: Sized) -> Prepared:
    return prepared(_whole_levels(picture, sized.size_hw)[:, :, ::-1], IMAGENET_BGR, (1, 1, 1), 32, sized.scale)


def odtk_size(height: int, width: int, short: int, long: int) -> Sized:
    ratio = short / min(height, width)
    if ratio * max(height, width) > long:
        ratio = long / max(height, width)
    return Sized((int(ratio * height), int(ratio * width)), ratio)


def odtk_input(picture: Picture, sized: Sized) -> Prepared:
    return prepared(pillow(picture, sized.size_hw) / 255, IMAGENET_MEAN, IMAGENET_STD, 128, sized.scale)


def caffe2_size(height: int, width: int, short: int, long: int) -> Sized:
    scale = short / min(height, width)
    if np.round(scale * max(height, width)) > long:
        scale = long / max(height, width)
    return Sized((int(np.round(height * scale)), int(np.round(width * scale))), scale)


def caffe2_input(picture: Picture, sized: Sized) -> Prepared:
    resized = bilinear(picture, sized.size_hw, 1 / sized.scale, 1 / sized.scale)
    return prepared(resized[:, :, ::-1], (102.9801, 115.9465, 122.7717), (1, 1, 1), 128, sized.scale)


# --- anchors of one cell, as corners around the place that its row and column are multiplied to ---


def torchvision_cell(level: int) -> list[Box]:
    base = 32 * 2**level
    boxes = []
    for ratio in (0.5, 1.0, 2.0):
        for size in (base, int(base * 2 ** (1 / 3)), int(base * 2 ** (2 / 3))):
            height = size * math.sqrt(ratio)
            width = size / math.sqrt(ratio)
            x, y = float(np.round(width / 2)), float(np.round(height / 2))
            boxes.append((-x, -y, x, y))
    return boxes


def detectron2_cell(level: int) -> list[Box]:
    boxes = []
    for octave in range(3):
        for ratio in (0.5, 1.0, 2.0):
            area = (32 * 2**level * 2 ** (octave / 3)) ** 2
            width = math.sqrt(area / ratio)
            height = ratio * width
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return boxes


def mmdet_cell(level: int) -> list[Box]:
    boxes = []
    for ratio in (0.5, 1.0, 2.0):
        for octave in range(3):
            side = 8 * 2**level * 4 * 2 ** (octave / 3)
            width, height = side / math.sqrt(ratio), side * math.sqrt(ratio)
            boxes.append((-width / 2, -height / 2, width / 2, height / 2))
    return boxes


def odtk_cell(level: int) -> list[Box]:
    stride = 8 * 2**level
    boxes = []
    for octave in range(3):
        for ratio in (1.0, 2.0, 0.5):
            scale = 4 * 2 ** (octave / 3)
            width = math.sqrt(stride * stride / ratio)
            height = width * ratio
            boxes.append(
                (
                    0.5 * (stride - width * scale),
                    0.5 * (stride - height * scale),
                    0.5 * (stride + width * scale),
                    0.5 * (stride + height * scale),
                )
            )
    return boxes


def caffe2_cell(level: int) -> list[Box]:
    stride = 8 * 2**level
    middle = (stride - 1) / 2
    boxes = []
    for octave in range(3):
        for ratio in (1.0, 2.0, 0.5):
            width = float(np.round(math.sqrt(stride * stride / ratio)))
            height = float(np.round(width * ratio))
            width, height = width * 4 * 2 ** (octave / 3), height * 4 * 2 ** (octave / 3)
            boxes.append((middle - 0.5 * (width - 1), middle - 0.5 * (height - 1), middle + 0.5 * (width - 1), middle + 0.5 * (height - 1)))
    return boxes


# --- from maps to boxes ---


def decoded(anchor: Box, deltas: Array, plus_one: float, lowest: float, highest: float) -> Box:
    width, height = anchor[2] - anchor[0] + plus_one, anchor[3] - anchor[1] + plus_one
    x, y = anchor[0] + 0.5 * width + float(deltas[0]) * width, anchor[1] + 0.5 * height + float(deltas[1]) * height
    width *= math.exp(min(max(float(deltas[2]), lowest), highest))
    height *= math.exp(min(max(float(deltas[3]), lowest), highest))
    return x - 0.5 * width, y - 0.5 * height, x + 0.5 * width - plus_one, y + 0.5 * height - plus_one


def candidates(
    maps: Sequence[Maps],
    cell: Callable[[int], list[Box]],
    steps: Sequence[tuple[int, int]],
    thresholds: Sequence[float],
    decode: Callable[[Box, Array], Box],
) -> list[Candidate]:
    """The best pairs of each level that pass its threshold, decoded; ``steps`` are pixels down and to the right from cell to cell."""
    found = []
    for level, (logits, deltas) in enumerate(maps):
        anchors = cell(level)
        num_classes = logits.shape[0] // len(anchors)
        passed = []
        for channel in range(logits.shape[0]):
            for row in range(logits.shape[1]):
                for column in range(logits.shape[2]):
                    score = 1 / (1 + math.exp(-logits[channel, row, column]))
                    if score > thresholds[level]:
                        passed.append((score, channel, row, column))
        for score, channel, row, column in sorted(passed, reverse=True)[:CANDIDATES]:
            number, label = channel // num_classes, channel % num_classes
            y, x = row * steps[level][0], column * steps[level][1]
            x1, y1, x2, y2 = anchors[number]
            box = decode((x1 + x, y1 + y, x2 + x, y2 + y), deltas[4 * number : 4 * number + 4, row, column])
            found.append(Candidate(score, label, box))
    return found


def suppressed(boxes: list[Candidate], plus_one: float) -> list[Candidate]:
    """Class-wise NMS, the best first."""
    kept: list[Candidate] = []
    for candidate in sorted(boxes, key=lambda box: -box.score):
        if all(other.label != candidate.label or overlap(other.box, candidate.box, plus_one) <= IOU for other in kept):
            kept.append(candidate)
    return kept


def overlap(one: Box, other: Box, plus_one: float) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0]) + plus_one
    height = min(one[3], other[3]) - max(one[1], other[1]) + plus_one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + plus_one) * (box[3] - box[1] + plus_one) for box in (one, other)]
    return width * height / (areas[0] + areas[1] - width * height)


def clipped(box: Box, right: float, bottom: float) -> Box:
    return min(max(box[0], 0), right), min(max(box[1], 0), bottom), min(max(box[2], 0), right), min(max(box[3], 0), bottom)


def scaled(box: Box, x: float, y: float) -> Box:
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def is_filled(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def written(boxes: list[Candidate], plus_one: float) -> list[Found]:
    return [Found(label, score, (box[0], box[1], box[2] - box[0] + plus_one, box[3] - box[1] + plus_one)) for score, label, box in boxes]


FIXED_STEPS = [(stride, stride) for stride in (8, 16, 32, 64, 128)]


def torchvision_boxes(maps: Sequence[Maps], inputs: Prepared, picture_hw: tuple[int, int]) -> list[Found]:
    padded_h, padded_w = inputs.values.shape[1:]
    steps = [(padded_h // level.logits.shape[1], padded_w // level.logits.shape[2]) for level in maps]
    found = candidates(maps, torchvision_cell, steps, [0.05] * 5, lambda anchor, deltas: decoded(anchor, deltas, 0, -math.inf, MAX_LOG))
    height, width = inputs.size_hw
    found = [Candidate(score, label, clipped(box, width, height)) for score, label, box in found]
    kept = suppressed(found, 0)[:300]
    return written([Candidate(s, k, scaled(box, picture_hw[1] / width, picture_hw[0] / height)) for s, k, box in kept], 0)


def detectron2_boxes(maps: Sequence[Maps], inputs: Prepared, picture_hw: tuple[int, int]) -> list[Found]:
    found = candidates(
        maps, detectron2_cell, FIXED_STEPS, [0.05] * 5, lambda anchor, deltas: decoded(anchor, deltas, 0, -math.inf, MAX_LOG)
    )
    kept = suppressed(found, 0)[:100]
    x, y = picture_hw[1] / inputs.size_hw[1], picture_hw[0] / inputs.size_hw[0]
    kept = [Candidate(s, k, clipped(scaled(box, x, y), picture_hw[1], picture_hw[0])) for s, k, box in kept]
    return written([candidate for candidate in kept if is_filled(candidate.box)], 0)


def mmdet_boxes(maps: Sequence[Maps], inputs: Prepared, picture_hw: tuple[int, int]) -> list[Found]:
    found = candidates(maps, mmdet_cell, FIXED_STEPS, [0.05] * 5, lambda anchor, deltas: decoded(anchor, deltas, 0, -MAX_LOG, MAX_LOG))
    height, width = inputs.size_hw
    x, y = picture_hw[1] / width, picture_hw[0] / height
    found = [Candidate(score, label, scaled(clipped(box, width, height), x, y)) for score, label, box in found]
    return written(suppressed([candidate for candidate in found if is_filled(candidate.box)], 0)[:100], 0)


def odtk_boxes(maps: Sequence[Maps], inputs: Prepared, picture_hw: tuple[int, int]) -> list[Found]:
    padded_h, padded_w = inputs.values.shape[1:]
    steps = [(padded_w // level.logits.shape[2],) * 2 for level in maps]
    found = candidates(maps, odtk_cell, steps, [0.05] * 5, lambda anchor, deltas: decoded(anchor, deltas, 1, -math.inf, math.inf))
    found = [Candidate(score, label, clipped(box, padded_w - 1, padded_h - 1)) for score, label, box in found]
    kept = suppressed(found, 1)[:100]
    return written([Candidate(score, label, scaled(box, 1 / inputs.scale, 1 / inputs.scale)) for score, label, box in kept], 1)


def caffe2_boxes(maps: Sequence[Maps], inputs: Prepared, picture_hw: tuple[int, int]) -> list[Found]:
    thresholds = [0.05, 0.05, 0.05, 0.05, 0.0]
    found = candidates(maps, caffe2_cell, FIXED_STEPS, thresholds, lambda anchor, deltas: decoded(anchor, deltas, 1, -math.inf, MAX_LOG))
    height, width = picture_hw
    back = 1 / inputs.scale
    found = [Candidate(score, label, clipped(scaled(box, back, back), width - 1, height - 1)) for score, label, box in found]
    return written(suppressed(found, 1)[:100], 1)
