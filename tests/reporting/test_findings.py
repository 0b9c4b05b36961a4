"""Each rule speaks when the numbers say so, and only then."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lw_retinanet.evaluation.diagnosis import Bin, Diagnosis, ErrorKind, SizeRecall, Suspect
from lw_retinanet.evaluation.paired import Estimate
from lw_retinanet.reporting.evidence import Evidence
from lw_retinanet.reporting.findings import findings

KINDS = ("class", "location", "class and location", "duplicate", "background", "missed")


def diagnosis(**changes: Any) -> Diagnosis:
    """Of a detector without anything to say about."""
    values: dict[str, Any] = {
        "score": 0.3,
        "precision": 0.9,
        "recall": 0.8,
        "errors": tuple(ErrorKind(name, 1, 0.01) for name in KINDS),
        "confusion": np.diag([5, 5, 0]),
        "bins": (Bin(10, 0.9, 0.9),),
        "calibration_error": 0.02,
        "by_image": np.zeros((30, 3), np.int64),
        "is_right": np.zeros(0, bool),
        "is_wrong": np.zeros(0, bool),
        "is_missed": np.zeros(0, bool),
        "sizes": (SizeRecall("small", 20, 16), SizeRecall("medium", 50, 40), SizeRecall("large", 30, 24)),
        "suspects": (),
        "trusted_score": 0.6,
    }
    return Diagnosis(**values | changes)


def records(boxes: tuple[int, int] = (80, 90), shared: int = 0, side: float = 60.0) -> Any:
    return SimpleNamespace(
        class_names=("fish", "ray"),
        categories=("fish", "ray"),
        num_images=30,
        labels=np.repeat([0, 1], boxes),
        is_ignored=np.zeros(sum(boxes), bool),
        image_of_box=np.arange(sum(boxes)) % 30,
        sizes_hw=np.full((30, 2), 640),
        boxes_xywh=np.tile([0.0, 0.0, side, side], (sum(boxes), 1)),
        shared_images=lambda _: shared,
    )


def evidence(
    *,
    aps: tuple[float, ...] = (0.3, 0.4, 0.5, 0.5),
    said: Diagnosis | None = None,
    ap50: float = 0.7,
    ray: float = 0.35,
    side: float = 60.0,
    interval: tuple[float, float] | None = (0.49, 0.51),
    boxes: tuple[int, int] = (80, 90),
    shared: int = 0,
    settings: dict[str, Any] | None = None,
    **changes: Any,
) -> Evidence:
    """A run whose evaluations gave ``aps``; class ``ray`` is found worse than the mean."""
    scored: Any = SimpleNamespace(
        records=records(side=side),
        diagnosis=said or diagnosis(),
        metrics=SimpleNamespace(
            AP=aps[-1], AP50=ap50, per_class=[SimpleNamespace(name="fish", AP=aps[-1] + 0.1), SimpleNamespace(name="ray", AP=ray)]
        ),
        estimates={} if interval is None else {"AP": Estimate(value=aps[-1], low=interval[0], high=interval[1])},
    )
    values: dict[str, Any] = {
        "folder": Path("run"),
        "settings": settings or {"model": {"backbone_weights": "imagenet"}, "data": {"image_size": 416}, "train": {"epochs": 12}},
        "notes": {},
        "log": [{"step": 10 * step, "AP": ap} for step, ap in enumerate(aps, start=1)] + [{"step": 10 * len(aps), "loss": 1.0}],
        "is_written": False,
        "source": None,
        "train": records(boxes, shared),
        "held_out": records(),
        "scored": scored,
        "model": SimpleNamespace(record=SimpleNamespace(conventions=SimpleNamespace(input=SimpleNamespace(size=416)))),
        "missing": (),
    }
    return Evidence(**values | changes)


def suspect(kind: Any) -> Suspect:
    return Suspect(kind, 0, (0, 0, 1, 1), 0, None, 0.9)


def costs(name: str) -> tuple[ErrorKind, ...]:
    return tuple(ErrorKind(kind, 7, 0.08 if kind == name else 0.01) for kind in KINDS)


RISING = (0.1, 0.2, 0.3, 0.32)
SMALL = (SizeRecall("small", 100, 20), SizeRecall("medium", 50, 40), SizeRecall("large", 30, 20))
CONFUSED = np.array([[5, 4, 0], [1, 5, 0], [0, 0, 0]])
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"shared": 3}, "3 of 30 validation images are training images", "Keep them apart"),
    ({"settings": {"model": {"backbone_weights": "none"}}}, "random weights", "backbone_weights=imagenet"),
    ({"aps": RISING}, "AP still rises: by 2.0 points", "train.epochs=24"),
    ({"aps": RISING, "settings": {"train": {"steps": 40}}}, "AP still rises", "train.steps=80"),
    ({"aps": (0.1, 0.5, 0.4, 0.3)}, "best after 20 of 40 steps (50.0) and has fallen to 30.0", "train.steps=20"),
    ({"ap50": 0.005}, "next to nothing", "train longer"),
    ({"model": None, "scored": None}, "not finished: 40 steps", "Resume"),
    ({"model": None, "scored": None, "is_written": True}, "not finished", "Wait"),
    ({"said": diagnosis(suspects=(suspect("no label"), suspect("other class")))}, "2 labels look wrong", "put right"),
    ({"said": diagnosis(sizes=SMALL)}, "80 of 100 missed boxes", "data.image_size=608 in place of 416"),
    ({"said": diagnosis(errors=costs("class"), confusion=CONFUSED)}, "“class”", "fish is taken for ray (4 times)"),
    ({"said": diagnosis(errors=costs("location"))}, "8.0 points higher", "not tight enough"),
    ({"said": diagnosis(errors=costs("duplicate"))}, "“duplicate”", "smaller nms"),
    ({"said": diagnosis(errors=costs("background"))}, "“background”", "images without any object"),
    ({"said": diagnosis(errors=costs("missed"))}, "“missed”", "worst images"),
    ({"said": diagnosis(errors=costs("class and location"))}, "“class and location”", "worst images"),
    ({"boxes": (80, 12)}, "ray (12 boxes, AP 35.0)", "Add images"),
    ({"ray": 0.2}, "ray is found far worse than the other classes: AP 20.0, the mean is 50.0", "table of classes"),
    (
        {"ray": 0.2, "side": 20.0},
        "ray is found far worse",
        "13 pixels large in the resized image (median): train at a larger size (data.im",
    ),
    ({"said": diagnosis(score=0.55)}, "from is 0.55 (precision 90%, recall 80%), not 0.3", "score=0.55"),
    ({"said": diagnosis(calibration_error=0.2, bins=(Bin(10, 0.3, 0.6),))}, "Scores are below", "not as probabilities"),
    ({"said": diagnosis(calibration_error=0.2, bins=(Bin(10, 0.9, 0.6),))}, "Scores are above", "not as probabilities"),
    ({"interval": (0.4, 0.6)}, "between 40.0 and 60.0 on 30 images", "chance"),
    ({"interval": None}, "30 images, too few", "validation images"),
]


def test_a_run_without_faults_has_no_finding() -> None:
    assert findings(evidence()) == []


@pytest.mark.parametrize(("changes", "what", "do"), CASES)
def test_a_finding(changes: dict[str, Any], what: str, do: str) -> None:
    [found] = findings(evidence(**changes))
    assert what in found.what
    assert do in found.do


@pytest.mark.parametrize(
    "changes",
    [
        {"aps": (0.3, 0.4, 0.5)},  # too few evaluations for a trend
        {"aps": (0.3, 0.51, 0.5, 0.5)},  # less than chance
        {"said": diagnosis(suspects=(suspect("never found"),) * 9)},  # hard objects are no wrong labels
        {"said": diagnosis(sizes=(SizeRecall("small", 100, 80), SizeRecall("medium", 5, 4), SizeRecall("large", 0, 0)))},  # as the others
        {"said": diagnosis(sizes=(SizeRecall("small", 10, 0), SizeRecall("medium", 50, 30), SizeRecall("large", 30, 20)))},  # few of them
        {"boxes": (12, 80)},  # few boxes, but found well
        {"said": diagnosis(score=0.55, recall=0.0)},  # nothing is found, so no score is best
        {"settings": {"model": {"backbone_weights": "none", "start": "a.safetensors"}}},
    ],
)
def test_no_finding(changes: dict[str, Any]) -> None:
    assert findings(evidence(**changes)) == []


def test_what_spoils_the_numbers_comes_first() -> None:
    found = findings(evidence(shared=1, said=diagnosis(suspects=(suspect("no label"),), errors=costs("class"))))
    assert [one.section for one in found] == ["data", "labels", "errors"]
