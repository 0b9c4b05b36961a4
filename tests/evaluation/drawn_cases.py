"""Data sets and detections drawn at random, and what pycocotools makes of them."""

import contextlib
import copy
import io
from typing import Any, NamedTuple

import pytest
from hypothesis import strategies as st

from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.detections import DetectionTable

Row = tuple[int, int, tuple[float, float, float, float], float]

# Few sites and sizes: overlaps that hit an IoU level exactly, tied scores, areas on the borders 32^2 and 96^2.
_sites = st.sampled_from([0.0, 4.0, 10.0, 13.5, 40.0, 100.0])
_sides = st.sampled_from([0.0, 1.0, 9.5, 10.0, 20.0, 31.9, 32.0, 33.0, 96.0, 97.0])
_boxes_xywh = st.tuples(_sites, _sites, _sides, _sides)
_scores = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.9, 1.0]), st.floats(0, 1))
_seldom = st.sampled_from([False, False, False, True])


class Case(NamedTuple):
    """Arguments of ``Box`` and of :func:`table`, image ids in any order, category ids."""

    truth: list[dict[str, Any]]
    rows: list[Row]
    image_ids: list[int]
    category_ids: list[int]


@st.composite
def cases(draw: st.DrawFn, *, has_difficult: bool = False, tied_scores: bool = True, min_rows: int = 0) -> Case:
    """With difficult boxes only if asked for: pycocotools knows none. ``tied_scores=False`` ranks all detections."""
    image_ids = draw(st.lists(st.integers(0, 10**12), min_size=1, max_size=5, unique=True))
    category_ids = draw(st.lists(st.integers(0, 1000), min_size=1, max_size=3, unique=True).map(sorted))
    images, labels = st.integers(0, len(image_ids) - 1), st.integers(0, len(category_ids) - 1)
    box = {
        "image": images,
        "label": labels,
        "xywh": _boxes_xywh,
        "crowd": _seldom,
        "difficult": _seldom if has_difficult else st.just(False),
        "area": st.sampled_from([None, None, 0.0, 1023.9, 1024.0, 9216.0, 9216.1]),
    }
    truth: list[dict[str, Any]] = draw(st.lists(st.fixed_dictionaries(box), max_size=14))
    rows: list[Row] = draw(st.lists(st.tuples(images, labels, _boxes_xywh, _scores), min_size=min_rows, max_size=20))
    for entry in truth:  # a detector that works, and sometimes says it twice
        for _ in range(draw(st.sampled_from([0, 1, 1, 2]))):
            x, y, w, h = entry["xywh"]
            rows.append((entry["image"], entry["label"], (x + draw(st.sampled_from([0.0, 1.0])), y, w, h), draw(_scores)))
    if draw(st.integers(0, 4)) == 0:  # more than 100 detections of one image and class
        row = draw(st.tuples(images, labels, _boxes_xywh, _scores))
        rows[draw(st.integers(0, len(rows))) : 0] = [row] * draw(st.integers(95, 120))
    if not tied_scores:
        rows = [(*row[:3], float(score)) for row, score in zip(rows, draw(st.permutations(range(len(rows)))), strict=True)]
    return Case(truth, rows, image_ids, category_ids)


def table(*rows: Row) -> DetectionTable:
    """From (image, label, xywh, score)."""
    if not rows:
        return DetectionTable.empty()
    images, labels, boxes, scores = zip(*rows, strict=True)
    return DetectionTable.from_arrays(images, boxes, scores, labels)


def built(case: Case, box: Any, make_records: Any) -> tuple[Records, DetectionTable]:
    """A case by means of the fixtures ``box`` and ``make_records``."""
    categories = [(key, f"c{key}") for key in case.category_ids]
    return make_records([box(**entry) for entry in case.truth], image_ids=case.image_ids, categories=categories), table(*case.rows)


def pycocotools_evaluation(records: Records, detections: DetectionTable, ground_truth: dict[str, Any]) -> Any:
    """Its ``COCOeval``, summarised; the test is skipped where it is not installed."""
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    arrays = (detections.image, detections.labels, detections.boxes_xywh, detections.scores)
    results = [
        {"image_id": records.image_ids[image], "category_id": records.category_ids[label], "bbox": box, "score": score}
        for image, label, box, score in zip(*(array.tolist() for array in arrays), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        reference = coco.COCO()
        reference.dataset = copy.deepcopy(ground_truth)
        reference.createIndex()
        evaluation = cocoeval.COCOeval(reference, reference.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation
