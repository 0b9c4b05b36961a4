"""Lighten a torchvision detector: the result is a detector of the same class in which some levels have light towers."""

import copy
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.counting.imbalance import predict_kernel, units_at_depth
from lw_retinanet.errors import ConfigError, InputError
from lw_retinanet.heads import PREDICTION_NAMES, SHARED, UNIT_NAMES, HeadPlan, TowerPlan, plan_of
from lw_retinanet.interop.torchvision_features import (
    evaluating,
    finest_output,
    first_output_block,
    give_light_output,
    level_inputs,
    light_output,
)
from lw_retinanet.interop.torchvision_head import (
    HEADS,
    TOWER,
    branch_head,
    branches_of,
    found_head,
    in_channels,
    level_names,
    level_pair,
    new_towers,
    num_levels,
    own_towers,
    predictions,
    require_detector,
    require_levels_apart,
    tower_units,
)
from lw_retinanet.lightening.calibration_images import CalibrationImage, find_calibration_images, image_tensor
from lw_retinanet.lightening.filling import DEFAULT_PRESET, MAX_BYTES, LighteningSettings, checked_steps, fill_levels
from lw_retinanet.lightening.fitting import FitSettings
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower, convolutions
from lw_retinanet.lightening.weight_transfer import transfer_weights
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.models.head import init_conv
from lw_retinanet.progress import Progress
from lw_retinanet.weights.foreign.levelwise import LevelWise, give_own_layers

if TYPE_CHECKING:
    from lw_retinanet.lightening.calibration_images import Images

log = logging.getLogger(__name__)
ModelT = TypeVar("ModelT", bound=nn.Module)


