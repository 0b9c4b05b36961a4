"""Fit the light towers of a torchvision detector to its old ones, on pictures without labels."""

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from lw_retinanet.conventions import LEVELS
from lw_retinanet.data.image_files import find_images
from lw_retinanet.data.images import decode
from lw_retinanet.data.preprocess import to_tensor
from lw_retinanet.detection.detector import as_array
from lw_retinanet.devices import uses_bf16
from lw_retinanet.errors import InputError
from lw_retinanet.interop.torchvision_head import HEADS, branch_head, evaluating, finest_features, level_heads, tower_of
from lw_retinanet.lightening.calibration_images import calibration_files
from lw_retinanet.lightening.closed_form import solve_closed_form
from lw_retinanet.lightening.feature_cache import MAX_BYTES, CachedFeatures, collect
from lw_retinanet.lightening.fitting import FitSettings, fit
from lw_retinanet.lightening.towers import BranchName, LevelPair, Tower
from lw_retinanet.progress import Progress, tracked

if TYPE_CHECKING:
    from PIL.Image import Image

    Images = str | Path | Tensor | Iterable[str | Path | Image | NDArray[np.uint8] | Tensor]

Picture = Path | NDArray[np.uint8] | Tensor
MAX_FILES = 512  # drawn from a folder or data set that has more
log = logging.getLogger(__name__)


def read_pictures(images: "Images", *, channels: int = 3, seed: int = 0) -> list[Picture]:
    """Look through what a user gives as calibration images, before any work is done. Files are found here and decoded later.

    Args:
        images: a folder or data set, of whose training split up to :data:`MAX_FILES` files are drawn; or one by one: files, folders and
            patterns, PIL pictures, (H, W, 3) uint8 arrays, and float tensors as the model takes them, (3, H, W).
        channels: that the model takes.
        seed: of the draw.

    Raises:
        InputError: if there are none, or one is none of these, with its place.
    """
    if isinstance(images, str | Path):
        return list(calibration_files(Path(images), count=MAX_FILES, seed=seed))
    pictures: list[Picture] = []
    for place, item in enumerate(images):
        if isinstance(item, str | Path):
            pictures += find_images([item])
        elif isinstance(item, Tensor):
            pictures.append(_checked(item, place, channels))
        else:
            try:
                pictures.append(as_array(item))
            except InputError as error:
                raise type(error)(f"images[{place}]: {error}") from None
    if not pictures:
        raise InputError("images is empty; give some that are like those the model will see, or leave it out to use the old weights alone")
    if channels != 3 and not all(isinstance(picture, Tensor) for picture in pictures):
        raise InputError(f"the model takes pictures of {channels} channels, files and arrays have 3; give tensors ({channels}, H, W)")
    return pictures


def _checked(image: Tensor, place: int, channels: int) -> Tensor:
    if image.ndim != 3 or image.shape[0] != channels or image.numel() == 0:
        raise InputError(f"images[{place}] has shape {tuple(image.shape)}; give one picture as ({channels}, H, W)")
    if not image.is_floating_point():
        raise InputError(f"images[{place}] is {image.dtype}; give floats as the model takes them, usually 0..1 (image / 255)")
    if not torch.isfinite(image).all():
        raise InputError(f"images[{place}] holds values that are not finite (NaN or infinity); leave it out or repair it")
    return image.detach().float()


def level_pair(model: nn.Module, light: nn.Module, level: str, *, output: nn.Module | None = None) -> LevelPair:
    """Old and new layers of a level, for initialisation and fitting.

    Args:
        model: before :func:`~lw_retinanet.interop.torchvision_lighten.light_copy`.
        light: what it returned.
        level: of the plan, with at least one new tower.
        output: the part of ``light`` that makes this level's map, if nothing but the new towers reads it (:func:`finest_output`).

    Raises:
        InputError: if the class branch cannot be told apart into layers; it decides which cells count.
    """
    before = {pair.branch for pair in level_heads(model, level)}
    after = {pair.branch: pair for pair in level_heads(light, level)}
    old: dict[BranchName, Tower] = {}
    for branch in HEADS:
        if branch in after:
            old[branch] = after[branch].student if branch in before else after[branch].teacher
            continue
        try:
            old[branch] = tower_of(branch_head(light, branch), branch)
        except InputError as error:
            if branch == "cls":
                raise InputError(f"images do not help here: {error}; or leave images out") from None
    generator: Any = light.anchor_generator
    return LevelPair(
        level=level,
        old=old,
        pairs=[pair for branch, pair in after.items() if branch not in before],
        num_anchors=int(generator.num_anchors_per_location()[LEVELS.index(level)]),
        old_output=copy.deepcopy(output),
        output=output,
    )


