"""Give levels of a trained model towers of their own. Everything that is not replaced keeps its weights."""

import copy
from typing import get_args

import torch

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.errors import InputError
from lw_retinanet.heads import OF_CLASSES, SHARED, BranchName, HeadPlan
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower
from lw_retinanet.lightening.weight_transfer import transfer_weights
from lw_retinanet.models.fpn import FPN, OUTPUTS_APART
from lw_retinanet.models.head import Branch, Head
from lw_retinanet.models.retinanet import RetinaNet

_BRANCHES: tuple[BranchName, ...] = get_args(BranchName)


def lighten_copy(model: RetinaNet, plan: HeadPlan, *, own_output: bool = True) -> tuple[RetinaNet, list[LevelPair]]:
    """Copy a model, give the copy the plan's towers, and fill these from the old weights.

    Backbone, pyramid and all towers that the plan does not name have the same weights, so the outputs of all other levels stay the same to
    the bit.

    Args:
        model: A trained model; it is not changed.
        plan: Own towers by level. Its ``shared`` tower is ignored, because the model has one. Levels of the model that are light already
            keep their towers unless the plan names them.
        own_output: If both branches of P3 are new, let the convolution that makes P3 be new too (:class:`LevelPair`), and keep the old one
            for the full head; the same for P4.

    Returns:
        The light model, and the old and new layers of each level that changes.

    Raises:
        InputError: if the plan changes nothing, cannot be built for this model, or shares layers with a tower that the model does not have.
    """
    old_plan = model.head.plan
    new = joined_plan(model.head, plan)
    if new == old_plan:
        raise InputError("the plan gives no level a tower that it does not have, so nothing would change; choose another")
    changed = {level: [name for name in _BRANCHES if _differs(old_plan, new, name, level)] for level in LEVELS}
    # If a level of the model is light already, other towers than the shared ones read its map, so its convolution stays.
    were_light = {*old_plan.cls, *old_plan.bbox}
    outputs = [level for level in OUTPUTS_APART if own_output and len(changed[level]) == len(_BRANCHES) and level not in were_light]
    light = RetinaNet(
        backbone=copy.deepcopy(model.backbone),
        fpn=_pyramid(model.fpn, outputs),
        head=_head(model.head, new),
        conventions=model.conventions,
    )
    light.train(model.training)
    levels = [_level_pair(model, light, level, names, own_output=level in outputs) for level, names in changed.items() if names]
    for each in levels:
        transfer_weights(*each.pairs)
    return light, levels


def _differs(old: HeadPlan, new: HeadPlan, branch: BranchName, level: str) -> bool:
    """Whether a level gets another tower in a branch, or takes layers from a tower that is another one."""
    before, after = getattr(old, branch).get(level), getattr(new, branch).get(level)
    if before != after or after is None:
        return bool(before != after)
    lenders = [(branch, name) for name in after.units if name in LEVELS] + [("cls", level)] * (OF_CLASSES in after.units)
    return any(_differs(old, new, *lender) for lender in lenders)


def is_switchable(model: RetinaNet, plan: HeadPlan) -> bool:
    """Whether the light copy still holds the full head: all levels of the model shared it, and some level of the copy still does."""
    old = model.head.plan
    return not old.cls and not old.bbox and all(len(getattr(plan, name)) < len(LEVELS) for name in _BRANCHES)


def _pyramid(fpn: FPN, outputs: list[str]) -> FPN:
    fpn = copy.deepcopy(fpn)
    for level in outputs:
        fpn.give_full_output(level, copy.deepcopy(fpn.layer_blocks[OUTPUTS_APART.index(level)][0]))
    return fpn