def lighten_torchvision(
    model: ModelT,
    to: str | HeadPlan = DEFAULT_PRESET,
    *,
    images: "Images | None" = None,
    fit_steps: int | None = None,
    keep_pyramid: bool = False,
    light_pyramid: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelT:
    """Make a torchvision detector cheaper. The copy has the same class and works in the same training and evaluation code.

    All levels that the plan does not name answer as before, bit for bit. The parameters are those of :func:`lw_retinanet.lighten`.

    Raises:
        InputError: if the model's head cannot be lightened, or the images cannot be used; the message says why.
        ImageError: for an image that cannot be read.
        ConfigError: for an unknown preset, or one that would not make this model cheaper.
    """
    require_detector(model)
    plan = to if isinstance(to, HeadPlan) else plan_for(model, to)
    steps = checked_steps(fit_steps, has_images=images is not None)
    found = [] if images is None else find_calibration_images(images, channels=_image_channels(model), seed=seed)
    light = light_copy(model, plan)
    new = [pair for level in level_names(model) for pair in new_towers(model, light, level)]
    if light_pyramid:
        if keep_pyramid:
            raise InputError("keep_pyramid and light_pyramid contradict each other; leave one of them out")
        if new[0].level != level_names(model)[0]:
            raise InputError("light_pyramid goes with a plan that makes the model's first map (its P3) light; name it, or leave this out")
        give_light_output(light)
    if isinstance(to, str):
        old_macs, new_macs = (sum(_macs_per_cell(getattr(pair, side)) for pair in new) for side in ("teacher", "student"))
        if new_macs >= old_macs:
            raise ConfigError(
                f"{to} would not make this {type(model).__name__} cheaper: {new_macs:,} MACs a cell instead of {old_macs:,}; "
                "choose another preset, or give a plan with a smaller width"
            )
    for pair in new:
        transfer_weights(pair)
    if found:
        # The maps of P2 are four times as large as those of P3, and a quarter of them has as many cells.
        max_bytes = MAX_BYTES // 4 if isinstance(model, GeneralizedRCNN) else MAX_BYTES
        fit = FitSettings(steps=steps, seed=seed)
        settings = LighteningSettings(fit=fit, own_output=not keep_pyramid, seed=seed, max_bytes=max_bytes)
        _fill(model, light, list(dict.fromkeys(pair.level for pair in new)), found, settings, progress)
    return light


def _fill(
    model: nn.Module,
    light: nn.Module,
    levels: Sequence[str],
    images: Sequence[CalibrationImage],
    settings: LighteningSettings,
    progress: Progress | None,
) -> None:
    """Fill the new towers of ``light`` from calibration images, in place."""
    others = {parameter.dtype for parameter in light.parameters()} - {torch.float32}
    if others:
        raise InputError(f"fitting to images needs float32 weights, the model has {others.pop()}; lighten model.float(), then convert back")
    output, replaced = light_output(light), first_output_block(model)
    if output is None or replaced is None:  # the convolution is as it was, or was light before
        has_own_output = settings.own_output and finest_output(model, image_tensor(images[0])) is not None
        output, replaced = first_output_block(light) if has_own_output else None, None
    pairs = []
    for level in levels:
        both_are_new = level == level_names(model)[0] and len(new_towers(model, light, level)) == len(branches_of(model))
        pairs.append(level_pair(model, light, level, output=output, replaced=replaced) if both_are_new else level_pair(model, light, level))

    def inputs(level: LevelPair, mirrored: bool) -> Iterator[Tensor]:
        tensors = map(image_tensor, images)
        return level_inputs(model, (tensor.flip(2) for tensor in tensors) if mirrored else tensors, level)

    device = next(light.parameters()).device
    with evaluating(light):
        # The closed form runs on the CPU wherever the model is: it takes seconds, and the maps are there.
        filled = fill_levels(pairs, inputs, len(images), settings, device=device, solve_on=torch.device("cpu"), progress=progress)
    for each in filled:
        log.info("%s: the closed form misses %s of the old outputs' variance", each.level, each.errors)


def light_copy(model: ModelT, plan: HeadPlan) -> ModelT:
    """Copy a torchvision detector and give the plan's levels their own towers, with random weights.

    All old weights keep their values and names. The names of the new ones begin with ``head.classification_head.own.0.conv`` (0 is the
    finest level) and the like. If every level has a tower of its own, no level runs the old tower; it is then frozen, so that optimisers
    and distributed training ignore it.

    Args:
        model: torchvision's ``RetinaNet``, ``FCOS`` or R-CNN, or a subclass; it is not changed. Other levels of it may be light already.
        plan: The towers. ``P3`` is the model's first feature map, ``P4`` the second, and so on. Its ``shared`` tower is not used, because
            the model has one. A prediction may be ``shared``, units may not. For an R-CNN, whose proposal network has one tower, both
            branches must be the same.

    Raises:
        InputError: if the model, its head or the plan does not allow it; the message says why.
    """
    require_detector(model)
    wanted = _wanted(model, plan)
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
            give_own_layers(head, level_names(model).index(level), _own_layers(head, tower, branch=branch, level=level))
        _freeze_unused(light, branch)
    for level in level_names(model):
        for pair in own_towers(light, level):
            if level in wanted[pair.branch]:
                _start(pair)
    return light


def _wanted(model: nn.Module, plan: HeadPlan) -> dict[DenseBranch, dict[str, TowerPlan]]:
    """The plan's towers by branch and by what the model's levels are called."""
    names = dict(zip(LEVELS, level_names(model), strict=True))
    cls, bbox = ({names[level]: tower for level, tower in towers.items()} for towers in (plan.cls, plan.bbox))
    if "rpn" not in branches_of(model):
        return {"cls": cls, "bbox": bbox}
    if cls != bbox:
        raise InputError(
            f"the proposal network of a {type(model).__name__} has one tower for objectness and boxes, so a plan must be the same in both "
            "branches; choose lw-narrow, lw-v3 or both- with one block"
        )
    return {"rpn": cls}


def plan_for(model: nn.Module, preset: str) -> HeadPlan:
    """The plan of a preset; for an R-CNN with towers as deep as that of its proposal network.

    Raises:
        ConfigError: for an unknown preset, or one whose units do not go with that depth.
        InputError: if the preset is not the same in both branches, and the model has one tower for both.
    """
    plan = plan_of(preset)
    if "rpn" not in branches_of(model):
        return plan
    _wanted(model, plan)
    head = branch_head(model, "rpn")
    depth = len(list(tower_units(head)))
    kernel = max(conv.kernel_size[0] for layer in predictions(head, "rpn").values() for conv in convolutions(layer))
    towers = {}
    for level, tower in plan.cls.items():
        units = units_at_depth(tower.units, depth)
        if not units:
            raise ConfigError(
                f"{preset} alternates {len(set(tower.units))} kinds of units, and the proposal network of this {type(model).__name__} has "
                f"{depth} in all; choose lw-narrow or lw-v3"
            )
        towers[level] = replace(tower, units=units, predict=predict_kernel(tower, kernel))
    return HeadPlan(cls=towers, bbox=towers)


def _image_channels(model: nn.Module) -> int:
    transform: Any = model.transform
    mean = getattr(transform, "image_mean", None)
    return len(mean) if isinstance(mean, Sequence) else 3


def _require_free(model: nn.Module, branch: DenseBranch, level: str) -> None:
    names, count = level_names(model), num_levels(model)
    place = names.index(level)
    if place >= count:
        raise InputError(f"the plan names {level}, but the model has {count} feature maps, {names[0]} to {names[count - 1]}")
    head = branch_head(model, branch)
    if isinstance(head, LevelWise) and str(place) in head.own:
        raise InputError(f"{HEADS[branch]} is light at {level} already; start from the model that it was made of")


def _own_layers(head: nn.Module, plan: TowerPlan, *, branch: DenseBranch, level: str) -> dict[str, nn.Module]:
    """New layers for a level, under the names that the head uses for its own."""
    if not {*plan.units} <= {*UNIT_NAMES} or plan.predict not in (*PREDICTION_NAMES, SHARED):
        raise InputError(
            f"{branch} {level} of the plan shares units with other towers, which a torchvision head cannot; "
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


def _freeze_unused(model: nn.Module, branch: DenseBranch) -> None:
    head = found_head(model, branch)
    if not isinstance(head, LevelWise) or len(head.own) < num_levels(model):
        return
    for name in (TOWER, *predictions(head, branch)):
        if all(name in dict(light.named_children()) for light in head.own.values()):
            getattr(head, name).requires_grad_(False)


@torch.no_grad()
def _start(pair: BranchPair) -> None:
    """Draw fan-in weights for the tower and small ones for the prediction, whose bias is the old one: it keeps the class prior."""
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
