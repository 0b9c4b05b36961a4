"""torchvision's detector in, the same detector out, of which some levels have light towers."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from lw_retinanet.conventions import LEVELS
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import SHARED, HeadPlan, TowerPlan, plan_of
from lw_retinanet.interop.calibration import calibrate, read_pictures
from lw_retinanet.interop.levelwise import LevelWise, give_own_layers
from lw_retinanet.interop.torchvision_head import (
    HEADS,
    TOWER,
    branch_head,
    in_channels,
    level_heads,
    num_levels,
    predictions,
    require_detector,
    require_levels_apart,
)
from lw_retinanet.lightening.towers import BranchName, BranchPair, Tower, convolutions
from lw_retinanet.lightening.weight_transfer import transfer_weights
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.models.head import init_conv
from lw_retinanet.progress import Progress

if TYPE_CHECKING:
    from lw_retinanet.interop.calibration import Images

ModelT = TypeVar("ModelT", bound=nn.Module)


def lighten_torchvision(
    model: ModelT,
    to: str | HeadPlan = "lw-v3",
    *,
    images: "Images | None" = None,
    fit_steps: int = 0,
    keep_pyramid: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelT:
    """Make a torchvision detector cheaper; the copy is of the same class and takes part in the same training and evaluation code.

    All levels that the plan does not name answer as before, bit for bit. The light towers start from the weights of the old ones; with
    pictures they are fitted to what the old ones say, first in closed form (seconds), then by ``fit_steps`` of distillation.

    Args:
        model: torchvision's ``RetinaNet`` or ``FCOS``, or a subclass of them, on any device; not changed.
        to: a name that :func:`~lw_retinanet.heads.plan_of` takes, or a plan.
        images: like those the model will see, without labels: a folder or data set, or a list of files, PIL pictures, (H, W, 3) uint8
            arrays or (3, H, W) float tensors as the model takes them. A few dozen are enough to start. None: the old weights alone, which
            costs much accuracy until the model is trained on.
        fit_steps: of distillation; 1500 take minutes on two cores.
        keep_pyramid: leave the convolution that makes the finest map as it is. By default it is fitted too where both branches are new and
            nothing else in the model reads its map; leave it if something outside of the model does.
        seed: of what is drawn at random.
        progress: wraps what takes long, for instance to show a bar; gets the items, their number and what is being done.

    Raises:
        InputError: if the model's head cannot be lightened so, or the images are of no use, with the reason.
        ImageError: for a picture that cannot be read.
        ConfigError: for an unknown preset, or one that would not make this model cheaper.
    """
    require_detector(model)
    plan = head_plan(to)
    require_steps(fit_steps, has_images=images is not None)
    pictures = [] if images is None else read_pictures(images, channels=_image_channels(model), seed=seed)
    light = light_copy(model, plan)
    pairs = [pair for level in LEVELS for pair in level_heads(light, level)]
    new = [pair for pair in pairs if not _owned(model, pair)]
    if isinstance(to, str):
        old_macs, new_macs = (sum(_macs_per_cell(getattr(pair, side)) for pair in new) for side in ("teacher", "student"))
        if new_macs >= old_macs:
            raise ConfigError(
                f"{to} would not make this {type(model).__name__} cheaper: {new_macs:,} MACs a cell instead of {old_macs:,}; "
                "choose another preset, or give a plan with a smaller width"
            )
    for pair in new:
        transfer_weights(pair)
    if pictures:
        levels = list(dict.fromkeys(pair.level for pair in new))
        calibrate(model, light, levels, pictures, fit_steps=fit_steps, keep_pyramid=keep_pyramid, seed=seed, progress=progress)
    return light


def light_copy(model: ModelT, plan: HeadPlan) -> ModelT:
    """Copy a torchvision detector and give the plan's levels their own towers, with random weights.

    All old weights stay, bit for bit and under their old names; the new ones stand at
    ``head.classification_head.own.0.conv...`` (0: the finest level) and the like. Where every level has a tower of its own, nothing runs
    the old one any more, and it is frozen, so that optimisers and distributed training pass it over.

    Args:
        model: torchvision's ``RetinaNet`` or ``FCOS``, or a subclass of them; not changed. It may be light already, at other levels.
        plan: ``P3`` is the model's first feature map, ``P4`` the second, ... Its ``shared`` tower is not used: the model's own is. A
            prediction may be ``shared``, units may not.

    Raises:
        InputError: if the model, its head or the plan does not allow it, with the reason.
    """
    require_detector(model)
    wanted: dict[BranchName, Mapping[str, TowerPlan]] = {
        "cls": {str(level): tower for level, tower in plan.cls.items()},
        "bbox": {str(level): tower for level, tower in plan.bbox.items()},
    }
    if not any(wanted.values()):
        raise InputError("the plan gives no level a tower of its own, so nothing would change; choose another, for instance lw-v3")
    for branch, towers in wanted.items():
        for level in towers:
            _require_free(model, branch, level)
        if towers:
            require_levels_apart(model, branch)
    light = copy.deepcopy(model)
    for branch, towers in wanted.items():
        for level, tower in towers.items():
            head = branch_head(light, branch)
            give_own_layers(head, LEVELS.index(level), _own_layers(head, tower, branch=branch, level=level))
        _freeze_unused(light, branch)
    for level in LEVELS:
        for pair in level_heads(light, level):
            if level in wanted[pair.branch]:
                _start(pair)
    return light


def head_plan(to: str | HeadPlan) -> HeadPlan:
    """A plan, or the one that a preset's name stands for.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    return to if isinstance(to, HeadPlan) else plan_of(to)


