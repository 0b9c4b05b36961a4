"""What the closed form and the fit read: for each calibration image, the map that enters a level and what the old towers make of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.lightening.towers import LevelPair
from lw_retinanet.training.step import autocast


@dataclass(frozen=True, kw_only=True, eq=False)
class CachedFeatures:
    """One level of one image, kept on the CPU in bfloat16.

    Args:
        maps: (1, C, H, W) map that :meth:`LevelPair.old_maps` and :meth:`LevelPair.new_maps` take.
        answers: Outputs of the old towers by branch and prediction, (1, channels, H, W) each; empty if they were not computed.
    """

    maps: Tensor
    answers: Mapping[DenseBranch, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """The memory that it takes."""
        return self.maps.nbytes + sum(value.nbytes for outputs in self.answers.values() for value in outputs.values())


@torch.no_grad()
def with_answers(level: LevelPair, maps: Tensor, *, use_bf16: bool) -> CachedFeatures:
    """Run the old towers on a map. Bfloat16 is fine enough for what they answer, because the fit's targets need no more.

    Raises:
        InputError: for a map that the level cannot take or that is not finite.
    """
    level.require_map(maps)
    with autocast(maps.device, use_bf16):
        old = level.old_maps(maps)
        answers = {name: {key: value.bfloat16().cpu() for key, value in tower(old).items()} for name, tower in level.old.items()}
    return CachedFeatures(maps=maps.bfloat16().cpu(), answers=answers)


@torch.no_grad()
def cache_features(
    level: LevelPair, inputs: Iterable[Tensor], *, needs_answers: bool, use_bf16: bool, max_bytes: int
) -> list[CachedFeatures]:
    """Keep the maps that enter a level, one image after the other, until the memory limit is reached.

    Args:
        level: The level; its old towers are on the device of the inputs.
        inputs: (1, C, H, W) maps. An iterator may run the network that makes them; it then runs under the same autocast.
        needs_answers: Run the old towers too. The fit needs their answers; the closed form runs them itself.
        use_bf16: Run network and towers under autocast.
        max_bytes: The memory limit. One image is kept in any case.

    Raises:
        InputError: for a map that the level cannot take or that is not finite.
    """
    cached: list[CachedFeatures] = []
    num_bytes = 0
    with autocast(level.old_parameters()[0].device, use_bf16):
        for maps in inputs:
            if needs_answers:
                cached.append(with_answers(level, maps, use_bf16=use_bf16))
            else:
                level.require_map(maps)
                cached.append(CachedFeatures(maps=maps.bfloat16().cpu()))
            num_bytes += cached[-1].num_bytes
            if num_bytes + cached[-1].num_bytes > max_bytes:
                break
    return cached
