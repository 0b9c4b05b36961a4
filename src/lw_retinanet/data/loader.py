"""Batches for training: which images make a step, and how loader workers read them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lw_retinanet.config import DataConfig
from lw_retinanet.conventions import InputRule
from lw_retinanet.data.augment import MIN_VISIBLE, apply_colours, apply_geometry, plan_geometry
from lw_retinanet.data.image_sizes import require_size
from lw_retinanet.data.preprocess import pad_to, padded_size, to_tensor
from lw_retinanet.data.records import Records
from lw_retinanet.errors import LwRetinaNetError
from lw_retinanet.structures import Batch, Targets


@dataclass(frozen=True, kw_only=True)
class Key:
    """Names one augmented image, and the size that all images of its step are padded to."""

    epoch: int
    index: int
    size_hw: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One augmented image with its targets.

    Args:
        image: (3, h, w) uint8, not padded.
        boxes: (M, 4) xyxy pixels of ``image``.
        labels: (M,) int64.
        is_ignored: (M,) bool.
        scale_xy: Width and height of the resized over the original image.
        key: What was asked for.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    is_ignored: Tensor
    scale_xy: tuple[float, float]
    key: Key


class TrainingSet(Dataset["Sample | LwRetinaNetError"]):
    """Images with their targets. Where an image cannot be read the error is returned, since raising it in a worker would lose its type.

    Args:
        records: The data set, with all sizes known, see `Dataset.ready`.
        usable: (B,) bool, the boxes to train on.
        seed: Seed for augmentation.
        config: Settings of augmentation.
        rule: Input size and resizing of the model.
    """

    def __init__(self, records: Records, *, usable: NDArray[np.bool_], seed: int, config: DataConfig, rule: InputRule) -> None:
        self.records = records
        self.usable = usable
        self.seed = seed
        self.config = config
        self.rule = rule

    def __len__(self) -> int:
        return self.records.num_images

    def __getitem__(self, key: Key) -> "Sample | LwRetinaNetError":
        try:
            return self.load(key)
        except LwRetinaNetError as error:
            return error

    def load(self, key: Key) -> Sample:
        """Read and augment one image.

        Raises:
            ImageError: if the image cannot be read.
            DataError: if it has another size than its annotation says.
        """
        records, rows = self.records, self.records.rows(key.index)
        path, pixels = records.path(key.index), records.decode(key.index)
        size_hw = (int(records.sizes_hw[key.index, 0]), int(records.sizes_hw[key.index, 1]))
        require_size(path, (pixels.shape[0], pixels.shape[1]), size_hw)
        keep = self.usable[rows]
        boxes = torch.from_numpy(records.boxes(key.index)[keep]).float()
        labels = torch.from_numpy(records.labels[rows][keep]).long()
        is_ignored = torch.from_numpy(records.is_ignored[rows][keep])
        position = {"seed": self.seed, "epoch": key.epoch, "index": key.index}
        geometry = plan_geometry(size_hw, **position, config=self.config, rule=self.rule)
        image, boxes, visible = apply_geometry(to_tensor(pixels), boxes, geometry, self.rule)
        if self.config.augment == "full":
            image = apply_colours(image, **position)
        sides = boxes[:, 2:] - boxes[:, :2]
        left = (sides >= 1).all(dim=1)
        is_ignored = is_ignored | (visible < MIN_VISIBLE)
        scale_xy = (geometry.resized_hw[1] / size_hw[1], geometry.resized_hw[0] / size_hw[0])
        return Sample(image=image, boxes=boxes[left], labels=labels[left], is_ignored=is_ignored[left], scale_xy=scale_xy, key=key)


def collate(samples: "list[Sample | LwRetinaNetError]") -> "Batch | LwRetinaNetError":
    """Make a batch: images are padded to the size of their step, targets to one number of boxes. An error is passed on."""
    good: list[Sample] = []
    for sample in samples:
        if isinstance(sample, LwRetinaNetError):
            return sample
        good.append(sample)
    return Batch(
        images=pad_to([sample.image for sample in good], good[0].key.size_hw),
        sizes_hw=torch.tensor([sample.image.shape[1:] for sample in good]),
        scales_xy=torch.tensor([sample.scale_xy for sample in good]),
        targets=Targets.padded([(sample.boxes, sample.labels, sample.is_ignored) for sample in good]),
        indices=tuple(sample.key.index for sample in good),
    )


@dataclass(frozen=True, kw_only=True)
class StepPlan(Sampler[list[Key]]):
    """Which images make which step: a function of (seed, epoch) alone, so that training can start at any step and every process knows all.

    A step takes ``batch_size * accumulate * world`` images; each process gets its consecutive share, one micro-batch after another. All
    images of a step are padded to one size, because padding changes the network's answer: accumulation then equals the large batch.

    Args:
        sizes_hw: (I, 2) sizes of the original images.
        config: Settings of augmentation and grouping.
        rule: Input size and padding of the model.
        seed: Seed for the order of the images and for augmentation.
        batch_size: Images of one micro-batch.
        accumulate: Micro-batches of one process in a step.
        rank: The number of this process.
        processes: The number of processes.
        first_step: The first step.
        end_step: The step after the last one.
    """

    sizes_hw: NDArray[np.int32]
    config: DataConfig
    rule: InputRule
    seed: int
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1
    first_step: int = 0
    end_step: int

    @property
    def images_per_step(self) -> int:
        """Images of one step in all processes together."""
        return self.batch_size * self.accumulate * self.processes

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch. An incomplete last step is left out; a data set smaller than one step is repeated within it."""
        return max(1, len(self.sizes_hw) // self.images_per_step)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """(steps_per_epoch, images_per_step) the image indices of an epoch."""
        random = np.random.default_rng((self.seed, epoch))
        step = self.images_per_step
        order = random.permutation(len(self.sizes_hw))
        if len(order) < step:
            return np.resize(order, (1, step))
        if self.config.group_by_shape:
            is_tall = self.sizes_hw[order, 0] > self.sizes_hw[order, 1]
            groups = [order[is_tall], order[~is_tall]]
            whole = [group[: len(group) // step * step] for group in groups]
            rest = np.concatenate([group[len(group) // step * step :] for group in groups])
            order = np.concatenate([*whole, rest])
        steps = order[: len(order) // step * step].reshape(-1, step)
        return steps[random.permutation(len(steps))] if self.config.group_by_shape else steps

    def keys(self, epoch: int, indices: NDArray[np.int64]) -> list[Key]:
        """The keys of all images of one step."""
        sizes = [
            plan_geometry(
                (int(self.sizes_hw[index, 0]), int(self.sizes_hw[index, 1])),
                seed=self.seed,
                epoch=epoch,
                index=int(index),
                config=self.config,
                rule=self.rule,
            ).size_hw
            for index in indices
        ]
        size_hw = padded_size(sizes, self.rule.pad_multiple)
        return [Key(epoch=epoch, index=int(index), size_hw=size_hw) for index in indices]

    def __len__(self) -> int:
        return (self.end_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[Key]]:
        per_process = self.batch_size * self.accumulate
        epoch_of_order, order = -1, np.empty((0, 0), dtype=np.int64)
        for step in range(self.first_step, self.end_step):
            epoch, row = divmod(step, self.steps_per_epoch)
            if epoch != epoch_of_order:
                epoch_of_order, order = epoch, self.order(epoch)
            keys = self.keys(epoch, order[row])[self.rank * per_process : (self.rank + 1) * per_process]
            for start in range(0, per_process, self.batch_size):
                yield keys[start : start + self.batch_size]


def make_loader(
    dataset: "Dataset[Sample | LwRetinaNetError]", plan: StepPlan, *, workers: int, pin: bool, **others: Any
) -> "DataLoader[Batch | LwRetinaNetError]":
    """A torch loader over the steps of ``plan``; ``pin`` puts batches into page-locked memory, ``others`` are passed on."""
    return DataLoader(dataset, batch_sampler=plan, num_workers=workers, collate_fn=collate, pin_memory=pin, **others)  # type: ignore[arg-type]
