"""Images for the page: the best and the worst ones with truth and detections side by side, and the labels that look wrong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.drawing import draw_boxes, encoded_jpeg
from lw_retinanet.errors import ImageError
from lw_retinanet.evaluation.diagnosis import Suspect
from lw_retinanet.page import Html, captioned, gallery, image
from lw_retinanet.reporting.evidence import Scored

_PAIR_SIDE = 560  # pixels of the longer side on the page
_CROP_SIDE = 320
_CONTEXT = 1.0  # of the box's longer side, on each side of it
_LEAST_CROP = 96  # pixels of the image


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """A gallery, and how many of its images could not be read."""

    html: Html
    unreadable: int


def pairs(scored: Scored, images: Sequence[int]) -> Gallery:
    """Images with their boxes, and beside them with their detections; what was missed or is wrong has a dashed frame and says so."""
    entries, unreadable = [], 0
    for row in images:
        try:
            pixels = scored.records.decode(row)
        except ImageError:
            unreadable += 1
            continue
        right, wrong, missed = scored.diagnosis.by_image[row]
        name = scored.records.file_names[row]
        truth, said = (
            image(encoded_jpeg(one, longest=_PAIR_SIDE), f"{what} of {name}")
            for one, what in ((_truth(scored, row, pixels), "labels"), (_said(scored, row, pixels), "detections"))
        )
        entries.append(captioned(f"{name}: {right} right, {wrong} wrong, {missed} missed. Labels, then detections.", truth, said))
    return Gallery(html=gallery(entries, are_pairs=True), unreadable=unreadable)


def crops(scored: Scored, suspects: Sequence[Suspect]) -> Gallery:
    """The places of labels that look wrong, with what is around them."""
    entries, unreadable = [], 0
    for one in suspects:
        try:
            pixels = scored.records.decode(one.image)
        except ImageError:
            unreadable += 1
            continue
        name = scored.records.file_names[one.image]
        content = encoded_jpeg(_crop(scored, one, pixels), longest=_CROP_SIDE)
        entries.append(captioned(f"{name}: {describe(scored, one)}", image(content, f"{one.kind} in {name}")))
    return Gallery(html=gallery(entries), unreadable=unreadable)


def describe(scored: Scored, one: Suspect) -> str:
    """What is odd about a label."""
    names = scored.records.class_names
    if one.kind == "never found":
        return f"label {names[one.label]}, nothing found near it"
    label = "no label" if one.labelled is None else f"label {names[one.labelled]}"
    return f"{label}, {names[one.label]} found ({one.score:.2f})"


def _truth(scored: Scored, row: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    records, rows = scored.records, scored.records.rows(row)
    remarks = ["(missed)" if missed else "" for missed in scored.diagnosis.is_missed[rows]]
    ignored = records.is_ignored[rows]
    return draw_boxes(pixels, records.boxes(row), records.labels[rows], records.class_names, crowd=ignored, remarks=remarks)


def _said(scored: Scored, row: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    found, said = scored.detections, scored.diagnosis
    rows = np.flatnonzero((found.image == row) & (said.is_right | said.is_wrong))
    remarks = ["(wrong)" if wrong else "" for wrong in said.is_wrong[rows]]
    names = scored.records.class_names
    return draw_boxes(pixels, _xyxy(found.boxes_xywh[rows]), found.labels[rows], names, found.scores[rows], remarks=remarks)


def _crop(scored: Scored, one: Suspect, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    x, y, width, height = one.box_xywh
    half = max(max(width, height) * (0.5 + _CONTEXT), _LEAST_CROP / 2)
    left, top = (max(0, int(value - half)) for value in (x + width / 2, y + height / 2))
    part = pixels[top : int(y + height / 2 + half) + 1, left : int(x + width / 2 + half) + 1]
    if not part.size:  # a box outside its image
        part, left, top = pixels, 0, 0
    box = _xyxy(np.array([one.box_xywh])) - np.array([left, top, left, top])
    zoom = max(1, _CROP_SIDE // max(part.shape[:2]))
    return draw_boxes(part, box, [one.label], scored.records.class_names, None if one.score is None else [one.score], zoom=zoom)


def _xyxy(boxes_xywh: NDArray[np.float64]) -> NDArray[np.float64]:
    boxes = boxes_xywh.copy().reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
