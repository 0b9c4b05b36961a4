"""Old and new towers of a level, for models of this package and of torchvision alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class Tower:
    """One branch of one level.

    Args:
        units: The units in order; each is a convolution with the norm and activation behind it.
        predictions: The predictions by name; all read the output of the last unit. FCOS's box branch has two of them, and so has R-CNN's
            proposal network: the objectness, then the deltas.
    """

    units: Sequence[nn.Module]
    predictions: Mapping[str, nn.Module]

    def features(self, maps: Tensor) -> Tensor:
        """The output of the last unit for (N, C, H, W) maps of the pyramid."""
        for unit in self.units:
            maps = unit(maps)
        return maps

    def __call__(self, maps: Tensor) -> dict[str, Tensor]:
        """(N, channels, H, W) outputs by name of the prediction, for (N, C, H, W) maps of the pyramid."""
        features = self.features(maps)
        return {name: predict(features) for name, predict in self.predictions.items()}

    @property
    def layers(self) -> list[nn.Module]:
        """All units and predictions."""
        return [*self.units, *self.predictions.values()]


@dataclass(frozen=True, kw_only=True, eq=False)
class BranchPair:
    """A branch of one level before and after surgery.

    Args:
        branch: Name of the branch; ``rpn`` is the one tower of R-CNN's proposal network.
        level: Name of the level.
        teacher: The old layers, which must not change.
        student: The new layers, which are to be filled. Layers that also belong to the teacher are shared, and must not change.
    """

    branch: DenseBranch
    level: str
    teacher: Tower
    student: Tower

    def is_shared(self, layer: nn.Module) -> bool:
        """Whether a layer of the student also belongs to the teacher."""
        return any(layer is old for old in self.teacher.layers)


@dataclass(frozen=True, kw_only=True, eq=False)
class LevelPair:
    """The head of one level before and after surgery.

    Args:
        level: Name of the level.
        old: The old towers of both branches, or of the one that serves for both.
        pairs: The one or two branches that get new layers.
        num_anchors: Number of anchors in a cell; 1 for FCOS.
        old_output: The old convolution that makes the level's map; None if the input is the level's map itself.
        output: The new convolution in its place, which only the new towers read; None keeps the level's map.
        output_is_read: Whether others read the level's map, too, as R-CNN's second stage does. The new convolution, which is then a light
            one, must give nearly the old map.
    """

    level: str
    old: Mapping[DenseBranch, Tower]
    pairs: Sequence[BranchPair]
    num_anchors: int
    old_output: nn.Module | None = None
    output: nn.Module | None = None
    output_is_read: bool = False

    def logits(self, outputs: Mapping[DenseBranch, Tensor]) -> Tensor:
        """The class logits among (channels, ...) outputs of the old towers; a proposal network's objectness is one logit an anchor."""
        return outputs["cls"] if "cls" in outputs else outputs["rpn"][: self.num_anchors]

    def old_maps(self, maps: Tensor) -> Tensor:
        """The level's map for the old towers, computed from the input of ``old_output``."""
        return maps if self.old_output is None else self.old_output(maps)

    def new_maps(self, maps: Tensor) -> Tensor:
        """The level's map for the new towers, computed from the same input."""
        return self.old_maps(maps) if self.output is None else self.output(maps)

    def old_parameters(self) -> list[nn.Parameter]:
        """The parameters that must not change, although gradients may pass through them."""
        modules = [layer for tower in self.old.values() for layer in tower.layers]
        if self.old_output is not None:
            modules.append(self.old_output)
        return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))

    def parameters(self) -> list[nn.Parameter]:
        """The new parameters: those that the closed form fills and the fit trains."""
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
            InputError: if it is empty, not finite, or not (1, C, H, W) with the channels that the level takes.
        """
        reader = self.old_output if self.old_output is not None else next(iter(self.old.values())).units[0]
        channels = convolutions(reader)[0].in_channels
        if maps.ndim != 4 or len(maps) != 1 or maps.shape[1] != channels or not maps.numel():
            raise InputError(
                f"{self.level} takes maps of shape (1, {channels}, H, W), got {tuple(maps.shape)}; give level_input's, one by one"
            )
        if not bool(torch.isfinite(maps).all()):
            raise InputError(f"a map of {self.level} has values that are not finite; look for a damaged image or model file")


def num_common(pairs: Sequence[BranchPair]) -> int:
    """How many of the first new units are the same in the students of two branches."""
    if len(pairs) < 2:
        return 0
    alike = [one is other and not pairs[0].is_shared(one) for one, other in zip(*(pair.student.units for pair in pairs), strict=False)]
    return [*alike, False].index(False)


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a unit or prediction, in order: one, or a depthwise one and a 1x1 one behind it."""
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


def norm_behind(module: nn.Module, conv: nn.Conv2d) -> nn.BatchNorm2d | None:
    """The batch norm directly behind a convolution of a unit, if there is one."""
    layers = list(module) if isinstance(module, nn.Sequential) else []
    return next((norm for layer, norm in pairwise(layers) if layer is conv and type(norm) is nn.BatchNorm2d), None)


def has_norm(module: nn.Module) -> bool:
    """Whether a unit has a norm, or other parameters, that cannot be combined with its convolutions into one linear map."""
    behind = [norm_behind(module, conv) for conv in convolutions(module)]
    others = [layer for layer in module.modules() if not isinstance(layer, nn.Conv2d) and layer not in behind]
    return any(isinstance(layer, nn.GroupNorm) or [*layer.parameters(recurse=False), *layer.buffers(recurse=False)] for layer in others)


def ends_in_relu(unit: nn.Module) -> bool:
    """Whether the last layer of a unit is a ReLU."""
    return isinstance(unit, nn.Sequential) and isinstance(unit[-1], nn.ReLU)
