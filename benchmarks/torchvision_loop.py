"""A torchvision RetinaNet or Faster R-CNN, trained in torchvision's plain loop, made lighter, and trained on in the very same loop.

    python benchmarks/torchvision_loop.py DATA [--detector fasterrcnn] [--weights resnet50.safetensors] [--size 416] [--steps-before 1000]
        [--steps-after 300] [--rate-after 2e-5] [--to lw-v3 --to lw-narrow] [--fit-steps 300] [--save full.pth] [--out loop.json]

DATA is a data set with the splits train and val, for instance a folder with train.json, val.json and images/. The loop is that of
torchvision's reference scripts: the model gives a dict of losses in training, their sum is differentiated, the optimiser steps; nothing in
it knows of light heads. Printed: AP, losses and MACs before, after lightening (closed form and fit on training images) with the difference
to the full model and its paired interval, and after training on; the full model, trained on for the same steps, is the control. Losses and
outputs of all models must have the same keys, types and shapes. With --save, the first training keeps a checkpoint every 50 steps and goes
on from it.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

import lw_retinanet as lw
from lw_retinanet.counting.detector_cost import count_detector
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.image_sizes import with_sizes
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import to_tensor
from lw_retinanet.data.records import Records
from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import choose_device
from lw_retinanet.evaluation.coco_metrics import Metrics, evaluate
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.evaluation.paired import compare
from lw_retinanet.files import write_text
from lw_retinanet.training.step import autocast
from lw_retinanet.weights.backbone_file import find_stride, read_tensors

LOSS_WINDOW = 50  # steps that a printed loss is the mean of


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model at one time: AP in 0..1, mean losses of the last steps, MACs of one image, seconds that it took to get there.

    ``difference``, ``low`` and ``high`` are its AP minus that of the trained full model, with the ends of the paired 95 % interval.
    """

    model: str
    moment: str
    AP: float
    AP50: float
    APs: float
    losses: dict[str, float]
    gmacs: float
    seconds: float
    difference: float | None = None
    low: float | None = None
    high: float | None = None


def build(detector: str, num_classes: int, size: int, weights: Path | None) -> RetinaNet | FasterRCNN:
    """RetinaNet R50 with P6 from C5, labels 0..K-1, or Faster R-CNN R50, labels 1..K; with weights the backbone's norms are frozen."""
    body = resnet50(norm_layer=FrozenBatchNorm2d if weights else nn.BatchNorm2d)
    if weights:
        if find_stride(str(weights), name="resnet50") == "1x1":
            for stage in (body.layer2, body.layer3, body.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
        missing, left_over = body.load_state_dict({name: tensor.float() for name, tensor in read_tensors(weights).items()}, strict=False)
        if left_over or any(not name.startswith("fc.") for name in missing):
            raise SystemExit(f"{weights} does not fit torchvision's resnet50: missing {missing[:3]}, not known {left_over[:3]}")
    layers = 3 if weights else 5
    if detector == "fasterrcnn":
        backbone = _resnet_fpn_extractor(body, layers)
        # torchvision learns from 512 proposals of an image and answers with 1,000; with fewer all takes half the time on two cores.
        counts = {"box_batch_size_per_image": 128, "rpn_post_nms_top_n_test": 300}
        return FasterRCNN(backbone, num_classes + 1, min_size=size, max_size=size, **counts)
    backbone = _resnet_fpn_extractor(body, layers, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(2048, 256))
    return RetinaNet(backbone, num_classes, min_size=size, max_size=size)


def first_label(model: nn.Module) -> int:
    """The label of the data set's first class: R-CNN's label 0 is the background."""
    return 1 if isinstance(model, FasterRCNN) else 0


def training_batches(records: Records, batch_size: int, seed: int, offset: int) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
    """Endless; every image once a round, half of them mirrored."""
    generator = np.random.default_rng(seed)
    is_usable = usable(records) & ~records.is_ignored
    waiting: list[int] = []
    while True:
        while len(waiting) < batch_size:
            waiting += generator.permutation(records.num_images).tolist()
        chosen, waiting = waiting[:batch_size], waiting[batch_size:]
        images, targets = [], []
        for row in chosen:
            image = to_tensor(decode(records.path(row))).float() / 255
            height, width = image.shape[1:]
            kept = is_usable[records.rows(row)]
            boxes = torch.from_numpy(records.boxes(row)[kept]).float()
            boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height]))
            if generator.random() < 0.5:
                image = image.flip(2)
                boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
            images.append(image)
            targets.append({"boxes": boxes, "labels": torch.from_numpy(records.labels[records.rows(row)][kept]).long() + offset})
        yield images, targets


