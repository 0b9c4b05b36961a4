"""Light-weight RetinaNet detectors: build, count, train, evaluate and predict.

``create`` and ``load`` import torch when first used; importing the package does not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Conventions": "conventions",
    "Detector": "detect.detector",
    "InputError": "errors",
    "LwRetinaNetError": "errors",
    "Result": "detect.result",
    "RetinaNet": "models.retinanet",
    "create": "api",
    "load": "api",
}
__all__ = ["Conventions", "Detector", "InputError", "LwRetinaNetError", "Result", "RetinaNet", "create", "load"]

if TYPE_CHECKING:
    from lw_retinanet.api import create, load
    from lw_retinanet.conventions import Conventions
    from lw_retinanet.detect.detector import Detector
    from lw_retinanet.detect.result import Result
    from lw_retinanet.errors import InputError, LwRetinaNetError
    from lw_retinanet.models.retinanet import RetinaNet


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
