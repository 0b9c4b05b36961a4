"""torchvision's own detectors by name, without weights, to count them."""

from typing import Any

import torch
from torch import nn
from torchvision.models import detection, get_model, list_models

from lw_retinanet.errors import InputError, nearest


def torchvision_detector(name: str, *, num_classes: int | None = None) -> nn.Module:
    """Build a detector on the meta device; nothing is downloaded.

    Args:
        name: Name of torchvision's builder, for example ``retinanet_resnet50_fpn``.
        num_classes: Number of classes as torchvision counts them, with the background: 91 for COCO. None keeps the builder's default.

    Raises:
        InputError: For a name that torchvision does not have, or fewer than two classes.
    """
    known = list_models(module=detection)
    if name not in known:
        raise InputError(f"torchvision has no detector {name!r}{nearest(name, known)}; it has {', '.join(known)}")
    if num_classes is not None and num_classes < 2:
        raise InputError(f"{num_classes} class is too few for {name}: torchvision counts the background as one, so give at least 2")
    settings: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    with torch.device("meta"):
        model: nn.Module = get_model(name, weights=None, weights_backbone=None, **settings)
    return model.eval()


def native_size(model: nn.Module) -> tuple[int, int]:
    """Height and width of a square image after the detector's own resizing."""
    transform: Any = model.transform
    if transform.fixed_size is not None:
        width, height = transform.fixed_size  # torchvision has (height, width) everywhere else
        return int(height), int(width)
    side = min(int(transform.min_size[-1]), int(transform.max_size))
    return side, side
