"""Training of a head on the feature maps of a frozen trunk: it takes minutes on two cores, and two runs differ in the head alone."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lw_retinanet.config import Config
from lw_retinanet.data.augment import sample_generator
from lw_retinanet.data.category_match import match_categories
from lw_retinanet.data.records import Category
from lw_retinanet.evaluation.detections import DetectionTable, concatenate
from lw_retinanet.models.head import Head
from lw_retinanet.models.postprocess import detect
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.progress import Progress, tracked
from lw_retinanet.structures import Targets
from lw_retinanet.tradeoff.feature_maps import FeatureMaps
from lw_retinanet.training.distillation import distillation
from lw_retinanet.training.ema import MovingAverage
from lw_retinanet.training.objective import assign, label_losses
from lw_retinanet.training.optimiser import Optimisation, make_optimiser, scheduled_rate
from lw_retinanet.training.schedule import average_decay
from lw_retinanet.training.small_loop import small_loop
from lw_retinanet.training.step import autocast

Log = Callable[[dict[str, Any]], None]
_LOG_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class MapBatch:
    """Images of one padded size: their numbers in the records, and the view of each, plain or mirrored."""

    images: tuple[int, ...]
    views: tuple[str, ...]


def batches(maps: FeatureMaps, *, epoch: int, seed: int, batch_size: int) -> list[MapBatch]:
    """The batches of an epoch: every image once, plain or mirrored. They depend on seed and epoch alone.

    All images of a batch have one padded size; the last batch of each size may be smaller.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for image in range(maps.records.num_images):
        groups[maps.padded_hw(image)].append(image)
    random = np.random.default_rng((seed, epoch))
    made = []
    for members in groups.values():
        order = random.permutation(members).tolist()
        made += [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    views = {
        image: maps.views[int(sample_generator(seed, epoch, image, stream=0).integers(len(maps.views)))]
        for image in range(maps.records.num_images)
    }
    return [MapBatch(images=tuple(made[i]), views=tuple(views[image] for image in made[i])) for i in random.permutation(len(made))]


def targets_of(maps: FeatureMaps, batch: MapBatch) -> Targets:
    """Boxes of a batch in pixels of the network's input, mirrored if the image is."""
    records = maps.records
    per_image = []
    for image, view in zip(batch.images, batch.views, strict=True):
        rows = records.rows(image)
        kept = maps.usable[rows]
        height, width = maps.resized_hw(image)
        boxes = torch.from_numpy(records.boxes(image)[kept]).float()
        boxes *= torch.tensor([width / records.sizes_hw[image, 1], height / records.sizes_hw[image, 0]] * 2, dtype=torch.float32)
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([width, height] * 2))
        if view == "mirrored":
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        left = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        labels, ignored = torch.from_numpy(records.labels[rows][kept]).long(), torch.from_numpy(records.is_ignored[rows][kept])
        per_image.append((boxes[left], labels[left], ignored[left]))
    return Targets.padded(per_image)


@dataclass(frozen=True, kw_only=True)
class TrainedHead:
    """A detector with its new head.

    Args:
        model: Trunk and head, which is the moving average of its weights if the settings ask for one.
        steps: Number of optimiser steps.
        seconds: Duration of the training.
    """

    model: RetinaNet
    steps: int
    seconds: float


