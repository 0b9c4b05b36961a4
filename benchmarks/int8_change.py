"""Where a change of AP by int8 comes from: scores or boxes, the score threshold, or chance that the interval over images does not see.

    lw-retinanet export RUN --format onnx --out fp32.onnx
    lw-retinanet export RUN --format onnx --precision int8 --calibrate DATA --allow-drop --out int8.onnx
    python benchmarks/int8_change.py RUN fp32.onnx int8.onnx DATA

Both files give logits and deltas of the same anchors, so the scores of one can be decoded with the boxes of the other, and errors of int8
can be added to fp32 in part: their mean of each level and class, or all of them, but dealt to other anchors of similar scores.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lw_retinanet.conventions import STRIDES
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.evaluation.paired import compare
from lw_retinanet.exporting.load import open_detector
from lw_retinanet.models.postprocess import detect
from lw_retinanet.structures import Predictions

THRESHOLDS = (0.05, 0.001)
SEEDS = 12
GROUP = 200  # of similar logits
Raw = list[tuple[Any, Predictions]]


def raw_outputs(detector: Detector, records: Records) -> Raw:
    """Prepared inputs and predictions of every image."""
    found = []
    with torch.inference_mode():
        for row in range(records.num_images):
            inputs = detector.prepare([records.decode(row)])
            found.append((inputs, detector.network(inputs.images)))
    return found


def table(raw: Raw, detector: Detector, threshold: float, change: Callable[[int, Predictions], Predictions]) -> DetectionTable:
    """Detections at a score threshold, of changed predictions."""
    conventions = detector.conventions_under(threshold)
    tables = []
    for row, (inputs, predictions) in enumerate(raw):
        found = detect(
            change(row, predictions),
            size_hw=inputs.size_hw,
            sizes_hw=inputs.sizes_hw,
            conventions=conventions,
            images_hw=inputs.originals_hw,
        )
        count = int(found.counts[0])
        boxes, scores, labels = (part[0, :count].numpy() for part in (found.boxes, found.scores, found.labels))
        tables.append(DetectionTable.from_image(row, boxes, scores, labels))
    return concatenate(tables)


def systematic(raw: Raw, errors: Sequence[Tensor], detector: Detector) -> list[Tensor]:
    """For each image, the error of the logits that is common to a level and class: the mean over anchors that are seen, of all images."""
    anchors = detector.conventions.anchors.num_anchors
    levels = []
    for inputs, _ in raw:
        height, width = inputs.size_hw
        counts = [-(-height // stride) * -(-width // stride) * anchors for stride in STRIDES]
        levels.append(torch.repeat_interleave(torch.arange(len(STRIDES)), torch.tensor(counts)))
    level = torch.cat(levels)
    error = torch.cat([one[0] for one in errors])
    is_seen = torch.cat([predictions.logits[0].sigmoid() > THRESHOLDS[0] for _, predictions in raw])
    means = torch.zeros(len(STRIDES), error.shape[1])
    for number in range(len(STRIDES)):
        for label in range(error.shape[1]):
            chosen = error[(level == number) & is_seen[:, label], label]
            means[number, label] = chosen.mean() if len(chosen) else 0.0
    print("mean error of the logits, a row for each level, a column for each class:", means.tolist())
    return [means[one][None] for one in levels]


def dealt_anew(raw: Raw, errors: Sequence[Tensor], seed: int) -> list[Tensor]:
    """The errors of the logits, each given to another anchor and class of a similar logit: as large, but at random places."""
    logits = torch.cat([predictions.logits[0].flatten() for _, predictions in raw])
    flat = torch.cat([error[0].flatten() for error in errors])
    order = logits.argsort()
    generator = torch.Generator().manual_seed(seed)
    dealt = torch.empty_like(flat)
    for chosen in order.split(GROUP):
        dealt[chosen] = flat[chosen[torch.randperm(len(chosen), generator=generator)]]
    return [part.reshape(error.shape) for part, error in zip(dealt.split([e.numel() for e in errors]), errors, strict=True)]


def rms(values: Sequence[Tensor]) -> float:
    return float(torch.cat([value.double().flatten() for value in values]).square().mean().sqrt())


def main() -> None:
    run, fp32_file, int8_file, data = map(Path, sys.argv[1:5])
    detector, fp32, int8 = open_detector(run, device="cpu"), open_detector(fp32_file), open_detector(int8_file)
    dataset = Dataset.open(data)
    records = dataset.ready(dataset.or_whole("val"), classes=detector.categories)
    ours, before, after = (raw_outputs(each, records) for each in (detector, fp32, int8))
    errors = [(b.logits - a.logits, b.deltas - a.deltas) for (_, a), (_, b) in zip(before, after, strict=True)]
    seen = [a.logits.sigmoid().amax(dim=2) > 0.05 for _, a in before]
    biases = [error[0][mask] for error, mask in zip(errors, seen, strict=True)]
    shift = systematic(before, [error[0] for error in errors], detector)
    print(
        f"images: {records.num_images}; error of int8: logits {rms([e[0] for e in errors]):.4f}, deltas {rms([e[1] for e in errors]):.4f}"
    )
    seen_errors = torch.cat(biases)
    print(f"of anchors whose score in fp32 is above 0.05: mean {float(seen_errors.mean()):+.4f}, deviation {float(seen_errors.std()):.4f}")

    def same(_: int, predictions: Predictions) -> Predictions:
        return predictions

    variants: dict[str, Callable[[int, Predictions], Predictions]] = {
        "int8": lambda row, _: after[row][1],
        "int8 scores, fp32 boxes": lambda row, p: Predictions(after[row][1].logits, p.deltas),
        "fp32 scores, int8 boxes": lambda row, p: Predictions(p.logits, after[row][1].deltas),
        "fp32 with int8's mean error of each level and class": lambda row, p: Predictions(p.logits + shift[row], p.deltas),
        "int8 without it": lambda row, _: Predictions(after[row][1].logits - shift[row], after[row][1].deltas),
    }
    for threshold in THRESHOLDS:
        reference = table(before, detector, threshold, same)
        pytorch = compare(records, reference, table(ours, detector, threshold, same)).ap
        print(f"\nscores above {threshold:g}: {len(reference)} detections; PyTorch against fp32 {100 * pytorch.difference:+.2f}")
        for name, change in variants.items():
            found = table(before, detector, threshold, change)
            ap = compare(records, reference, found).ap
            print(f"  {name}: {len(found)} detections, {100 * ap.difference:+.2f} ({100 * ap.low:+.2f} .. {100 * ap.high:+.2f})")
        drawn = []
        for seed in range(SEEDS if threshold == THRESHOLDS[0] else 0):
            dealt = dealt_anew(before, [error[0] for error in errors], seed)
            found = table(before, detector, threshold, lambda row, p, dealt=dealt: Predictions(p.logits + dealt[row], p.deltas))
            drawn.append(100 * compare(records, reference, found).ap.difference)
        if drawn:
            spread = f"{np.mean(drawn):+.2f}, deviation {np.std(drawn, ddof=1):.2f}, from {min(drawn):+.2f} to {max(drawn):+.2f}"
            print(f"  fp32 with int8's errors dealt anew, {SEEDS} times: mean {spread}")


if __name__ == "__main__":
    main()
