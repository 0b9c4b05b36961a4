"""Pretrained weights for backbones: ImageNet weights of torchvision or timm, or a file with the same tensor names."""

import logging
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models import get_model_weights

from lw_retinanet.conventions import InputRule
from lw_retinanet.errors import WeightsError, first_line
from lw_retinanet.files import no_file
from lw_retinanet.models.backbone import Backbone, TimmBackbone
from lw_retinanet.weights.stride_rule import BOTTLENECKS, StrideIn, measured_stride
from lw_retinanet.weights.tensor_file import fault, read_header

log = logging.getLogger(__name__)
_REMEDY = "give a local file as model.backbone_weights, or none"
# Last layers of classifiers, which a backbone does not have.
_UNUSED = ("fc.", "classifier.", "features.18.")


def load_backbone(backbone: Backbone, *, name: str, source: str) -> None:
    """Fill a backbone with pretrained weights.

    Args:
        backbone: The backbone, which is changed in place.
        name: Its name, as the setting ``model.backbone`` takes it.
        source: ``imagenet``, or a ``.safetensors`` or ``.pth`` file with torchvision's tensor names.

    Raises:
        WeightsError: If the weights cannot be read or downloaded, or do not fit; the message names what is missing or left over.
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
        raise WeightsError(f"{where} do not fit backbone {name}: {'; '.join(parts)}; name the backbone that the file was made for")
    for key, tensor in found.items():
        if tensor.shape != wanted[key].shape:
            shapes = f"{tuple(tensor.shape)} instead of {tuple(wanted[key].shape)}"
            raise WeightsError(f"{where} do not fit backbone {name}: {key} is {shapes}; name the backbone that the file was made for")
        if what := fault(key, tensor, eps=1e-5):
            raise WeightsError(f"{where} cannot be used: {key} is {what}; get the file anew")
    target.load_state_dict(found, strict=False)
    log.info("backbone %s: %d tensors from %s", name, len(found), where)


def find_stride(source: str, *, name: str) -> StrideIn:
    """Find out which convolution of a bottleneck has the stride: what the file's metadata say, else a measurement, else the ``3x3``.

    Args:
        source: As for :func:`load_backbone`, or ``none``.
        name: Name of the backbone.
    """
    if source in ("none", "imagenet") or name not in BOTTLENECKS:
        return "3x3"
    path = Path(source)
    if path.suffix == ".safetensors" and path.is_file():
        try:
            words = str(read_header(path).metadata).lower()
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"cannot read weights file {path}: {error}; get the file anew") from None
        if any(word in words for word in ("caffe", "msra", "detectron")):
            log.info("backbone %s: the stride is in the 1x1, by the metadata of %s", name, source)
            return "1x1"
    measured = measured_stride(name, read_tensors(path), InputRule())
    if measured is None:
        log.info("backbone %s: the stride is taken to be in the 3x3; model.stride_in=1x1 is for weights of Caffe's kind", name)
        return "3x3"
    log.info("backbone %s: the stride is in the %s (%s)", name, *measured)
    return measured[0]


def read_tensors(path: Path) -> Mapping[str, Tensor]:
    """Read the named tensors of a ``.safetensors`` or ``.pth`` file, without running code from it.

    Raises:
        WeightsError: If the file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise WeightsError(f"weights file {path} {no_file(path)}; give none, imagenet or an existing file")
    try:
        if path.suffix == ".safetensors":
            read_header(path)
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about how the file was written
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load and safetensors raise half a dozen types for a damaged file
        raise WeightsError(f"cannot read weights file {path}: {_reason(error)}; give safetensors or a plain state dict") from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise WeightsError(f"{path} holds no state dict of tensors; save one with torch.save(model.state_dict(), FILE)")
    return state


def _torchvision_weights(name: str) -> Mapping[str, Tensor]:
    try:
        return get_model_weights(name).DEFAULT.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a checksum that is wrong, a cached file that is damaged: half a dozen types
        raise WeightsError(f"cannot get the ImageNet weights of {name} ({_reason(error)}); {_REMEDY}") from None


def _timm_weights(name: str) -> Mapping[str, Tensor]:
    try:
        return TimmBackbone(name.removeprefix("timm:"), norm="batch", pretrained=True).body.state_dict()
    except (OSError, HTTPException, RuntimeError) as error:
        raise WeightsError(f"cannot get timm's weights of {name} ({_reason(error)}); {_REMEDY}") from None


def _reason(error: Exception) -> str:
    """The first line of the message; torch's explanation of how to switch its protection off is left out."""
    return "the file is damaged or holds more than tensors" if type(error).__name__ == "UnpicklingError" else first_line(error)
