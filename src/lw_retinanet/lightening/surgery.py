"""Give levels of a trained model towers of their own; all that is not replaced keeps its very weights."""

import copy

import torch

from lw_retinanet.conventions import LEVELS
from lw_retinanet.errors import InputError
from lw_retinanet.heads import SHARED, HeadPlan
from lw_retinanet.lightening.towers import BranchName, BranchPair, LevelPair, Tower
from lw_retinanet.lightening.weight_transfer import transfer_weights
from lw_retinanet.models.fpn import FPN
from lw_retinanet.models.head import Branch, Head
from lw_retinanet.models.retinanet import RetinaNet

BRANCHES: tuple[BranchName, ...] = ("cls", "bbox")


def lighten_copy(model: RetinaNet, plan: HeadPlan, *, own_output: bool = True) -> tuple[RetinaNet, list[LevelPair]]:
    """A copy whose head follows the plan, filled without looking at any image.

    Backbone, pyramid and all towers that the plan leaves alone have the same weights, so P4..P7 and their outputs are the same to the bit.

    Args:
        model: trained; not changed.
        plan: own towers by level; its ``shared`` tower is ignored, the model's stays. Levels that the model itself has lightened already
            keep their towers unless the plan names them.
        own_output: where both branches of P3 are new, let P3's convolution be new too (:class:`LevelPair`) and keep the old one for the
            full head.

    Returns:
        The light model and, level by level, what is new in it.

    Raises:
        InputError: if the plan changes nothing, cannot be built for this model, or shares layers with a tower that the model does not have.
    """
    old_plan = model.head.plan
    new = joined_plan(model.head, plan)
    if new == old_plan:
        raise InputError("the plan gives no level a tower that it does not have, so nothing would change; choose another")
    # A model whose D3 is light already has read P3 with other towers than the shared ones: its convolution stays.
    own_output = own_output and "P3" in plan.cls and "P3" in plan.bbox and "P3" not in {*old_plan.cls, *old_plan.bbox}
    light = RetinaNet(
        backbone=copy.deepcopy(model.backbone),
        fpn=_pyramid(model.fpn, full_output=own_output),
        head=_head(model.head, new),
        conventions=model.conventions,
    )
    light.train(model.training)
    levels = []
    for level in LEVELS:
        changed = [name for name in BRANCHES if level in getattr(plan, name)]
        if changed:
            levels.append(_level_pair(model, light, level, changed, own_output=own_output and level == "P3"))
            for pair in levels[-1].pairs:
                transfer_weights(pair)
    return light, levels


def is_switchable(model: RetinaNet, plan: HeadPlan) -> bool:
    """Whether the full head can be had back from the light copy: it was shared by all levels, and some level still shares it."""
    old = model.head.plan
    return not old.cls and not old.bbox and all(len(getattr(plan, name)) < len(LEVELS) for name in BRANCHES)


def _pyramid(fpn: FPN, *, full_output: bool) -> FPN:
    fpn = copy.deepcopy(fpn)
    if full_output:
        convolution = fpn.layer_blocks[0][0]
        fpn.full_output = copy.deepcopy(convolution)
    return fpn


def joined_plan(head: Head, plan: HeadPlan) -> HeadPlan:
    """The plan's towers, and the head's own where it names none.

    Raises:
        InputError: if the plan shares layers that the head does not have, or that are of another width.
    """
    old = head.plan
    try:
        joined = HeadPlan(cls=old.cls | plan.cls, bbox=old.bbox | plan.bbox, shared=old.shared)
    except ValueError as error:
        raise InputError(f"the plan does not go with this model: {error}; give the level units of its own") from None
    if old.shared.width not in (None, head.in_channels):
        for name in BRANCHES:
            for level, tower in getattr(plan, name).items():
                if tower.predict == SHARED or SHARED in tower.units:
                    raise InputError(
                        f"{name} {level} of the plan shares layers with a tower {old.shared.width} wide, but is as wide as the pyramid; "
                        "give it layers of its own"
                    )
    return joined


def _head(head: Head, plan: HeadPlan) -> Head:
    """A head after the plan with the weights of the old one wherever both have the same layer."""
    try:
        light = Head(
            in_channels=head.in_channels, num_classes=head.num_classes, num_anchors=head.num_anchors, plan=plan, init="fan_in_light"
        )
    except ValueError as error:  # a unit that does not go with these widths
        raise InputError(f"the plan cannot be built for a head {head.in_channels} wide: {error}") from None
    kept = head.state_dict()
    for name in BRANCHES:
        for level in getattr(plan, name):
            if getattr(head.plan, name).get(level) != getattr(plan, name)[level]:
                kept = {key: value for key, value in kept.items() if f"{name}.own_" not in key or f".{level}." not in key}
    wanted = light.state_dict()
    light.to(next(head.parameters()))  # device and precision
    lost = sorted(key for key in wanted if ".shared_" in key and key not in kept)
    if lost:
        raise InputError(f"the plan shares layers that this model does not have, first head.{lost[0]}; give the level layers of its own")
    light.load_state_dict({key: value for key, value in kept.items() if key in wanted}, strict=False)
    return light


def _level_pair(model: RetinaNet, light: RetinaNet, level: str, changed: list[BranchName], *, own_output: bool) -> LevelPair:
    old: dict[BranchName, Tower] = {}
    pairs = []
    for name in BRANCHES:
        before, after = _branch(model, name), _branch(light, name)
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
        old_output=(light.fpn.full_output if own_output else light.fpn.layer_blocks[0]) if level == "P3" else None,
        output=light.fpn.layer_blocks[0] if own_output else None,
    )


def _branch(model: RetinaNet, name: BranchName) -> Branch:
    return model.head.cls if name == "cls" else model.head.bbox


def _old_tower(before: Branch, after: Branch, level: str) -> Tower:
    """The level's tower as it was: shared layers are the light model's where it still has them, all others copies."""
    units, predict = before.layers(level)
    still = {id(unit): after.shared_units[key] for key, unit in before.shared_units.items() if key in after.shared_units}
    if before.shared_predict is not None and after.shared_predict is not None:
        still[id(before.shared_predict)] = after.shared_predict
    *units, predict = [still[id(layer)] if id(layer) in still else copy.deepcopy(layer) for layer in (*units, predict)]
    return Tower(units=units, predictions={"prediction": predict})


@torch.no_grad()
def level_input(model: RetinaNet, images: torch.Tensor, level: str) -> torch.Tensor:
    """What enters a level's :class:`LevelPair`: of P3 the map before its convolution, of the others the map itself.

    Raises:
        InputError: for a level that there is not.
    """
    if level not in LEVELS:
        raise InputError(f"there is no level {level!r}; the pyramid has {', '.join(LEVELS)}")
    return model.fpn.merged(model.backbone(images))[level]