@torch.no_grad()
def finest_output(model: nn.Module, image: Tensor) -> nn.Module | None:
    """The convolution that makes the finest map and nothing else, so that light towers may have another one in its place.

    None unless the model is torchvision's backbone with its FPN and two head branches, with no other part that could read the map, and
    turning the convolution's answer round for one picture turns the finest map round and leaves all others as they are.
    """
    detector: Any = model
    block = _first_block(model)
    if block is None or _parts(model) - {"backbone", "head"} or _parts(detector.head) - set(HEADS.values()):
        return None
    made: list[Tensor] = []

    def turn(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        made.append(-output)
        return made[-1]

    plain, _ = finest_features(model, [image])
    hook = block.register_forward_hook(turn)
    try:
        turned, _ = finest_features(model, [image])
    finally:
        hook.remove()
    wanted = [-plain[0], *plain[1:]]
    return block if len(made) == 1 and all(map(_nearly_equal, turned, wanted)) else None


def _nearly_equal(one: Tensor, other: Tensor) -> bool:
    """A GPU may choose another algorithm for the second run."""
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3 * float(other.abs().nan_to_num().max()))


def _first_block(model: Any) -> nn.Module | None:
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


def _parts(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_children() if next(child.parameters(), None) is not None}


def level_inputs(model: nn.Module, images: Iterable[Tensor], level: LevelPair) -> Iterator[Tensor]:
    """What enters a level for each picture, after the model's own transform and in evaluation mode: (1, C, H, W).

    Args:
        model: the old one; looked at, not changed.
        images: (3, H, W) each.
        level: decides whether it is the level's map, or the one before the convolution that makes it.

    Raises:
        InputError: if a map is not finite.
    """
    for place, image in enumerate(images):
        before: list[Tensor] = []
        hook = None
        if level.old_output is not None:
            block = _first_block(model)
            assert block is not None
            hook = block.register_forward_pre_hook(lambda _, inputs, seen=before: seen.append(inputs[0]))
        try:
            maps, _ = finest_features(model, [image])
        finally:
            if hook is not None:
                hook.remove()
        found = before[0] if before else maps[LEVELS.index(level.level)]
        if not torch.isfinite(found).all():
            raise InputError(f"the model's feature maps of image {place} are not finite; look for NaN in its weights")
        yield found


def calibrate(
    model: nn.Module,
    light: nn.Module,
    levels: Sequence[str],
    pictures: Sequence[Picture],
    *,
    fit_steps: int,
    keep_pyramid: bool,
    seed: int,
    progress: Progress | None = None,
) -> None:
    """Fill new towers in closed form, then by distillation; both in place.

    Args:
        model: the old one; not changed.
        light: its light copy, on the same device.
        levels: with new towers.
        pictures: see :func:`read_pictures`.
        fit_steps: of the distillation; 0 leaves it out.
        keep_pyramid: leave the convolution that makes the finest map as it is.
        seed: of the choice of cells, and of the order.
        progress: wraps what takes long, for instance to show a bar; gets the number of items and what is being done.

    Raises:
        InputError: if the weights are not float32, or the model computes what is not finite.
        ImageError: for a picture that cannot be read.
    """
    _require_float32(light)
    device = next(light.parameters()).device
    use_bf16 = uses_bf16("auto", device)
    output = None if keep_pyramid else finest_output(model, _tensor(pictures[0]))
    with evaluating(light), torch.enable_grad():
        for level in levels:
            num_new = len(level_heads(light, level)) - len(level_heads(model, level))
            both_are_new = output is not None and level == LEVELS[0] and num_new == len(HEADS)
            pair = level_pair(model, light, level, output=_first_block(light) if both_are_new else None)
            examples = _look(model, pair, pictures, progress, use_bf16=use_bf16, fits=fit_steps > 0)
            maps = [example.maps for example in examples[: len(pictures)]]
            # In closed form on the CPU wherever the model is: seconds, and the maps are there.
            _move(light, pair, torch.device("cpu"))
            found = solve_closed_form(pair, maps, seed=seed, progress=progress)
            _move(light, pair, device)
            log.info("%s: the closed form misses %s of the old outputs' variance", level, found.errors)
            if fit_steps:
                settings = FitSettings(steps=fit_steps, seed=seed)
                fit(pair, examples, settings, device=device, use_bf16=use_bf16, progress=progress)


def _require_float32(model: nn.Module) -> None:
    others = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if others:
        raise InputError(f"fitting to images needs float32 weights, the model has {others.pop()}; lighten model.float(), then convert back")


def _look(
    model: nn.Module, level: LevelPair, pictures: Sequence[Picture], progress: Progress | None, *, use_bf16: bool, fits: bool
) -> list[CachedFeatures]:
    """Of all pictures as they are and, for a fit, what the old towers say; then mirrored ones, until the memory is full."""
    views: Iterator[Tensor] = map(_tensor, pictures)
    total = len(pictures)
    if fits:
        views, total = chain(views, (_tensor(picture).flip(2) for picture in pictures)), 2 * total
    inputs = tracked(level_inputs(model, views, level), total, f"look at pictures for {level.level}", progress)
    return collect(level, inputs, total, taught=fits, use_bf16=use_bf16, max_bytes=MAX_BYTES)


def _tensor(picture: Picture) -> Tensor:
    """(3, H, W) float, 0..1 if it comes from a file or an array."""
    if isinstance(picture, Tensor):
        return picture
    return to_tensor(decode(picture) if isinstance(picture, Path) else picture).float() / 255


def _move(light: nn.Module, level: LevelPair, device: torch.device) -> None:
    light.to(device)
    if level.old_output is not None:
        level.old_output.to(device)
