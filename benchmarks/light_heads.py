"""Light heads at equal settings: every preset in place of a trained detector's head, filled without labels, on the same images.

    python benchmarks/light_heads.py MODEL DATA --to lw-v3 lw-narrow lw-separable --out heads.json [--images 160] [--steps 400] [--seeds 0]
        [--size 256] [--idea views]

MODEL is a model file with a full head, DATA a data set with the splits train and val. Backbone and pyramid run once; their maps stay in
memory, and all heads are filled from them and scored on them. Printed and written: AP after the closed form and after the fit, with its
difference to the full head and to the first preset (paired over images, 95 %).

Ideas for a stronger fit: `views` adds the images at 0.75 and 1.25 times their size, `features` sends the student's last features through
the old prediction, too (CrossKD), where the widths agree, and `sure` weighs class losses by the root of the old head's best score.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import lw_retinanet as lw
from lw_retinanet.counting.macs import count_blocks
from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.preprocess import padded_size, resized_size
from lw_retinanet.data.records import Records
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.evaluation.paired import compare
from lw_retinanet.files import write_text
from lw_retinanet.heads import plan_of
from lw_retinanet.lightening import fitting
from lw_retinanet.lightening.calibration_images import calibration_files, calibration_inputs
from lw_retinanet.lightening.feature_cache import CachedFeatures
from lw_retinanet.lightening.filling import LighteningSettings, fill_levels
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.surgery import lighten_copy
from lw_retinanet.lightening.towers import LevelPair, Tower, convolutions
from lw_retinanet.models.fpn import OUTPUTS_APART
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet

Maps = dict[str, Tensor]
plain_losses = fitting._losses


@torch.inference_mode()
def merged_maps(model: RetinaNet, inputs: Iterator[Tensor]) -> list[Maps]:
    """Maps of each image before the output convolutions of P3 and P4, in bfloat16."""
    return [{level: maps.bfloat16() for level, maps in model.fpn.merged(model.backbone(images)).items()} for images in inputs]


def through_the_old_prediction(level: LevelPair, cached: Sequence[CachedFeatures], device: torch.device, use_bf16: bool) -> Tensor:
    """The losses of the fit, and those of the student's last features behind the teacher's prediction."""
    pairs = []
    for pair in level.pairs:
        (old,) = pair.teacher.predictions.values()
        width = convolutions(pair.student.units[-1])[-1].out_channels
        if convolutions(old)[0].in_channels == width:
            pairs.append(replace(pair, student=Tower(units=pair.student.units, predictions=pair.teacher.predictions)))
    return plain_losses(level, cached, device, use_bf16) + plain_losses(replace(level, pairs=pairs), cached, device, use_bf16)


def by_sureness(logits: Tensor, taught_logits: Tensor) -> Tensor:
    """The class loss with anchors weighted by the root of the teacher's best score."""
    scores = taught_logits.float().sigmoid()
    least = F.binary_cross_entropy_with_logits(taught_logits.float(), scores, reduction="none")
    losses = F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="none") - least
    return (losses * scores.amax(dim=2, keepdim=True).sqrt()).sum() / scores.sum().clamp(min=1)


class HeldOut:
    """The images that heads are scored on."""

    def __init__(self, detector: lw.Detector, records: Records) -> None:
        self.records = records
        self.rule = detector.model.conventions.input
        self.labels = match_categories(detector.categories, records).labels
        files = [records.path(image) for image in range(records.num_images)]
        self.maps = merged_maps(detector.model, calibration_inputs(files, self.rule, mirrored=False))

    @torch.inference_mode()
    def detect(self, model: RetinaNet) -> DetectionTable:
        """Detections of a model whose backbone and pyramid are those of the maps."""
        found = []
        for image, merged in enumerate(self.maps):
            maps = {level: each.float() for level, each in merged.items()}
            predictions = model.head({**maps, **{level: model.fpn.output(level)(maps[level]) for level in OUTPUTS_APART}})
            height, width = self.records.sizes_hw[image].tolist()
            resized = resized_size((height, width), self.rule)
            detections = detect(
                predictions,
                size_hw=padded_size([resized], self.rule.pad_multiple),
                sizes_hw=torch.tensor([resized]),
                conventions=model.conventions,
                images_hw=[(height, width)],
            )
            count = int(detections.counts[0])
            labels = self.labels[detections.labels[0, :count].numpy()]
            known = labels >= 0
            boxes, scores = detections.boxes[0, :count].numpy()[known], detections.scores[0, :count].numpy()[known]
            found.append(DetectionTable.from_image(image, boxes, scores, labels[known]))
        return concatenate(found)


