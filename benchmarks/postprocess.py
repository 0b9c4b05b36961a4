"""Post-processing on dense scores: ours against torchvision's ``RetinaNet.postprocess_detections``, on the same tensors.

    OMP_NUM_THREADS=2 python benchmarks/postprocess.py [--size 800] [--classes 80] [--candidates 5000] [--rounds 30] [--batch 1] [--json]

Predictions are made up: objects of all sizes, around each of which many anchors answer with its class and nearly its box, until as many
(anchor, class) pairs as asked for have a score above 0.05; the rest lies far below. Parity comes first: the same labels, scores within
1e-5, boxes within 0.05 px. If it fails, nothing is timed and the exit code is 1.
"""

import argparse
import json
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from lw_retinanet.benchmarking.machine import machine
from lw_retinanet.boxes import encode
from lw_retinanet.counting.rounds import ratio_interval, summary, take_turns
from lw_retinanet.models.anchors import anchors_per_level, feature_sizes, make_anchors
from lw_retinanet.models.postprocess import detect
from lw_retinanet.structures import Predictions
from lw_retinanet.weights.foreign.torchvision import TORCHVISION_V1

BOX, SCORE = 0.05, 1e-5
WARM_UP = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--candidates", type=int, default=5000, help="pairs over 0.05 in each image")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    a = parser.parse_args()
    size_hw = (a.size, a.size)
    before = machine(torch.device("cpu"))
    drawn = [dense(size_hw, a.classes, a.candidates, seed) for seed in range(a.batch)]
    predictions = Predictions(*(torch.stack(part) for part in zip(*drawn, strict=True)))
    counts = anchors_per_level(size_hw, TORCHVISION_V1.anchors)
    candidates = [int((part.sigmoid() > 0.05).sum()) // a.batch for part in torch.split(predictions.logits, counts, dim=1)]

    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=a.classes).eval()
    maps = [torch.zeros(1, 1, *hw) for hw in feature_sizes(size_hw)]
    anchors = theirs.anchor_generator(ImageList(torch.zeros(a.batch, 3, *size_hw), [size_hw] * a.batch), maps)
    # What torchvision has at this point of its own forward pass.
    names = {"cls_logits": predictions.logits, "bbox_regression": predictions.deltas}
    outputs = {name: list(torch.split(values, counts, 1)) for name, values in names.items()}
    their_anchors = [list(torch.split(one, counts)) for one in anchors]
    sizes_hw = torch.tensor([size_hw] * a.batch)

    def torchvisions(_: int = 0) -> Any:
        return theirs.postprocess_detections(outputs, their_anchors, [size_hw] * a.batch)

    def ours(_: int = 0) -> Any:
        return detect(predictions, size_hw=size_hw, sizes_hw=sizes_hw, conventions=TORCHVISION_V1)

    with torch.inference_mode():
        differences = compare(torchvisions(), ours())
        result: dict[str, Any] = {
            "what": "post-processing: logits and deltas to boxes",
            "machine": before,
            "size_hw": size_hw,
            "classes": a.classes,
            "batch": a.batch,
            "candidates_over_0.05_per_level": candidates,
            "parity": differences,
        }
        if differences["wrong"]:
            print(json.dumps(result, indent=None if a.json else 2))
            print("error: the two do not agree, so nothing was timed", file=sys.stderr)
            return 1
        times = take_turns({"torchvision": torchvisions, "ours": ours}, rounds=a.rounds, warm_up=WARM_UP)
    result |= {f"{name}_ms": summary(values) for name, values in times.items()}
    ratio = ratio_interval(times["torchvision"], times["ours"])
    result |= {"rounds": a.rounds, "torchvision_over_ours": ratio.as_dict("ratio")}
    print(json.dumps(result, indent=None if a.json else 2))
    return 0


def dense(size_hw: tuple[int, int], num_classes: int, number: int, seed: int) -> tuple[Tensor, Tensor]:
    """(A, K) logits of which exactly ``number`` are over 0.05, and (A, 4) deltas."""
    random = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    anchors = make_anchors(size_hw, TORCHVISION_V1.anchors, torch.device("cpu"))
    logits = torch.randn(len(anchors), num_classes, generator=generator) * 0.6 - 8
    deltas = torch.randn(len(anchors), 4, generator=generator) * 0.3
    found = 0
    while found < number:
        # As many small objects as large ones, in powers of two.
        sides = np.exp(random.uniform(np.log(16), np.log(0.6 * min(size_hw)), 1)) * np.exp(random.normal(0, 0.3, 2))
        corner = random.uniform(0, np.maximum(1, np.array(size_hw)[::-1] - sides))
        box = torch.tensor([*corner, *(corner + sides)], dtype=torch.float32)
        overlaps = box_iou(box[None], anchors)[0]
        near = overlaps.topk(min(number - found, int(random.integers(20, 120)))).indices
        label = int(random.integers(num_classes))
        near = near[logits[near, label] < -4]
        logits[near, label] = torch.from_numpy(random.uniform(-2.9, 2.5, len(near))).float()
        deltas[near] = encode(box, anchors[near]) + torch.randn(len(near), 4, generator=generator) * 0.1
        found += len(near)
    return logits, deltas


def compare(theirs: list[dict[str, Tensor]], ours: Any) -> dict[str, Any]:
    """Detections in order; where two scores are equal to ``SCORE`` either may come first."""
    worst_box = worst_score = 0.0
    wrong = total = 0
    for image, one in enumerate(theirs):
        count = int(ours.counts[image])
        boxes, scores, labels = ours.boxes[image, :count], ours.scores[image, :count], ours.labels[image, :count]
        total += count
        wrong += abs(count - len(one["labels"]))
        for box, score, label in zip(one["boxes"], one["scores"], one["labels"], strict=True):
            distances = (boxes - box).abs().amax(dim=1).where((labels == label) & ((scores - score).abs() <= SCORE), float("inf"))
            nearest = int(distances.argmin())
            if distances[nearest] > BOX:
                wrong += 1
            else:
                worst_box = max(worst_box, float(distances[nearest]))
                worst_score = max(worst_score, float((scores[nearest] - score).abs()))
    return {"detections": total, "wrong": wrong, "largest_box_difference_px": worst_box, "largest_score_difference": worst_score}


if __name__ == "__main__":
    sys.exit(main())
