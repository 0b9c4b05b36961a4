"""The head of torchvision's RetinaNet, FCOS and R-CNN in the terms of this package: branches, towers and predictions.

R-CNN's head is that of its proposal network: one branch, ``rpn``, whose tower is for the objectness and the boxes.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from lw_retinanet.conventions import LEVELS
from lw_retinanet.counting.dense_head import DenseBranch
from lw_retinanet.errors import InputError
from lw_retinanet.lightening.towers import BranchPair, LevelPair, Tower
from lw_retinanet.weights.foreign.levelwise import LevelWise, join
from lw_retinanet.weights.foreign.torchvision_model import place_inside

# The heads of the branches in a model, and the names of their predictions. Only FCOS has the second prediction of the box branch.
HEADS: dict[DenseBranch, str] = {"cls": "head.classification_head", "bbox": "head.regression_head", "rpn": "rpn.head"}
_PREDICTIONS: dict[DenseBranch, tuple[str, ...]] = {
    "cls": ("cls_logits",),
    "bbox": ("bbox_reg", "bbox_ctrness"),
    "rpn": ("cls_logits", "bbox_pred"),
}
_REQUIRED: dict[DenseBranch, tuple[str, ...]] = {**_PREDICTIONS, "bbox": ("bbox_reg",)}
TOWER = "conv"
_RCNN_LEVELS = ("P2", *LEVELS[:-1])


def require_detector(model: object) -> None:
    """Check that a model is one that can be lightened in place.

    Raises:
        InputError: if it is not; the message says what is possible instead.
    """
    if isinstance(model, GeneralizedRCNN):
        _require_proposal_network(model)
        return
    if isinstance(model, RetinaNet | FCOS):
        return
    if isinstance(model, nn.Module) and (place := place_inside(model, RetinaNet, FCOS, GeneralizedRCNN)):
        kind = type(model.get_submodule(place)).__name__
        raise InputError(
            f"the model is wrapped in a {type(model).__name__}; lighten the {kind} inside it, which its attribute {place} holds, "
            "then put it back"
        )
    raise InputError(
        f"cannot lighten a {type(model).__name__}: only torchvision's RetinaNet, FCOS and R-CNN with a pyramid, and subclasses of them, "
        "run one head over all levels; for any other torchvision detector `lw-retinanet profile` shows what its MACs are spent on"
    )


def _require_proposal_network(model: nn.Module) -> None:
    kind = type(model).__name__
    network = getattr(model, "rpn", None)
    generator = getattr(network, "anchor_generator", None)
    if not isinstance(getattr(generator, "sizes", None), tuple | list) or not hasattr(generator, "num_anchors_per_location"):
        raise InputError(
            f"cannot lighten this {kind}: its rpn ({type(network).__name__}) must have an `anchor_generator` and a `head` "
            "as torchvision's RegionProposalNetwork does; put such a one in its place"
        )
    branch_head(model, "rpn")
    if num_levels(model) < 2:
        raise InputError(
            f"cannot lighten this {kind}: it has no feature pyramid, so its proposal network runs on one map and no level of it is too "
            "expensive; choose a model with one, for instance fasterrcnn_resnet50_fpn"
        )


def branches_of(model: nn.Module) -> tuple[DenseBranch, ...]:
    """The branches of a model's head: ``rpn`` for an R-CNN, else ``cls`` and ``bbox``."""
    return ("rpn",) if isinstance(model, GeneralizedRCNN) else ("cls", "bbox")


def level_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the model's feature maps, the finest first: ``P2``, ... for an R-CNN, else ``P3``, ...; whatever their strides are."""
    return _RCNN_LEVELS if isinstance(model, GeneralizedRCNN) else LEVELS


def found_head(model: nn.Module, branch: DenseBranch) -> nn.Module | None:
    """The head of a branch as it is; None if the model has none at the usual place."""
    try:
        return model.get_submodule(HEADS[branch])
    except AttributeError:
        return None


