"""One training step, ours against torchvision's RetinaNet: the same weights, images, boxes, frozen stages and plain loop.

    OMP_NUM_THREADS=2 python benchmarks/train_step.py [--data DATA] [--batch 4] [--size 416] [--classes 80] [--rounds 20] [--threads 2]
        [--backbone resnet50] [--only NAME ...] [--device cpu|cuda] [--profile NAME] [--json]

A step is: no gradients, forward with boxes, loss, backward, SGD. torchvision gets its images as its own scripts make them (float, 0..1),
ours as our loader does (uint8), and normalising is timed in both; decoding is not. DATA is a data set with a split train, whose images
are squeezed to squares; without it, images and boxes are made up. Weights are random, scaled to give numbers as trained ones do.

Parity comes first: both losses of the first batch within 1e-5 of torchvision's, relative, and the gradient of the class convolution within
1e-3. If it fails, nothing is timed and the exit code is 1. Then all step in turns. On a GPU, waits for it within one step and the peak of
its memory are counted, too.
"""

import argparse
import copy
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from lw_retinanet.benchmarking.machine import IDLE_LOAD, machine, pinned_threads, waits_and_peak
from lw_retinanet.benchmarking.realistic import make_realistic
from lw_retinanet.config import TrainConfig, parse_config
from lw_retinanet.conventions import Conventions
from lw_retinanet.counting.rounds import ratio_interval, summary, take_turns
from lw_retinanet.data.box_quality import usable
from lw_retinanet.data.dataset import Dataset
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import normalise, pad_to, to_tensor
from lw_retinanet.data.sample import draw_scene
from lw_retinanet.devices import exact_fp32, waiting_for
from lw_retinanet.heads import plan_of
from lw_retinanet.models.build import build
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.structures import Batch, Targets
from lw_retinanet.tables import aligned
from lw_retinanet.training.distributed import World
from lw_retinanet.training.network_graphs import NetworkGraphs
from lw_retinanet.training.optimiser import make_optimiser
from lw_retinanet.training.step import accumulate_gradients, autocast
from lw_retinanet.weights.foreign.torchvision_twin import preset_conventions, torchvision_twin

SHIPPED = "torchvision as shipped, fp32"
THEIRS = {SHIPPED: (False, False), "torchvision channels_last, fp32": (True, False), "torchvision channels_last, bf16": (True, True)}
OURS = {f"{preset}, {precision}": (preset, precision == "bf16") for preset in ("retinanet", "lw-v3") for precision in ("fp32", "bf16")}
BASE = "retinanet, fp32"
FREEZE = 2  # stem and C2, as torchvision's trainable_backbone_layers=3
BATCHES = 4  # different ones, in turns
RATE = 1e-6  # weights move, but the work stays what it is
MADE_UP_BOXES = 6  # of an image whose shapes are fewer
LOSSES, GRADIENTS = 1e-5, 1e-3


@dataclass(frozen=True)
class Contender:
    """Args:
    step: number of the round -> (2,) losses, still on the device.
    weight: of the class convolution, which has its gradient after a step.
    """

    step: Callable[[int], Tensor]
    weight: Tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--classes", type=int, default=80, help="of made-up boxes; those of DATA have their own number")
    parser.add_argument("--backbone", default="resnet50", help="a ResNet")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=4, help="a GPU records a step that came three times")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--only", nargs="+", choices=[*THEIRS, *OURS], help="beside torchvision as shipped and our base model in fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", choices=[*THEIRS, *OURS], help="print where this one's time goes instead of timing")
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    options = parser.parse_args()
    with pinned_threads(options.threads), exact_fp32():
        return measure(options)