def train_head(
    model: RetinaNet,
    maps: FeatureMaps,
    config: Config,
    *,
    device: torch.device,
    use_bf16: bool,
    teacher: Head | None = None,
    log: Log | None = None,
    progress: Progress | None = None,
    what: str = "head",
) -> TrainedHead:
    """Train ``model.head`` on labels, with the settings' optimiser, schedule and losses; everything before it is left alone.

    Args:
        model: Detector on ``device``; its head is trained in place.
        maps: Feature maps of the training images.
        config: Resolved settings.
        device, use_bf16: Device and precision to compute in.
        teacher: Head with the same anchors and classes, whose answers to the same maps are learned beside the labels, weighted by
            ``train.distill_weight``.
        log: Called with the mean losses every 20 steps.
        progress: Shows how far the training is.
        what: Name of the training, for the progress and for errors.

    Raises:
        TrainingError: if a gradient is not finite.
    """
    settings = config.train
    started = time.monotonic()
    steps_per_epoch = len(batches(maps, epoch=0, seed=settings.seed, batch_size=settings.batch_size))
    steps = settings.steps or settings.epochs * steps_per_epoch
    model.requires_grad_(False)
    model.head.requires_grad_(True).train().to(memory_format=torch.channels_last)
    optimiser = make_optimiser(model, settings, settings.batch_size)
    average = MovingAverage(model.head, average_decay(settings, steps)) if settings.ema else None
    optimisation = Optimisation(
        model.head, optimiser, set_rate=scheduled_rate(optimiser, settings, steps), clip=settings.clip or math.inf, average=average
    )
    endless = _endless(maps, settings.seed, settings.batch_size)
    for stretch in small_loop(
        optimisation,
        lambda: _backward(model, maps, next(endless), config, device, use_bf16, teacher),
        steps=tracked(range(steps), steps, what, progress),
        total_steps=steps,
        report_every=_LOG_EVERY,
    ):
        stretch.require_finite(what)
        if log:
            mean = stretch.losses.mean(dim=0).tolist()
            seconds = round(time.monotonic() - started, 2)
            log({"step": stretch.step, "classification": mean[0], "bbox_regression": mean[1], "seconds": seconds})
    if average:
        model.head.load_state_dict(average.module.state_dict())
    model.requires_grad_(True)
    return TrainedHead(model=model.eval(), steps=steps, seconds=time.monotonic() - started)


def _endless(maps: FeatureMaps, seed: int, batch_size: int) -> Iterator[MapBatch]:
    epoch = 0
    while True:
        yield from batches(maps, epoch=epoch, seed=seed, batch_size=batch_size)
        epoch += 1


def _backward(
    model: RetinaNet,
    maps: FeatureMaps,
    batch: MapBatch,
    config: Config,
    device: torch.device,
    use_bf16: bool,
    teacher: Head | None,
) -> Tensor:
    """Compute the gradients of one batch; returns its (2,) losses against the labels."""
    settings, conventions = config.train, model.conventions
    pyramid = {level: values.to(device) for level, values in maps.load(batch.images, batch.views).items()}
    anchors, matches = assign(
        maps.padded_hw(batch.images[0]), targets_of(maps, batch).to(device), config=settings, rule=conventions.anchors
    )
    with autocast(device, use_bf16):
        predictions = model.head(pyramid)
    per_image = label_losses(predictions, anchors, matches, config=settings, conventions=conventions)
    losses = per_image.sum(dim=1) / matches.num_positive.sum().clamp(min=1)
    total = losses.sum()
    if teacher:
        with torch.no_grad(), autocast(device, use_bf16):
            taught = teacher(pyramid)
        total = total + settings.distill_weight * distillation(predictions, taught)
    total.backward()
    return losses.detach()


@torch.inference_mode()
def detect_from_maps(
    model: RetinaNet, maps: FeatureMaps, categories: tuple[Category, ...], *, device: torch.device, use_bf16: bool
) -> DetectionTable:
    """Detect objects from the maps of a dataset. The whole detector finds the same in the images.

    Args:
        model: Trained detector on ``device``.
        maps: Feature maps of the plain images.
        categories: Classes of the model, in the order of its labels.
        device, use_bf16: Device and precision to compute in.
    """
    records = maps.records
    match = match_categories(categories, records)
    found = []
    for image in range(records.num_images):
        height, width = records.sizes_hw[image].tolist()
        pyramid = {level: values.to(device) for level, values in maps.load([image], ["plain"]).items()}
        with autocast(device, use_bf16):
            predictions = model.head(pyramid)
        detections = detect(
            predictions,
            size_hw=maps.padded_hw(image),
            sizes_hw=torch.tensor([maps.resized_hw(image)], device=device),
            conventions=model.conventions,
            images_hw=[(height, width)],
        )
        count = int(detections.counts[0])
        labels = match.labels[detections.labels[0, :count].cpu().numpy()]
        known = labels >= 0
        boxes, scores = detections.boxes[0, :count].cpu().numpy(), detections.scores[0, :count].cpu().numpy()
        found.append(DetectionTable.from_image(image, boxes[known], scores[known], labels[known]))
    return concatenate(found)