def joined_plan(head: Head, plan: HeadPlan) -> HeadPlan:
    """The plan's towers, and the towers that the head has already for levels that the plan does not name.

    Raises:
        InputError: if the plan shares layers that the head does not have, or that are of another width.
    """
    old = head.plan
    try:
        joined = HeadPlan(cls=old.cls | plan.cls, bbox=old.bbox | plan.bbox, shared=old.shared)
    except ValueError as error:
        raise InputError(f"the plan does not go with this model: {error}; give the level units of its own") from None
    if old.shared.width not in (None, head.in_channels):
        for name in _BRANCHES:
            for level, tower in getattr(plan, name).items():
                if tower.predict == SHARED or SHARED in tower.units:
                    raise InputError(
                        f"{name} {level} of the plan shares layers with a tower {old.shared.width} wide, but is as wide as the pyramid; "
                        "give it layers of its own"
                    )
    return joined


def _head(head: Head, plan: HeadPlan) -> Head:
    """Build the plan's head, with the weights of the old one in all layers that both have."""
    try:
        light = Head(
            in_channels=head.in_channels, num_classes=head.num_classes, num_anchors=head.num_anchors, plan=plan, init="fan_in_light"
        )
    except ValueError as error:  # a unit does not allow these widths
        raise InputError(f"the plan cannot be built for a head {head.in_channels} wide: {error}") from None
    kept = head.state_dict()
    for name in _BRANCHES:
        for level in getattr(plan, name):
            if _differs(head.plan, plan, name, level):
                kept = {key: value for key, value in kept.items() if f"{name}.own_" not in key or f".{level}." not in key}
    wanted = light.state_dict()
    light.to(next(head.parameters()))  # device and precision
    lost = sorted(key for key in wanted if ".shared_" in key and key not in kept)
    if lost:
        raise InputError(f"the plan shares layers that this model does not have, first head.{lost[0]}; give the level layers of its own")
    light.load_state_dict({key: value for key, value in kept.items() if key in wanted}, strict=False)
    return light


def _level_pair(model: RetinaNet, light: RetinaNet, level: str, changed: list[BranchName], *, own_output: bool) -> LevelPair:
    old: dict[DenseBranch, Tower] = {}
    pairs = []
    for name in _BRANCHES:
        before, after = getattr(model.head, name), getattr(light.head, name)
        old[name] = _old_tower(before, after, level)
        if name in changed:
            units, predict = after.layers(level)
            student = Tower(units=units, predictions={"prediction": predict})
            lent = [layer for layer in (*after.shared_units.values(), after.shared_predict) if layer in student.layers]
            if any(layer not in old[name].layers for layer in lent):
                raise InputError(
                    f"{name} {level} of the plan shares layers with other levels, but the model has its own there already; "
                    "start from the model that it was made of"
                )
            pairs.append(BranchPair(branch=name, level=level, teacher=old[name], student=student))
    return LevelPair(
        level=level,
        old=old,
        pairs=pairs,
        num_anchors=light.head.num_anchors,
        old_output=light.fpn.output(level, full=own_output) if level in OUTPUTS_APART else None,
        output=light.fpn.output(level) if own_output else None,
    )


def _old_tower(before: Branch, after: Branch, level: str) -> Tower:
    """The level's tower in the old model. Shared layers that the light model still has are taken from there; all others are copies."""
    units, predict = before.layers(level)
    still = {id(unit): after.shared_units[key] for key, unit in before.shared_units.items() if key in after.shared_units}
    if before.shared_predict is not None and after.shared_predict is not None:
        still[id(before.shared_predict)] = after.shared_predict
    *units, predict = [still[id(layer)] if id(layer) in still else copy.deepcopy(layer) for layer in (*units, predict)]
    return Tower(units=units, predictions={"prediction": predict})


@torch.no_grad()
def level_input(model: RetinaNet, images: torch.Tensor, level: str) -> torch.Tensor:
    """The input of a level's :class:`LevelPair`: for P3 and P4 the map before its convolution, for the others the level's map.

    Raises:
        InputError: for an unknown level.
    """
    if level not in LEVELS:
        raise InputError(f"there is no level {level!r}; the pyramid has {', '.join(LEVELS)}")
    return model.fpn.merged(model.backbone(images))[level]
