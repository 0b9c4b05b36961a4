"""SAHI as a client: light detectors as its torchvision type and through our adapter. Not part of the tests: SAHI is run by hand.

    python -m venv /tmp/sahi && /tmp/sahi/bin/pip install sahi '.[dev]'
    /tmp/sahi/bin/python scripts/clients/sahi_client.py RUN IMAGE

RUN is a model with a ResNet and torchvision's rules, such as a converted one; IMAGE should have over 256 pixels a side. The model is
lightened from its weights alone. SAHI slices the image with its full and its light head, each in two ways: as torchvision's class through
SAHI's own type ``torchvision``, and as a detector through ``SahiModel``. Exit code 1 if the two ways differ.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction

import lw_retinanet as lw
from lw_retinanet.data.images import decode
from lw_retinanet.interop.sahi import SahiModel

SCORE = 0.3
ROUNDED = 0.002  # share of boxes that rounding may lift over a threshold of score or NMS on one side only


def sliced(image: Any, model: Any) -> list[tuple[int, np.ndarray]]:
    """Label and box of all predictions. Only equal boxes of two slices are merged: the merging is SAHI's, and not ours to compare."""
    slices = {"slice_height": 256, "slice_width": 256, "overlap_height_ratio": 0.2, "overlap_width_ratio": 0.2}
    merging = {"postprocess_type": "NMS", "postprocess_match_metric": "IOU", "postprocess_match_threshold": 1.0}
    found = get_sliced_prediction(image, model, verbose=0, **slices, **merging)
    return [(one.category.id, np.array(one.bbox.to_xyxy())) for one in found.object_prediction_list]


def alone(ones: Any, others: Any) -> int:
    """How many boxes have none of their class within 0.05 px on the other side."""
    return sum(not any(label == wanted and np.abs(box - each).max() <= 0.05 for label, each in others) for wanted, box in ones)


def main() -> int:
    detector, image = lw.load(sys.argv[1], device="cpu"), decode(Path(sys.argv[2]))
    both = lw.lighten(detector, "lw-v3")
    wrong = 0
    for name, head in (("full", "full"), ("light", "light")):
        chosen = both.with_head(head)
        home = chosen.torchvision()
        names = {str(label): each for label, each in enumerate(detector.class_names)}
        theirs = AutoDetectionModel.from_pretrained(
            "torchvision", model=home, confidence_threshold=SCORE, category_mapping=names, device="cpu"
        )
        ours = SahiModel(model=chosen, confidence_threshold=SCORE, device="cpu")
        one, other = sliced(image, theirs), sliced(image, ours)
        unmatched = alone(one, other) + alone(other, one)
        print(
            f"{name}: SAHI's torchvision type {len(one)} boxes, SahiModel {len(other)} boxes, {unmatched} without an equal within 0.05 px"
        )
        wrong += not one or unmatched > ROUNDED * len(one)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