def views(model: RetinaNet, files: Sequence[Path], scales: Sequence[float]) -> dict[bool, list[Maps]]:
    """Maps of the calibration images, plain; and mirrored, with those of other scales."""
    rule = model.conventions.input
    found = {mirrored: merged_maps(model, calibration_inputs(files, rule, mirrored=mirrored)) for mirrored in (False, True)}
    for scale in scales:
        scaled = rule.model_copy(update={"size": round(rule.size * scale)})
        found[True] += merged_maps(model, calibration_inputs(files, scaled, mirrored=False))
    return found


def fill(model: RetinaNet, preset: str, cached: dict[bool, list[Maps]], settings: LighteningSettings) -> dict[str, tuple[RetinaNet, float]]:
    """The model with the preset's head after the closed form and after the fit, each with the seconds until then."""
    light, levels = lighten_copy(model, plan_of(preset))
    started, stages = time.monotonic(), dict[str, tuple[RetinaNet, float]]()

    def inputs(level: LevelPair, mirrored: bool) -> Iterator[Tensor]:
        for maps in cached[mirrored]:
            yield maps[level.level].float()

    def keep() -> None:
        stages["closed form"] = copy.deepcopy(light), time.monotonic() - started

    fill_levels(levels, inputs, len(cached[False]), settings, device=torch.device("cpu"), after_closed_form=keep)
    if settings.fit.steps:
        stages["fit"] = light, time.monotonic() - started
    return stages


def main() -> None:
    """Fill and score every preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--to", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, help="Image size; that of the model unless told otherwise.")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rate", type=float, default=FitSettings.rate)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--idea", choices=["none", "views", "features", "sure"], default="none")
    arguments = parser.parse_args()
    if arguments.idea == "features":
        fitting._losses = through_the_old_prediction
    if arguments.idea == "sure":
        fitting.class_distillation = by_sureness
    detector = lw.load(arguments.model)
    model, side = detector.model, arguments.size or detector.conventions.input.size
    rule = model.conventions.input.model_copy(update={"size": side})
    model.conventions = model.conventions.model_copy(update={"input": rule})
    dataset = Dataset.open(arguments.data)
    held_out = HeldOut(detector, dataset.ready("val", classes=detector.categories))
    full = held_out.detect(model)
    rows: list[dict[str, Any]] = []

    def note(preset: str, stage: str, seed: int, network: RetinaNet, table: DetectionTable, seconds: float) -> None:
        metrics = evaluate(held_out.records, table).as_dict()
        macs = sum(block.macs for block in count_blocks(network, (side, side)).values())
        row = {"to": preset, "stage": stage, "seed": seed, "gmacs": macs / 1e9, "seconds": round(seconds)}
        row |= {name: metrics[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")}
        first = tables.get((stage, seed))
        for name, other in (("full", full), ("first", first)):
            if other is not None and other is not table:
                found = compare(held_out.records, other, table).ap
                row[f"minus_{name}"] = [found.difference, found.low, found.high]
        rows.append(row)
        print(json.dumps(row), flush=True)
        content = {"arguments": {**vars(arguments), "model": arguments.model.name, "data": arguments.data.name}, "rows": rows}
        write_text(arguments.out, json.dumps(content, default=str, indent=1))

    tables: dict[tuple[str, int], DetectionTable] = {}
    note("retinanet", "full head", 0, model, full, 0.0)
    for seed in arguments.seeds:
        files = calibration_files(arguments.data, count=arguments.images, seed=seed)
        cached = views(model, files, (0.75, 1.25) if arguments.idea == "views" else ())
        for preset in arguments.to:
            settings = LighteningSettings(fit=FitSettings(steps=arguments.steps, rate=arguments.rate, seed=seed), seed=seed)
            for stage, (network, seconds) in fill(model, preset, cached, settings).items():
                table = held_out.detect(network)
                note(preset, stage, seed, network, table, seconds)
                tables.setdefault((stage, seed), table)


if __name__ == "__main__":
    main()