def branch_head(model: nn.Module, branch: DenseBranch) -> nn.Module:
    """The head of a branch of a torchvision detector.

    Raises:
        InputError: if it does not consist of a tower ``conv`` and predictions behind it.
    """
    where = HEADS[branch]
    head = found_head(model, branch)
    if head is None:
        raise InputError(f"{type(model).__name__} has no {where}; its own kind of head cannot be lightened")
    names = _REQUIRED[branch]
    is_usual = all(isinstance(getattr(head, name, None), nn.Conv2d) for name in names)
    if not isinstance(getattr(head, TOWER, None), nn.Sequential) or not is_usual:
        remedy = "rename them" if branch == "rpn" else "rename them, or lighten the other branch only"
        raise InputError(
            f"{where} ({type(head).__name__}) must have its tower in `{TOWER}` (Sequential) and its prediction in "
            f"{' and '.join(f'`{name}`' for name in names)} (Conv2d), as torchvision's heads do; {remedy}"
        )
    if "forward" in vars(head) or (hasattr(head, "own") and not isinstance(head, LevelWise)):
        taken = "forward" if "forward" in vars(head) else "own"
        raise InputError(f"{where} ({type(head).__name__}) has an attribute `{taken}` of its own, which lightening needs; use a subclass")
    return head


def require_levels_apart(model: nn.Module, branch: DenseBranch) -> None:
    """Check that a head gives the same answers for one map alone as for all maps together.

    Otherwise giving one level its own layers would silently change all other levels. The check runs a copy of the head on small random
    maps. Noise on its weights makes a learned scale for each level show even if it is still 1.

    Raises:
        InputError: if the answers differ.
    """
    head = branch_head(model, branch)
    weight = next(head.parameters())
    if weight.is_meta or isinstance(head, LevelWise):
        return
    head = copy.deepcopy(head).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator) - 0.5).to(weight)

    sizes = [(count + 1, count) for count in range(num_levels(model), 0, -1)]
    reason = "it gives other answers for one map alone than for all together"
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * noise(*parameter.shape))
        maps = [noise(1, in_channels(head), *size) for size in sizes]
        try:
            together, alone = head(maps), join([head([each]) for each in maps])
            are_same = _all_close(together, alone)
        except Exception as error:  # a user's class may raise anything
            are_same, reason = False, f"{type(error).__name__}: {error}"
    if not are_same:
        remedy = "use torchvision's own head there" if branch == "rpn" else "lighten the other branch only"
        raise InputError(
            f"{HEADS[branch]} ({type(head).__name__}) does not treat its levels one by one, so none of them can get layers of its "
            f"own ({reason}); {remedy}"
        )