def measure(options: argparse.Namespace) -> int:
    device = torch.device(options.device)
    result: dict[str, Any] = {
        "what": f"training step, {options.batch} images of {options.size} x {options.size}",
        "machine": machine(device),
        "settings": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
    }
    num_classes, batches = made_up(options) if options.data is None else batches_of(options)
    conventions = preset_conventions(Conventions())
    rule = conventions.input.model_copy(update={"size": options.size, "max_size": options.size})
    conventions = conventions.model_copy(update={"input": rule})
    networks: dict[str, RetinaNet] = {}
    for preset in ("retinanet", "lw-v3"):
        torch.manual_seed(0)
        networks[preset] = build(plan_of(preset), num_classes=num_classes, backbone=options.backbone, conventions=conventions).eval()
        make_realistic(networks[preset], normalise(batches[0].images[:1], batches[0].sizes_hw[:1], rule))
    wanted = dict.fromkeys([SHIPPED, BASE, *(options.only or [*THEIRS, *OURS])])
    if options.profile:
        wanted = dict.fromkeys([SHIPPED, BASE, options.profile])
    contenders = {
        name: theirs(networks["retinanet"], batches, device, *THEIRS[name])
        if name in THEIRS
        else ours(networks[OURS[name][0]], batches, device, use_bf16=OURS[name][1])
        for name in wanted
    }
    boxes = [len(row.nonzero()) for batch in batches for row in (batch.targets.labels >= 0 if batch.targets else [])]
    result |= {"classes": num_classes, "boxes_per_picture": sum(boxes) / len(boxes), "parity": parity(contenders)}
    if not result["parity"]["agrees"]:
        print(json.dumps(result, indent=None if options.json else 2))
        print("error: the two do not agree, so nothing was timed", file=sys.stderr)
        return 1
    if options.profile:
        print(profiled(contenders[options.profile], device))
        return 0
    calls = {name: contender.step for name, contender in contenders.items()}
    times = take_turns(calls, rounds=options.rounds, warm_up=options.warm_up, wait=waiting_for(device))
    result["rows"] = [
        {
            "name": name,
            "step_ms": summary(times[name]),
            "times_as_fast": ratio_interval(times[SHIPPED], times[name]).as_dict("ratio"),
            **(waits_and_peak(contender.step, device) if device.type == "cuda" else {}),
        }
        for name, contender in contenders.items()
    ]
    print(json.dumps(result) if options.json else "\n".join(table(result)))
    return 0


def made_up(options: argparse.Namespace) -> tuple[int, list[Batch]]:
    """Images of shapes, as many boxes around these as there are and further ones anywhere, of any class."""
    random = np.random.default_rng(0)
    batches = []
    for number in range(BATCHES):
        images, targets = [], []
        for row in range(options.batch):
            scene = draw_scene(np.random.default_rng((number, row)), (options.size, options.size))
            boxes = [[x, y, x + width, y + height] for x, y, width, height in map(scene.box_xywh, range(len(scene.labels)))]
            for _ in range(MADE_UP_BOXES - len(boxes)):
                sides = np.exp(random.uniform(np.log(16), np.log(0.6 * options.size), 2))
                corner = random.uniform(0, options.size - sides)
                boxes.append([*corner, *(corner + sides)])
            images.append(to_tensor(scene.image))
            targets.append((torch.tensor(boxes), torch.from_numpy(random.integers(options.classes, size=len(boxes)))))
        batches.append(batch_of(images, targets, options.size))
    return options.classes, batches


def batches_of(options: argparse.Namespace) -> tuple[int, list[Batch]]:
    """The first images of a data set that have boxes."""
    records = Dataset.open(options.data).read("train")
    is_usable = usable(records) & ~records.is_ignored
    images, targets = [], []
    for row in range(records.num_images):
        kept = is_usable[records.rows(row)]
        if not kept.any():
            continue
        image = to_tensor(decode(records.path(row)))
        factors = torch.tensor([options.size / image.shape[2], options.size / image.shape[1]]).repeat(2)
        boxes = (torch.from_numpy(records.boxes(row)[kept]).float() * factors).clamp(0, options.size)
        is_seen = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
        labels = torch.from_numpy(records.labels[records.rows(row)][kept]).long()
        images.append(F.interpolate(image[None].float(), (options.size, options.size), mode="bilinear", antialias=True)[0].byte())
        targets.append((boxes[is_seen], labels[is_seen]))
        if len(images) == BATCHES * options.batch:
            break
    count = len(images) // options.batch
    if not count:
        raise SystemExit(f"{options.data}: train has {len(images)} images with boxes, fewer than one batch of {options.batch}")
    parts = [slice(number * options.batch, (number + 1) * options.batch) for number in range(count)]
    return len(records.categories), [batch_of(images[part], targets[part], options.size) for part in parts]


def batch_of(images: list[Tensor], targets: list[tuple[Tensor, Tensor]], size: int) -> Batch:
    count = len(images)
    return Batch(
        images=pad_to(images, (size, size)),
        sizes_hw=torch.full((count, 2), size),
        scales_xy=torch.ones((count, 2)),
        targets=Targets.padded([(boxes, labels, torch.zeros(len(labels), dtype=torch.bool)) for boxes, labels in targets]),
        indices=tuple(range(count)),
    )