def require_steps(fit_steps: int, *, has_images: bool) -> None:
    """Refuse a number of fitting steps that means nothing.

    Raises:
        InputError: if it is negative, or there is nothing to fit to.
    """
    if not isinstance(fit_steps, int) or fit_steps < 0:
        raise InputError(f"fit_steps must be a whole number, 0 or more, got {fit_steps!r}")
    if fit_steps and not has_images:
        raise InputError(f"fit_steps={fit_steps} needs images to fit to; give images=, or leave fit_steps out")


def _image_channels(model: nn.Module) -> int:
    transform: Any = model.transform
    mean = getattr(transform, "image_mean", None)
    return len(mean) if isinstance(mean, Sequence) else 3


def _owned(model: nn.Module, pair: BranchPair) -> bool:
    return any(other.branch == pair.branch for other in level_heads(model, pair.level))


def _require_free(model: nn.Module, branch: BranchName, level: str) -> None:
    place, count = LEVELS.index(level), num_levels(model)
    if place >= count:
        raise InputError(f"the plan names {level}, but the model has {count} feature maps, P3 to {LEVELS[min(count, len(LEVELS)) - 1]}")
    head = branch_head(model, branch)
    if isinstance(head, LevelWise) and str(place) in head.own:
        raise InputError(f"head.{HEADS[branch]} is light at {level} already; start from the model that it was made of")


def _own_layers(head: nn.Module, plan: TowerPlan, *, branch: BranchName, level: str) -> dict[str, nn.Module]:
    """Light layers by the names of the head's own."""
    if SHARED in plan.units:
        raise InputError(
            f"{branch} {level} of the plan shares units with the other levels, which a torchvision head cannot; "
            "give it units of its own (its prediction may be shared)"
        )
    channels = in_channels(head)
    width = plan.width or channels
    try:
        tower = nn.Sequential(*(UNITS[unit](channels if i == 0 else width, width) for i, unit in enumerate(plan.units)))
    except ValueError as error:  # a unit that does not go with these widths
        raise InputError(f"{branch} {level} of the plan cannot be built for {channels} channels: {error}") from None
    layers: dict[str, nn.Module] = {TOWER: tower}
    for name, prediction in predictions(head, branch).items():
        assert isinstance(prediction, nn.Conv2d)
        if plan.predict != SHARED:
            layers[name] = PREDICTIONS[plan.predict](width, prediction.out_channels)
        elif prediction.in_channels != width:
            raise InputError(
                f"{branch} {level} of the plan shares the prediction {name}, which takes {prediction.in_channels} channels, not {width}; "
                "give it a prediction of its own"
            )
    weight = next(getattr(head, TOWER).parameters())
    return {name: layer.to(device=weight.device, dtype=weight.dtype) for name, layer in layers.items()}


def _freeze_unused(model: nn.Module, branch: BranchName) -> None:
    head = getattr(model.head, HEADS[branch], None)
    if not isinstance(head, LevelWise) or len(head.own) < num_levels(model):
        return
    for name in (TOWER, *predictions(head, branch)):
        if all(name in dict(light.named_children()) for light in head.own.values()):
            getattr(head, name).requires_grad_(False)


@torch.no_grad()
def _start(pair: BranchPair) -> None:
    """Fan-in weights for the tower; for the prediction small ones and the old biases, which keep the class prior."""
    for unit in pair.student.units:
        for conv in convolutions(unit):
            init_conv(conv, fan_in=True)
    for name, prediction in pair.student.predictions.items():
        old = pair.teacher.predictions[name]
        if prediction is old:
            continue
        *spatial, last = convolutions(prediction)
        for conv in spatial:
            init_conv(conv, fan_in=True, gain=1.0)  # no ReLU follows
        init_conv(last, fan_in=False)
        if last.bias is not None and isinstance(old, nn.Conv2d) and old.bias is not None:
            last.bias.copy_(old.bias)


def _macs_per_cell(tower: Tower) -> int:
    return sum(conv.weight.numel() for layer in tower.layers for conv in convolutions(layer))
