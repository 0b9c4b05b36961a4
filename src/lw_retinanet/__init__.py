"""Light-weight RetinaNet detectors: build, count, train, evaluate, predict, and make trained ones cheaper.

Importing the package does not import torch; the first use of a function or class does.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "darwin":
    # torch reads this when it is imported: what an Apple GPU lacks is computed on the CPU.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

_HOMES = {
    "Conventions": "conventions",
    "Detector": "detection.detector",
    "InputError": "errors",
    "LwRetinaNetError": "errors",
    "Metrics": "evaluation.coco_metrics",
    "Result": "detection.result",
    "RetinaNet": "models.retinanet",
    "Run": "jobs.train",
    "compare": "api",
    "convert": "api",
    "create": "api",
    "evaluate": "api",
    "export": "api",
    "from_pretrained": "interop.hugging_face",
    "from_torchvision": "weights.foreign.torchvision_model",
    "lighten": "api",
    "load": "api",
    "predict": "api",
    "profile": "api",
    "report": "api",
    "save_pretrained": "interop.hugging_face",
    "ship": "api",
    "split_data": "jobs.data",
    "train": "api",
}
__all__ = [
    "Conventions",
    "Detector",
    "InputError",
    "LwRetinaNetError",
    "Metrics",
    "Result",
    "RetinaNet",
    "Run",
    "compare",
    "convert",
    "create",
    "evaluate",
    "export",
    "from_pretrained",
    "from_torchvision",
    "lighten",
    "load",
    "predict",
    "profile",
    "report",
    "save_pretrained",
    "ship",
    "split_data",
    "train",
]

if TYPE_CHECKING:
    from lw_retinanet.api import compare, convert, create, evaluate, export, lighten, load, predict, profile, report, ship, train
    from lw_retinanet.conventions import Conventions
    from lw_retinanet.detection.detector import Detector
    from lw_retinanet.detection.result import Result
    from lw_retinanet.errors import InputError, LwRetinaNetError
    from lw_retinanet.evaluation.coco_metrics import Metrics
    from lw_retinanet.interop.hugging_face import from_pretrained, save_pretrained
    from lw_retinanet.jobs.data import split_data
    from lw_retinanet.jobs.train import Run
    from lw_retinanet.models.retinanet import RetinaNet
    from lw_retinanet.weights.foreign.torchvision_model import from_torchvision


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