def train(
    model: nn.Module, records: Records, arguments: argparse.Namespace, *, steps: int, rate: float, seed: int, checkpoint: Path | None = None
) -> tuple[dict[str, float], float]:
    """torchvision's loop: mean losses of the last steps, and seconds. It goes on from a checkpoint that is there."""
    device = next(model.parameters()).device
    use_bf16 = choose_precision("auto", device, "training") == "bf16"
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=1e-4)
    warmup = max(1, min(100, steps // 10))
    # Up to the full rate, then straight down to zero.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min((step + 1) / warmup, (steps - step) / max(1, steps - warmup)))
    started = time.monotonic()
    history: list[dict[str, float]] = []
    done = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done, history = saved["step"], saved["history"]
        for part, name in ((model, "model"), (optimiser, "optimiser"), (schedule, "schedule")):
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
    model.train()
    batches = islice(training_batches(records, arguments.batch_size, seed, first_label(model)), done, None)
    for step, (images, targets) in zip(range(done + 1, steps + 1), batches, strict=False):
        images = [image.to(device) for image in images]
        targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
        with autocast(device, use_bf16):
            losses = model(images, targets)
            loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: loss is {float(loss)}")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
        if step % LOSS_WINDOW == 0 or step == steps:
            pace = (time.monotonic() - started) / (step - done)
            print(f"  step {step}/{steps}: {_text(_mean(history))}  {pace:.2f} s a step", flush=True)
            if checkpoint is not None:
                states = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()}
                torch.save({"step": step, "history": history, "random": torch.get_rng_state(), **states}, checkpoint)
    return _mean(history), time.monotonic() - started


def _mean(history: list[dict[str, float]]) -> dict[str, float]:
    last = history[-LOSS_WINDOW:]
    return {name: sum(losses[name] for losses in last) / len(last) for name in last[0]} if last else {}


@torch.no_grad()
def score(model: nn.Module, records: Records) -> tuple[Metrics, DetectionTable]:
    """COCO metrics of a model in evaluation mode, image by image, and its detections."""
    device = next(model.parameters()).device
    model.eval()
    tables = []
    for row in range(records.num_images):
        with autocast(device, choose_precision("auto", device, "inference") == "bf16"):
            (found,) = model([(to_tensor(decode(records.path(row))).float() / 255).to(device)])
        boxes, scores, labels = (found[name].float().cpu().numpy() for name in ("boxes", "scores", "labels"))
        tables.append(DetectionTable.from_image(row, boxes, scores, labels.astype(np.int32) - first_label(model)))
    table = concatenate(tables)
    return evaluate(records, table), table


def gmacs(model: nn.Module, size: int) -> float:
    """Of one square image; R-CNN's second stage on the largest number of proposals."""
    side = -(-size // 32) * 32
    return count_detector(model, (side, side)).macs / 1e9


def contract(model: nn.Module, records: Records) -> dict[str, Any]:
    """Keys, types and shapes of losses and outputs; N stands for the number of detections."""
    device = next(model.parameters()).device
    images, targets = next(training_batches(records, 2, 0, first_label(model)))
    images = [image.to(device) for image in images]
    targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
    with torch.no_grad():
        losses = model.train()(images, targets)
        outputs = model.eval()(images)
    return {
        "class": f"{type(model).__module__}.{type(model).__name__}",
        "losses": {name: [str(loss.dtype), list(loss.shape)] for name, loss in losses.items()},
        "outputs": [{name: [str(value.dtype), ["N", *value.shape[1:]]] for name, value in output.items()} for output in outputs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--detector", choices=["retinanet", "fasterrcnn"], default="retinanet")
    parser.add_argument("--weights", type=Path, help="ImageNet resnet50 with torchvision's names; a name with caffe strides as Caffe does")
    parser.add_argument("--size", type=int, default=416, help="longer side of the images, pixels")
    parser.add_argument("--steps-before", type=int, default=1000)
    parser.add_argument("--steps-after", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rate", type=float, default=2e-4, help="from the ImageNet backbone on")
    parser.add_argument(
        "--rate-after", type=float, default=2e-5, help="from a trained detector on: a fresh AdamW at the full rate unlearns"
    )
    parser.add_argument("--to", action="append", help="presets; lw-v3 and lw-narrow if none is given")
    parser.add_argument("--light-pyramid", action="append", default=[], help="presets that are also tried with a light convolution of P2")
    parser.add_argument("--images", type=int, default=64, help="number of training images for the closed form and the fit")
    parser.add_argument("--fit-steps", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--save", type=Path, help="keep the trained full model: a state dict, read again if there")
    arguments = parser.parse_args()
    train_records, val_records = (with_sizes(Dataset.open(arguments.data).read(split)) for split in ("train", "val"))
    if train_records.categories != val_records.categories:
        raise SystemExit(f"{arguments.data}: train and val list other classes")
    print(f"train {train_records.summary()}; val {val_records.summary()}")
    torch.manual_seed(0)
    model = build(arguments.detector, len(train_records.categories), arguments.size, arguments.weights).to(choose_device(arguments.device))
    rows: list[Row] = []
    full: list[DetectionTable] = []

    def note(name: str, moment: str, measured: nn.Module, losses: dict[str, float], seconds: float) -> None:
        metrics, table = score(measured, val_records)
        full.append(table)
        entry = compare(val_records, full[0], table).metrics["AP"]
        against = {"difference": entry.difference, "low": entry.low, "high": entry.high} if len(full) > 1 else {}
        ap = {"AP": metrics.AP, "AP50": metrics.AP50, "APs": metrics.APs}
        cost = gmacs(measured, arguments.size)
        rows.append(Row(model=name, moment=moment, **ap, losses=losses, gmacs=cost, seconds=seconds, **against))
        print(_table(rows[-1:])[-1], flush=True)

    trains_on = arguments.steps_after > 0
    if arguments.save and arguments.save.exists():
        model.load_state_dict(torch.load(arguments.save, weights_only=True))
        losses, seconds = dict[str, float](), 0.0
    else:
        checkpoint = arguments.save.with_suffix(".partial") if arguments.save else None
        before: dict[str, Any] = {"steps": arguments.steps_before, "rate": arguments.rate, "seed": 1, "checkpoint": checkpoint}
        losses, seconds = train(model, train_records, arguments, **before)
        if arguments.save:
            torch.save(model.state_dict(), arguments.save)
    note("full", "trained", model, losses, seconds)
    wanted = contract(model, train_records)
    files = [train_records.path(int(row)) for row in np.random.default_rng(0).permutation(train_records.num_images)[: arguments.images]]
    after: dict[str, Any] = {"steps": arguments.steps_after, "rate": arguments.rate_after, "seed": 2}
    presets = [(preset, False) for preset in arguments.to or ["lw-v3", "lw-narrow"]]
    for preset, light_pyramid in [*presets, *((preset, True) for preset in arguments.light_pyramid)]:
        started = time.monotonic()
        light: Any = lw.lighten(model, preset, images=files, fit_steps=arguments.fit_steps, light_pyramid=light_pyramid)
        preset += " and P2" if light_pyramid else ""
        seconds = time.monotonic() - started
        assert contract(light, train_records) == wanted, f"{preset} changed what torchvision promises"
        note(preset, "lightened", light, {}, seconds)
        if trains_on:
            note(preset, "trained on", light, *train(light, train_records, arguments, **after))
        assert contract(light, train_records) == wanted
        del light
    if trains_on:
        # The last of all, for it changes the model that the others start from.
        note("full", "trained on", model, *train(model, train_records, arguments, **after))
    print()
    print("\n".join(_table(rows)))
    print("keys, types and shapes of losses and outputs are the same for all")
    if arguments.out:
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(arguments).items()}
        written = {"settings": settings, "contract": wanted, "rows": [asdict(row) for row in rows]}
        write_text(arguments.out, json.dumps(written, indent=2) + "\n")


def _table(rows: list[Row]) -> list[str]:
    lines = [f"{'model':<17}{'moment':<12}{'AP':>8}{'AP50':>8}{'APs':>8}{'GMACs':>9}{'seconds':>9}  AP - trained full, points; losses"]
    for row in rows:
        numbers = f"{row.AP:>8.4f}{row.AP50:>8.4f}{row.APs:>8.4f}{row.gmacs:>9.3f}{row.seconds:>9.0f}"
        against = "" if row.difference is None else f"{100 * row.difference:+.2f} ({100 * row.low:+.2f} .. {100 * row.high:+.2f})"
        lines.append(f"{row.model:<17}{row.moment:<12}{numbers}  {against}  {_text(row.losses)}".rstrip())
    return lines


def _text(losses: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in losses.items())


if __name__ == "__main__":
    main()
