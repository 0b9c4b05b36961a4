"""Model files of small networks whose classes get different scores, as those of a trained network do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.heads import PRESETS
from lw_retinanet.models.backbone import Norm
from lw_retinanet.models.build import build
from lw_retinanet.weights.model_file import make_record, save_model


def write_model(
    path: Path,
    preset: str,
    classes: Sequence[Category],
    *,
    norm: Norm,
    conventions: Conventions,
    spread: float,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write a ResNet-18 with 16 channels; ``spread`` is the standard deviation of the class predictions' weights and biases."""
    torch.manual_seed(0)
    plan = PRESETS[preset]
    model = build(plan, num_classes=len(classes), backbone="resnet18", width=16, norm=norm, conventions=conventions)
    with torch.no_grad():
        for name, parameter in model.head.cls.named_parameters():
            if "predict" in name:
                parameter.normal_(std=spread)
    record = make_record(
        model, preset=preset, backbone="resnet18", width=16, norm=norm, plan=plan, categories=tuple(classes), notes=notes or {}
    )
    save_model(path, model, record)
    return path
