"""The head of torchvision's RetinaNet and FCOS as this package sees it: branches, towers, predictions, and what they are fed."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet

from lw_retinanet.conventions import LEVELS
from lw_retinanet.errors import InputError
from lw_retinanet.interop.levelwise import LevelWise, join
from lw_retinanet.lightening.towers import BranchName, BranchPair, Tower

# Where a branch stands in `model.head`, and its predictions: the first one always, FCOS has both of the box branch.
HEADS: dict[BranchName, str] = {"cls": "classification_head", "bbox": "regression_head"}
_PREDICTIONS: dict[BranchName, tuple[str, ...]] = {"cls": ("cls_logits",), "bbox": ("bbox_reg", "bbox_ctrness")}
TOWER = "conv"


def require_detector(model: object) -> None:
    """Refuse what is no detector with a head of this kind.

    Raises:
        InputError: with what is possible instead.
    """
    if isinstance(model, RetinaNet | FCOS):
        return
    inner = getattr(model, "module", None) or getattr(model, "_orig_mod", None)
    if isinstance(inner, RetinaNet | FCOS):
        raise InputError(f"the model is wrapped in a {type(model).__name__}; lighten the {type(inner).__name__} inside it, then wrap again")
    raise InputError(
        f"cannot lighten a {type(model).__name__}: only torchvision's RetinaNet and FCOS, and subclasses of them, "
        "run one head over all levels; for any other torchvision detector `lw-retinanet profile` shows where its arithmetic goes"
    )


def branch_head(model: nn.Module, branch: BranchName) -> nn.Module:
    """The classification or regression head of a torchvision detector.

    Raises:
        InputError: if it is not made of a tower ``conv`` and predictions behind it.
    """
    where = f"head.{HEADS[branch]}"
    head = getattr(model.head, HEADS[branch], None)
    if not isinstance(head, nn.Module):
        raise InputError(f"{type(model).__name__} has no {where}; its own kind of head cannot be lightened")
    first = _PREDICTIONS[branch][0]
    if not isinstance(getattr(head, TOWER, None), nn.Sequential) or not isinstance(getattr(head, first, None), nn.Conv2d):
        raise InputError(
            f"{where} ({type(head).__name__}) must have its tower in `{TOWER}` (Sequential) and its prediction in `{first}` (Conv2d), "
            "as torchvision's heads do; rename them, or lighten the other branch only"
        )
    if "forward" in vars(head) or (hasattr(head, "own") and not isinstance(head, LevelWise)):
        taken = "forward" if "forward" in vars(head) else "own"
        raise InputError(f"{where} ({type(head).__name__}) has an attribute `{taken}` of its own, which lightening needs; use a subclass")
    return head


def require_levels_apart(model: nn.Module, branch: BranchName) -> None:
    """Refuse a head that treats a map differently when it comes alone: own levels would silently change all the others.

    Tried on small random maps, with noise on the weights of a copy, so that a scale for each level shows even before it is trained.

    Raises:
        InputError: if it does.
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
        raise InputError(
            f"head.{HEADS[branch]} ({type(head).__name__}) does not treat its levels one by one, so none of them can get layers of its "
            f"own ({reason}); lighten the other branch only"
        )


def _all_close(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and torch.allclose(left.float(), right.float(), rtol=1e-3, atol=1e-5)
    return len(left) == len(right) and all(_all_close(one, other) for one, other in zip(left, right, strict=True))


def num_levels(model: nn.Module) -> int:
    """How many feature maps the model's anchors are made for."""
    generator: Any = model.anchor_generator
    return len(generator.sizes)


def in_channels(head: nn.Module) -> int:
    """Channels of the maps that a classification or regression head takes."""
    return next(layer.in_channels for layer in getattr(head, TOWER).modules() if isinstance(layer, nn.Conv2d))


def predictions(head: nn.Module, branch: BranchName) -> dict[str, nn.Module]:
    """Prediction layers by their names."""
    return {name: getattr(head, name) for name in _PREDICTIONS[branch] if hasattr(head, name)}


def level_heads(model: nn.Module, level: str) -> list[BranchPair]:
    """The branches that a level owns, before and after: what initialisation and fitting work on.

    Predictions come as they leave the convolution; FCOS applies a ReLU to ``bbox_reg`` after it.

    Args:
        model: as :func:`~lw_retinanet.interop.torchvision_lighten.light_copy` returns it.
        level: ``P3`` is the model's first feature map, ``P4`` the second, ...
    """
    pairs = []
    for branch, place in HEADS.items():
        head = getattr(model.head, place)
        if isinstance(head, LevelWise) and str(LEVELS.index(level)) in head.own:
            light = head.own[str(LEVELS.index(level))]
            pairs.append(BranchPair(branch=branch, level=level, teacher=tower_of(head, branch), student=tower_of(light, branch)))
    return pairs


def tower_of(head: nn.Module, branch: BranchName) -> Tower:
    """The tower that a classification or regression head runs for levels that own nothing."""
    return Tower(units=list(_units(getattr(head, TOWER))), predictions=predictions(head, branch))


def _units(tower: nn.Sequential) -> Iterator[nn.Module]:
    """Layers of a tower, each convolution together with what follows it: FCOS lists norms and activations beside the convolutions.

    Subclasses of ``Sequential`` come as plain ones, which can be cut; their constructors take other arguments.
    """
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


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every module's training flag is as it was."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class _FeaturesSeen(Exception):  # noqa: N818  (no error: ends the forward pass before the costly part)
    pass


@torch.no_grad()
def finest_features(model: nn.Module, images: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """What the head is fed for some pictures, in evaluation mode; the head itself is not run.

    Args:
        model: a torchvision RetinaNet or FCOS; its modules' training flags are as before afterwards.
        images: (3, H, W) each, values 0..1, any sizes, on any device.

    Returns:
        (N, C, H, W) maps, the finest first, of the padded batch; and the height and width of each picture inside the padded input.

    Raises:
        InputError: if the model is of another kind, or there is no image.
    """
    require_detector(model)
    detector: Any = model
    if len(images) == 0:
        raise InputError("no images to compute features of; give at least one")
    device = next(model.parameters()).device
    maps: list[Tensor] = []
    sizes_hw: list[tuple[int, int]] = []

    def see_images(_: nn.Module, __: Any, output: Any) -> None:
        sizes_hw.extend((int(height), int(width)) for height, width in output[0].image_sizes)

    def see_features(_: nn.Module, inputs: tuple[Sequence[Tensor]]) -> None:
        maps.extend(inputs[0])
        raise _FeaturesSeen

    # Hooks, not calls of the parts: a subclass may do more between them than torchvision does.
    hooks = [detector.transform.register_forward_hook(see_images), detector.head.register_forward_pre_hook(see_features)]
    try:
        with evaluating(model):
            model([image.to(device) for image in images])
    except _FeaturesSeen:
        return maps, sizes_hw
    finally:
        for hook in hooks:
            hook.remove()
    raise InputError(f"{type(model).__name__} does not call its head in `forward`; its features cannot be had")
