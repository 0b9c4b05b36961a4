"""Light-weight RetinaNet detectors: build, count, train, evaluate, predict, and make trained ones cheaper.

``create``, ``load``, ``lighten`` and the like import torch when first used; importing the package does not.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Conventions": "conventions",
    "Detector": "detection.detector",
    "InputError": "errors",
    "LwRetinaNetError": "errors",
    "Result": "detection.result",
    "RetinaNet": "models.retinanet",
    "convert": "weights.foreign.convert",
    "create": "api",
    "from_pretrained": "interop.hugging_face",
    "from_torchvision": "weights.foreign.torchvision_model",
    "lighten": "api",
    "load": "api",
    "save_pretrained": "interop.hugging_face",
}
__all__ = [
    "Conventions",
    "Detector",
    "InputError",
    "LwRetinaNetError",
    "Result",
    "RetinaNet",
    "convert",
    "create",
    "from_pretrained",
    "from_torchvision",
    "lighten",
    "load",
    "save_pretrained",
]

if TYPE_CHECKING:
    from lw_retinanet.api import create, lighten, load
    from lw_retinanet.conventions import Conventions
    from lw_retinanet.detection.detector import Detector
    from lw_retinanet.detection.result import Result
    from lw_retinanet.errors import InputError, LwRetinaNetError
    from lw_retinanet.interop.hugging_face import from_pretrained, save_pretrained
    from lw_retinanet.models.retinanet import RetinaNet
    from lw_retinanet.weights.foreign.convert import convert
    from lw_retinanet.weights.foreign.torchvision_model import from_torchvision


class _Package(ModuleType):
    """Keeps ``lighten`` the function: importing from the sub-package of that name would put the sub-package in its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
