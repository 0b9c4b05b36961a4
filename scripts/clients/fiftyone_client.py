"""FiftyOne as a client: a lightened detector as torchvision's class in its ``TorchImageModel``. Not part of the tests: FiftyOne is large.

    python -m venv /tmp/fiftyone && /tmp/fiftyone/bin/pip install fiftyone .
    /tmp/fiftyone/bin/python scripts/clients/fiftyone_client.py RUN IMAGES

RUN is a model with a ResNet and torchvision's rules, such as a converted one; IMAGES is a folder. The model is lightened from its
weights alone. FiftyOne's ``TorchImageModel``, which ``dataset.apply_model`` takes, runs ``light.torchvision()`` on images without a
dataset, as that needs MongoDB; its labels are compared with those of ``result.to_fiftyone()``. Exit code 1 if they differ.
"""

import sys
from pathlib import Path
from typing import Any

import fiftyone.utils.torch as fout
import numpy as np
from torchvision.transforms.functional import to_tensor

import lw_retinanet as lw
from lw_retinanet.data.images import decode

SCORE = 0.3
ROUNDED = 0.002  # share of boxes that rounding may lift over a threshold of score or NMS on one side only


def alone(ones: Any, others: Any) -> int:
    """How many labels have none of their class and almost their box and confidence on the other side."""

    def is_near(one: Any, each: Any) -> bool:
        far = np.abs(np.subtract([*one.bounding_box, one.confidence], [*each.bounding_box, each.confidence])).max()
        return bool(one.label == each.label and far < 1e-4)

    return sum(not any(is_near(one, each) for each in others) for one in ones)


def main() -> int:
    """Apply the model to a few images and compare."""
    light = lw.lighten(lw.load(sys.argv[1], device="cpu"), "lw-v3")
    files = sorted(Path(sys.argv[2]).iterdir())[:4]
    config = fout.TorchImageModelConfig(
        {
            "model": light.torchvision(),
            "transforms": to_tensor,
            "raw_inputs": True,
            "ragged_batches": True,
            "output_processor_cls": "fiftyone.utils.torch.DetectorOutputProcessor",
            "classes": list(light.class_names),
            "confidence_thresh": SCORE,
        }
    )
    model = fout.TorchImageModel(config)
    wrong = boxes = 0
    for file in files:
        image = decode(file)
        ours, theirs = light.predict(image, score=SCORE)[0].to_fiftyone().detections, model.predict(image).detections
        boxes += len(ours)
        wrong += alone(ours, theirs) + alone(theirs, ours)
    print(f"TorchImageModel: {len(files)} images, {boxes} boxes, {wrong} without an equal in to_fiftyone()")
    return int(not boxes or wrong > ROUNDED * boxes)


if __name__ == "__main__":
    sys.exit(main())
