"""What new towers learn from: what enters a level for each view of a picture, and what its old towers say to that."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lw_retinanet.lightening.towers import BranchName, LevelPair
from lw_retinanet.training.step import autocast

"""Wraps what takes long, for instance to show a bar: gets the items, their number and what is being done."""

MAX_BYTES = 6 << 30  # of cached feature maps
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedFeatures:
    """One view of one image: what enters a level, and what its old towers say.

    Args:
        maps: (1, C, H, W), what :meth:`LevelPair.old_maps` and :meth:`LevelPair.new_maps` take.
        taught: by branch and prediction, (1, channels, H, W); empty where nobody has asked.
    """

    maps: Tensor
    taught: Mapping[BranchName, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return self.maps.nbytes + sum(value.nbytes for answers in self.taught.values() for value in answers.values())


@torch.no_grad()
def teach(level: LevelPair, maps: Tensor, *, use_bf16: bool) -> CachedFeatures:
    """Ask the old towers about one map; the answer is kept in bf16, which is finer than what is learned from it.

    Raises:
        InputError: for a map that the level cannot take or that is not finite.
    """
    level.require_map(maps)
    with autocast(maps.device, use_bf16):
        old = level.old_maps(maps)
        taught = {name: {key: value.bfloat16().cpu() for key, value in tower(old).items()} for name, tower in level.old.items()}
    return CachedFeatures(maps=maps.bfloat16().cpu(), taught=taught)


@torch.no_grad()
def collect(
    level: LevelPair, inputs: Iterable[Tensor], total: int, *, taught: bool, use_bf16: bool, max_bytes: int
) -> list[CachedFeatures]:
    """Keep what enters a level, one view after the other, until the memory is full.

    Args:
        level: whose old towers are where the inputs come from.
        inputs: (1, C, H, W) each; the network that makes them runs while they are asked for, and under the same autocast.
        total: number of views, for the log.
        taught: ask the old towers too. A fit needs their answers; the closed form asks for itself.
        use_bf16: of network and towers.
        max_bytes: of what is kept. One view is kept in any case.

    Raises:
        InputError: for a map that the level cannot take or that is not finite.
    """
    examples: list[CachedFeatures] = []
    num_bytes = 0
    with autocast(level.old_parameters()[0].device, use_bf16):
        for maps in inputs:
            if taught:
                examples.append(teach(level, maps, use_bf16=use_bf16))
            else:
                level.require_map(maps)
                examples.append(CachedFeatures(maps=maps.bfloat16().cpu()))
            num_bytes += examples[-1].num_bytes
            if num_bytes + examples[-1].num_bytes > max_bytes:
                log.info("%d of %d views fit into %.1f GiB of feature maps", len(examples), total, max_bytes / 2**30)
                break
    return examples
