"""The feature maps of a torchvision detector: what its head reads, and the convolution that makes the finest map."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.ops import FeaturePyramidNetwork

from lw_retinanet.errors import InputError
from lw_retinanet.interop.torchvision_head import HEADS, level_names, require_detector
from lw_retinanet.lightening.towers import LevelPair, convolutions
from lw_retinanet.lightening.weight_transfer import fill_kernel
from lw_retinanet.models.blocks import PREDICTIONS


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while. Afterwards every module has the training flag that it had before."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


class _HeadReached(Exception):  # noqa: N818  (no error: it ends the forward pass before the head runs)
    pass


@torch.no_grad()
def head_inputs(model: nn.Module, images: Sequence[Tensor]) -> list[Tensor]:
    """Compute the feature maps that enter the head, in evaluation mode. The head itself is not run.

    Args:
        model: torchvision's RetinaNet, FCOS or R-CNN, or a subclass; afterwards its training flags are as before.
        images: (3, H, W) images with values 0..1, of any sizes, on any device.

    Returns:
        The (N, C, H, W) maps of the padded batch, the finest first.

    Raises:
        InputError: if the model is of another kind, or there is no image.
    """
    require_detector(model)
    detector: Any = model
    if len(images) == 0:
        raise InputError("no images to compute features of; give at least one")
    device = next(model.parameters()).device
    maps: list[Tensor] = []

    def see_features(_: nn.Module, inputs: tuple[Sequence[Tensor]]) -> None:
        maps.extend(inputs[0])
        raise _HeadReached

    # A hook, because a subclass may do more between transform, backbone and head than torchvision does.
    head = detector.rpn.head if isinstance(model, GeneralizedRCNN) else detector.head
    hook = head.register_forward_pre_hook(see_features)
    try:
        with evaluating(model):
            model([image.to(device) for image in images])
    except _HeadReached:
        return maps
    finally:
        hook.remove()
    raise InputError(f"{type(model).__name__} does not call its head in `forward`, so its feature maps cannot be found")


def level_inputs(model: nn.Module, images: Iterable[Tensor], level: LevelPair) -> Iterator[Tensor]:
    """Yield the (1, C, H, W) map that enters a level for each image, after the model's own transform and in evaluation mode.

    Args:
        model: The old model; it is not changed.
        images: (3, H, W) images.
        level: With ``old_output``, the map before that convolution is meant, else the level's map itself.

    Raises:
        InputError: if a map is not finite.
    """
    for place, image in enumerate(images):
        before: list[Tensor] = []
        hook = None
        if level.old_output is not None:
            block = first_output_block(model)
            assert block is not None
            hook = block.register_forward_pre_hook(lambda _, inputs, seen=before: seen.append(inputs[0]))
        try:
            maps = head_inputs(model, [image])
        finally:
            if hook is not None:
                hook.remove()
        found = before[0] if before else maps[level_names(model).index(level.level)]
        if not torch.isfinite(found).all():
            raise InputError(f"the model's feature maps of image {place} are not finite; look for NaN in its weights")
        yield found


@torch.no_grad()
def finest_output(model: nn.Module, image: Tensor) -> nn.Module | None:
    """Find the convolution that makes the finest map, if light towers may have another one in its place because only D3 reads that map.

    Returns:
        The convolution. None unless the model is torchvision's backbone with its FPN and two head branches, has no other part that could
        read the map, and a test with one image shows that reversing the sign of the convolution's output reverses the finest map and leaves
        all other maps as they are.
    """
    detector: Any = model
    block = first_output_block(model)
    if block is None or _parts(model) - {"backbone", "head"} or {f"head.{name}" for name in _parts(detector.head)} - set(HEADS.values()):
        return None
    made: list[Tensor] = []

    def negate(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        made.append(-output)
        return made[-1]

    plain = head_inputs(model, [image])
    hook = block.register_forward_hook(negate)
    try:
        negated = head_inputs(model, [image])
    finally:
        hook.remove()
    expected = [-plain[0], *plain[1:]]
    return block if len(made) == 1 and all(map(_nearly_equal, negated, expected)) else None


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    # Not exactly: a GPU may choose another algorithm for the second run.
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().nan_to_num().max()))


def first_output_block(model: Any) -> nn.Module | None:
    """The block of the model's FPN that makes the finest map, if it is a single ordinary convolution with a bias."""
    fpn = getattr(model.backbone, "fpn", None)
    if not isinstance(fpn, FeaturePyramidNetwork):
        return None
    block = fpn.layer_blocks[0]
    layers = [layer for layer in block.modules() if next(layer.children(), None) is None]
    conv = layers[0]
    if len(layers) != 1 or not isinstance(conv, nn.Conv2d) or conv.bias is None:
        return None
    side = conv.kernel_size[0]
    is_usual = conv.padding_mode == "zeros" and (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    return block if is_usual and conv.kernel_size == (side, side) and conv.padding == (side // 2, side // 2) else None


def light_output(model: Any) -> nn.Module | None:
    """What :func:`give_light_output` put into the model, if it did."""
    block = model.backbone.fpn.layer_blocks[0] if isinstance(getattr(model.backbone, "fpn", None), FeaturePyramidNetwork) else None
    return block if block is not None and [conv.groups > 1 for conv in convolutions(block)] == [True, False] else None


def give_light_output(model: Any) -> nn.Module:
    """Put a depthwise and a 1x1 convolution in the place of the one that makes P2 of an R-CNN, filled from its weights.

    Raises:
        InputError: if the model is no R-CNN, or P2 is made in another way; nothing is changed then.
    """
    if not isinstance(model, GeneralizedRCNN):
        raise InputError(f"light_pyramid is for R-CNNs; the {type(model).__name__}'s finest map is made anew at no cost; leave it out")
    old = first_output_block(model)
    conv = next(iter(convolutions(old)), None) if old is not None else None
    if conv is None or conv.kernel_size != (3, 3):
        raise InputError(
            f"light_pyramid needs a {type(model).__name__} whose backbone.fpn.layer_blocks[0] is one 3x3 convolution with a bias, without "
            "a norm; leave it out"
        )
    new = PREDICTIONS["dw3x3+1x1"](conv.in_channels, conv.out_channels)
    assert conv.bias is not None
    fill_kernel(new, conv.weight.detach().float().cpu(), conv.bias.detach().float().cpu())
    model.backbone.fpn.layer_blocks[0] = new.to(conv.weight).train(model.training)
    return new


def _parts(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_children() if next(child.parameters(), None) is not None}