def _all_close(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.allclose(left.float(), right.float(), rtol=1e-3, atol=1e-5)
    return len(left) == len(right) and all(_all_close(one, other) for one, other in zip(left, right, strict=True))


def num_levels(model: nn.Module) -> int:
    """The number of feature maps that the model has anchors for."""
    return len(_anchor_generator(model).sizes)


def _anchor_generator(model: Any) -> Any:
    return model.rpn.anchor_generator if isinstance(model, GeneralizedRCNN) else model.anchor_generator


def in_channels(head: nn.Module) -> int:
    """Channels of the maps that a classification or regression head takes."""
    return next(layer.in_channels for layer in getattr(head, TOWER).modules() if isinstance(layer, nn.Conv2d))


def predictions(head: nn.Module, branch: DenseBranch) -> dict[str, nn.Module]:
    """Prediction layers by their names."""
    return {name: getattr(head, name) for name in _PREDICTIONS[branch] if hasattr(head, name)}


def own_towers(model: nn.Module, level: str) -> list[BranchPair]:
    """The branches in which a level has layers of its own; the teacher is the tower that the other levels share.

    The towers end with the prediction's convolution. FCOS applies a ReLU to ``bbox_reg`` after it.

    Args:
        model: What :func:`~lw_retinanet.interop.torchvision_lighten.light_copy` returned.
        level: One of :func:`level_names`.
    """
    pairs = []
    place = str(level_names(model).index(level))
    for branch in branches_of(model):
        head = found_head(model, branch)
        if isinstance(head, LevelWise) and place in head.own:
            light = head.own[place]
            pairs.append(BranchPair(branch=branch, level=level, teacher=_tower(head, branch), student=_tower(light, branch)))
    return pairs


def new_towers(model: nn.Module, light: nn.Module, level: str) -> list[BranchPair]:
    """The branches in which a level of ``light`` has layers of its own and ``model``, which it was made of, has none."""
    before = {pair.branch for pair in own_towers(model, level)}
    return [pair for pair in own_towers(light, level) if pair.branch not in before]


def level_pair(
    model: nn.Module, light: nn.Module, level: str, *, output: nn.Module | None = None, replaced: nn.Module | None = None
) -> LevelPair:
    """Old and new layers of a level, for the closed form and the fit.

    Args:
        model: The model before :func:`~lw_retinanet.interop.torchvision_lighten.light_copy`.
        light: What it returned.
        level: A level with at least one new tower.
        output: The convolution of ``light`` that makes this level's map, if only the new towers read that map
            (:func:`~lw_retinanet.interop.torchvision_features.finest_output`), or if it is a light one
            (:func:`~lw_retinanet.interop.torchvision_features.give_light_output`).
        replaced: The convolution of ``model`` that a light one replaces.

    Raises:
        InputError: if the class branch cannot be divided into layers; its scores decide how much each cell counts.
    """
    before = {pair.branch for pair in own_towers(model, level)}
    after = {pair.branch: pair for pair in own_towers(light, level)}
    old: dict[DenseBranch, Tower] = {}
    for branch in branches_of(light):
        if branch in after:
            old[branch] = after[branch].student if branch in before else after[branch].teacher
            continue
        try:
            old[branch] = _tower(branch_head(light, branch), branch)
        except InputError as error:
            if branch == "cls":
                raise InputError(f"images do not help here: {error}; or leave images out") from None
    return LevelPair(
        level=level,
        old=old,
        pairs=new_towers(model, light, level),
        num_anchors=int(_anchor_generator(light).num_anchors_per_location()[level_names(light).index(level)]),
        old_output=copy.deepcopy(replaced or output),
        output=output,
        output_is_read=replaced is not None,
    )


def _tower(head: nn.Module, branch: DenseBranch) -> Tower:
    """The tower that a classification or regression head runs for levels that have no layers of their own."""
    return Tower(units=list(tower_units(head)), predictions=predictions(head, branch))


def tower_units(head: nn.Module) -> Iterator[nn.Module]:
    """Divide a head's tower into units: a convolution and what follows it. FCOS lists norms and activations beside the convolutions.

    A subclass of ``Sequential`` becomes a plain one, because a slice of it would be made by a constructor with other arguments.
    """
    tower: nn.Sequential = getattr(head, TOWER)
    groups: list[list[nn.Module]] = [[]]
    for layer in tower:
        if _has_conv(layer) and any(map(_has_conv, groups[-1])):
            groups.append([])
        groups[-1].append(layer)
    for group in groups:
        first = group[0]
        is_plain = type(first) is nn.Sequential or type(first).forward is not nn.Sequential.forward
        layers: list[nn.Module] = group if len(group) > 1 or is_plain or not isinstance(first, nn.Sequential) else list(first)
        if len(layers) == 1:
            yield layers[0]
        else:
            unit = nn.Sequential(*layers)
            unit.training = tower.training  # not train(), which would set the layers' own flags
            yield unit


def _has_conv(layer: nn.Module) -> bool:
    return any(isinstance(part, nn.Conv2d) for part in layer.modules())
