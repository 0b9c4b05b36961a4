"""Pretrained backbones: torchvision's ImageNet weights, or a file with the same names."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from lw_retinanet.errors import WeightsError
from lw_retinanet.models.backbone import Backbone, TimmBackbone

log = logging.getLogger(__name__)
# What classifiers have and detectors do not: their last layers, and counters of batch norm.
_UNUSED = ("fc.", "classifier.", "features.18.")


def load_backbone(backbone: Backbone, *, name: str, source: str) -> None:
    """Fill a backbone with pretrained weights.

    Args:
        backbone: to fill, in place.
        name: its setting (``resnet50``, ``timm:NAME``, ...).
        source: ``imagenet`` or a ``.safetensors`` / ``.pth`` file with torchvision's parameter names.

    Raises:
        WeightsError: if the weights cannot be had, or do not fit (naming what is missing or left over).
    """
    if source == "imagenet":
        state = _timm_weights(name) if isinstance(backbone, TimmBackbone) else _torchvision_weights(name)
        where = f"ImageNet weights of {name}"
    else:
        state = read_tensors(Path(source))
        where = source
    target = backbone.body if isinstance(backbone, TimmBackbone) else backbone
    wanted = target.state_dict()
    found = {key: value.float() for key, value in state.items() if key in wanted}
    missing = [key for key in wanted if key not in found and not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in wanted and not key.endswith("num_batches_tracked") and not key.startswith(_UNUSED)]
    if missing or left_over:
        parts = [f"{len(keys)} {what}, first {keys[0]}" for keys, what in ((missing, "missing"), (left_over, "not known")) if keys]
        raise WeightsError(f"{where} do not fit backbone {name}: {'; '.join(parts)}")
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(wanted[key].shape)}"
            raise WeightsError(f"{where} do not fit backbone {name}: {key} is {shapes}")
    target.load_state_dict(found, strict=False)
    log.info("backbone %s: %d tensors from %s", name, len(found), where)


def guess_stride(source: str) -> Literal["3x3", "1x1"]:
    """Where the bottlenecks of a weights file stride: ``1x1`` if its metadata or its name says Caffe or MSRA, else ``3x3``."""
    if source in ("none", "imagenet"):
        return "3x3"
    path = Path(source)
    words = path.name.lower()
    if path.suffix == ".safetensors" and path.is_file():
        try:
            with safe_open(path, framework="pt") as file:
                words += str(file.metadata() or {}).lower()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"cannot read weights file {path}: {error}") from None
    return "1x1" if any(word in words for word in ("caffe", "msra", "detectron")) else "3x3"


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Named tensors of a ``.safetensors`` file, or of a ``.pth`` file read without running code from it.

    Raises:
        WeightsError: if the file is missing, damaged or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} does not exist; give none, imagenet or an existing file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and safetensors raise half a dozen types for a damaged file
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(f"cannot read weights file {path}: {reason}") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict of tensors")
    return state


def _torchvision_weights(name: str) -> Mapping[str, Tensor]:
    try:
        weights = get_model_weights(name).DEFAULT  # type: ignore[attr-defined]
        return weights.get_state_dict(progress=True)  # type: ignore[no-any-return]
    except OSError as error:
        raise WeightsError(
            f"cannot download the ImageNet weights of {name} ({error}); give a local file as model.backbone_weights"
        ) from None


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    try:
        return TimmBackbone(name.removeprefix("timm:"), norm="batch", pretrained=True).body.state_dict()
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"cannot download timm's weights of {name} ({error}); give a local file as model.backbone_weights") from None
