"""What initialisation and fitting see of a head: towers, old and new, whatever library the model around them comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from lw_retinanet.errors import InputError

BranchName = Literal["cls", "bbox"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """One branch of one level.

    Args:
        units: what runs in order, each a convolution with whatever follows it.
        predictions: by name, each on the last unit's output (one, except for FCOS's box branch, which also predicts centreness).
    """

    units: Sequence[nn.Module]
    predictions: Mapping[str, nn.Module]

    def features(self, maps: Tensor) -> Tensor:
        """(N, C, H, W) of the pyramid -> what the predictions see."""
        for unit in self.units:
            maps = unit(maps)
        return maps

    def __call__(self, maps: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) of the pyramid -> (N, channels, H, W) by the predictions' names."""
        features = self.features(maps)
        return {name: predict(features) for name, predict in self.predictions.items()}

    @property
    def layers(self) -> list[nn.Module]:
        """Units and predictions."""
        return [*self.units, *self.predictions.values()]


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchPair:
    """A branch of one level before and after surgery.

    Args:
        branch: which one.
        level: of the pyramid, ``P3`` is the finest.
        teacher: its old layers, not to be changed.
        student: its new layers, to be filled. Units and predictions that are the teacher's own are shared and stay as they are.
    """

    branch: BranchName
    level: str
    teacher: Tower
    student: Tower

    def is_shared(self, layer: nn.Module) -> bool:
        """Whether a layer of the student is one of the teacher's."""
        return any(layer is old for old in self.teacher.layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelPair:
    """The head of one level before and after surgery.

    Args:
        level: of the pyramid.
        old: the old towers of both branches.
        pairs: the branches that own layers now, one or two.
        num_anchors: anchors a cell (FCOS: 1).
        old_output: the convolution that makes the level's map, as it was; None where the level's map is taken as it is.
        output: its successor, read by the new towers alone, to be filled along with them; None keeps the level's map.
    """

    level: str
    old: Mapping[BranchName, Tower]
    pairs: Sequence[BranchPair]
    num_anchors: int
    old_output: nn.Module | None = None
    output: nn.Module | None = None

    def old_maps(self, maps: Tensor) -> Tensor:
        """What enters ``old_output`` -> the level's map for the old towers."""
        return maps if self.old_output is None else self.old_output(maps)

    def new_maps(self, maps: Tensor) -> Tensor:
        """What enters ``old_output`` -> the level's map for the new towers."""
        return self.old_maps(maps) if self.output is None else self.output(maps)

    def old_parameters(self) -> list[nn.Parameter]:
        """What learning must leave alone, although new layers may be run on it or through it."""
        modules = [layer for tower in self.old.values() for layer in tower.layers]
        if self.old_output is not None:
            modules.append(self.old_output)
        return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))

    def parameters(self) -> list[nn.Parameter]:
        """Everything new: what initialisation fills and fitting trains."""
        modules = [layer for pair in self.pairs for layer in pair.student.layers]
        if self.output is not None:
            modules.insert(0, self.output)
        fixed = {id(parameter) for parameter in self.old_parameters()}
        found = dict.fromkeys(parameter for module in modules for parameter in module.parameters())
        return [parameter for parameter in found if id(parameter) not in fixed]

    def to(self, device: torch.device) -> None:
        """Move all layers, old and new."""
        towers = [*self.old.values(), *(tower for pair in self.pairs for tower in (pair.teacher, pair.student))]
        outputs = [layer for layer in (self.old_output, self.output) if layer is not None]
        for layer in [*outputs, *(layer for tower in towers for layer in tower.layers)]:
            layer.to(device)

    def require_map(self, maps: Tensor) -> None:
        """Check one image's map.

        Raises:
            InputError: unless it is (1, C, H, W) as the level takes it, with at least one cell, and finite.
        """
        reader = self.old_output if self.old_output is not None else next(iter(self.old.values())).units[0]
        channels = convolutions(reader)[0].in_channels
        if maps.ndim != 4 or len(maps) != 1 or maps.shape[1] != channels or not maps.numel():
            raise InputError(
                f"{self.level} takes maps of shape (1, {channels}, H, W), got {tuple(maps.shape)}; give level_input's, one by one"
            )
        if not bool(torch.isfinite(maps).all()):
            raise InputError(f"a map of {self.level} has values that are not finite; look for a damaged picture or model file")


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """Those of a unit or prediction, in order: one, or a depthwise one and the 1x1 one behind it."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def norm_behind(module: nn.Module, conv: nn.Conv2d) -> nn.BatchNorm2d | None:
    """The batch norm that stands directly behind a convolution of a unit."""
    layers = list(module) if isinstance(module, nn.Sequential) else []
    return next((norm for layer, norm in pairwise(layers) if layer is conv and type(norm) is nn.BatchNorm2d), None)


def has_norm(module: nn.Module) -> bool:
    """Whether it has a state beside its convolutions and batch norms directly behind them; no one linear map describes such a unit."""
    behind = [norm_behind(module, conv) for conv in convolutions(module)]
    others = [layer for layer in module.modules() if not isinstance(layer, nn.Conv2d) and layer not in behind]
    return any(isinstance(layer, nn.GroupNorm) or [*layer.parameters(recurse=False), *layer.buffers(recurse=False)] for layer in others)


def ends_in_relu(unit: nn.Module) -> bool:
    return isinstance(unit, nn.Sequential) and isinstance(unit[-1], nn.ReLU)