def theirs(network: RetinaNet, batches: list[Batch], device: torch.device, channels_last: bool, use_bf16: bool) -> Contender:
    """torchvision's model in the loop of torchvision's reference scripts, without their logging."""
    model = torchvision_twin(network).to(device).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    for name, parameter in model.backbone.body.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(learned, lr=RATE, momentum=0.9, weight_decay=1e-4)
    given = []
    for batch in batches:
        assert batch.targets is not None
        images = [pin(image.contiguous().float() / 255, device) for image in batch.images]
        rows = [
            {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
            for boxes, labels in zip(batch.targets.boxes, batch.targets.labels, strict=True)
        ]
        given.append((images, rows))

    def step(number: int) -> Tensor:
        images, rows = given[number % len(given)]
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [{name: value.to(device, non_blocking=True) for name, value in row.items()} for row in rows]
        optimiser.zero_grad()
        with autocast(device, use_bf16):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimiser.step()
        return torch.stack([losses["classification"], losses["bbox_regression"]]).detach()

    return Contender(step, model.head.classification_head.cls_logits.weight)


def ours(network: RetinaNet, batches: list[Batch], device: torch.device, *, use_bf16: bool) -> Contender:
    """Our model and step; the losses are torchvision's, so that both do the same work."""
    model = copy.deepcopy(network).to(device).train().to(memory_format=torch.channels_last)
    model.backbone.freeze(FREEZE)
    config = settings()
    optimiser = make_optimiser(model, config, images_per_step=len(batches[0].indices))
    world = World(device=device)
    network = NetworkGraphs(model, use_bf16=use_bf16) if NetworkGraphs.fits(model) else None
    given = [batch.pin_memory() if device.type == "cuda" else batch for batch in batches]

    def step(number: int) -> Tensor:
        optimiser.zero_grad()
        batch = given[number % len(given)]
        found = accumulate_gradients(
            model, [batch], config=config, conventions=model.conventions, world=world, use_bf16=use_bf16, network=network
        )
        optimiser.step()
        return found.losses

    predict: Any = model.head.cls.shared_predict
    return Contender(step, predict.weight)


def settings() -> TrainConfig:
    train = {"optimiser": "sgd", "rate": RATE, "backbone_rate": 1.0, "weight_decay": 1e-4, "assignment": "iou"}
    losses = {"class_loss": "focal", "box_loss": "l1", "box_weight": 1.0, "normaliser": "image"}
    return parse_config({"train": {**train, **losses}}).resolved().train


def pin(image: Tensor, device: torch.device) -> Tensor:
    return image.pin_memory() if device.type == "cuda" else image


def parity(contenders: dict[str, Contender]) -> dict[str, Any]:
    """Losses and a gradient of the two that have the same weights, on the first batch."""
    found = {name: (contenders[name].step(0), contenders[name].weight.grad) for name in (SHIPPED, BASE)}
    (their_losses, their_grad), (our_losses, our_grad) = found.values()
    assert their_grad is not None
    assert our_grad is not None
    losses = float(((our_losses - their_losses) / their_losses).abs().max())
    gradient = float((our_grad - their_grad).norm() / their_grad.norm())
    agrees = losses <= LOSSES and gradient <= GRADIENTS
    words = {"losses": their_losses.tolist(), "largest_relative_difference": losses, "relative_difference_of_a_gradient": gradient}
    return {**words, "agrees": agrees}


def profiled(contender: Contender, device: torch.device) -> str:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    contender.step(0)
    with profile(activities=activities, record_shapes=False) as seen:
        contender.step(1)
    return str(seen.key_averages().table(sort_by=f"self_{device.type}_time_total", row_limit=30, max_name_column_width=60))


def table(result: dict[str, Any]) -> list[str]:
    about, rows = result["machine"], result["rows"]
    has_gpu = "waits" in rows[0]
    lines = [["", "ms a step (95 %)", "vs torchvision as shipped", *(["waits", "peak GiB"] if has_gpu else [])]]
    for row in rows:
        times, ratio = row["step_ms"], row["times_as_fast"]
        cells = [row["name"], f"{times['median']:.0f} ({times['low']:.0f} to {times['high']:.0f})"]
        cells.append(f"{ratio['ratio']:.2f}x ({ratio['low']:.2f} to {ratio['high']:.2f})")
        if has_gpu:
            cells += [str(row["waits"]), f"{row['peak_bytes'] / 2**30:.2f}"]
        lines.append(cells)
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items() if name in ("torch", "torchvision"))
    load = about["load_before"]
    busy = load is not None and load > IDLE_LOAD * len(about["cpus"])
    return [
        f"{result['what']}, {result['classes']} classes, {result['boxes_per_picture']:.1f} boxes per image",
        f"{about['processor']} ({about['device']}), {about['threads']} threads; {packages}, lw-retinanet {about['lw_retinanet']}",
        f"parity: losses within {result['parity']['largest_relative_difference']:.1e}",
        *([f"The machine was not idle: its load was {load:.1f} before this began."] if busy else []),
        "",
        *aligned(lines),
    ]


if __name__ == "__main__":
    sys.exit(main())
