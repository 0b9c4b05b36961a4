"""The Python functions that people call first."""

from pathlib import Path
from typing import Literal

from lw_retinanet.config import parse_config
from lw_retinanet.detect.detector import Detector
from lw_retinanet.errors import InputError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.model_file import load_model


def create(
    preset: str = "lw-v3",
    *,
    num_classes: int = 80,
    backbone: str = "resnet50",
    backbone_weights: str = "none",
    head_width: int = 256,
    image_size: int = 640,
) -> RetinaNet:
    """Build a detector's network with a random head.

    Args:
        preset: ``retinanet``, ``lw-v1``, ``lw-v2``, ``lw-v3``, ... (:data:`lw_retinanet.models.variants.PRESETS`).
        num_classes: K.
        backbone: ``resnet18|34|50|101``, ``mobilenet_v2`` or ``timm:NAME``.
        backbone_weights: ``none``, ``imagenet`` or a file with torchvision's parameter names; with weights the backbone's norms are frozen.
        head_width: channels of the pyramid and of the head's towers.
        image_size: longer side of the pictures it will see, pixels.

    Returns:
        A module: (N, 3, H, W) normalised images -> :class:`~lw_retinanet.structures.Predictions`.

    Raises:
        InputError: if ``num_classes`` or ``image_size`` is out of range.
        ConfigError: for an unknown name, with the nearest known one.
        WeightsError: if backbone weights cannot be had or do not fit.
    """
    if num_classes < 1:
        raise InputError(f"num_classes must be at least 1, got {num_classes}")
    if not 32 <= image_size <= 4096:
        raise InputError(f"image_size must be from 32 to 4096 pixels, got {image_size}")
    model = {"preset": preset, "backbone": backbone, "backbone_weights": backbone_weights, "head_width": head_width}
    config = parse_config({"model": {**model, "init": "fan_in_light"}}, where="create")
    return create_model(config.resolved().model, num_classes=num_classes, image_size=image_size)


def load(path: str | Path, *, device: str = "auto", precision: Literal["fp32", "bf16", "auto"] = "fp32") -> Detector:
    """Open a model file or a run folder as a detector.

    Args:
        path: a ``.safetensors`` file of this program, or a run folder that holds ``model.safetensors``.
        device: ``auto`` (CUDA if there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        precision: of the network; ``auto`` is bf16 where the device multiplies in bf16.

    Raises:
        WeightsError: if the file is missing, damaged or not a model of this program.
    """
    import torch

    from lw_retinanet.devices import choose_device, uses_bf16

    path = Path(path)
    loaded = load_model(path)
    chosen: torch.device = choose_device(device)
    return Detector(
        loaded.model,
        loaded.record.categories,
        device=chosen,
        use_bf16=uses_bf16(precision, chosen),
        name=f"{path.name} ({loaded.record.preset})",
    )
