"""The frameworks whose weights files can be converted. A new one is a module that satisfies :class:`Framework`, named in FRAMEWORKS."""

from collections.abc import Collection
from typing import Protocol

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign import caffe2, detectron2, mmdet, odtk, torchvision
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import WeightsFormat


class Framework(Protocol):
    """What a framework's module offers: its name and two functions."""

    NAME: str

    def recognises(self, names: Collection[str], /) -> bool:
        """Return whether a file whose tensors have these names comes from the framework."""

    def describe(self, file: ForeignFile, /) -> WeightsFormat:
        """Return how to read a file of the framework; raise WeightsError if it cannot be converted."""


FRAMEWORKS: tuple[Framework, ...] = (torchvision, detectron2, mmdet, odtk, caffe2)
NAMES = tuple(framework.NAME for framework in FRAMEWORKS)


def recognise(file: ForeignFile, origin: str = "auto") -> WeightsFormat:
    """Find out which framework wrote a file, and how to read it.

    Args:
        file: The file.
        origin: Name of the framework that is expected; ``auto`` accepts each of them.

    Raises:
        WeightsError: If no known framework wrote the file, or another one than ``origin``.
    """
    names = file.tensors.keys()
    found = [framework for framework in FRAMEWORKS if framework.recognises(names)]
    some = f"{', '.join(list(names)[:3])}, ..."
    if origin != "auto":
        chosen = next((framework for framework in found if origin == framework.NAME), None)
        if chosen is None:
            looks = f"it looks like {found[0].NAME}" if found else f"its tensors are {some}"
            raise WeightsError(f"{file.where} is no RetinaNet of {origin}: {looks}; let the framework be recognised, or give another file")
        return chosen.describe(file)
    if len(found) != 1:
        raise WeightsError(
            f"{file.where} is no RetinaNet of {', '.join(NAMES)} by its {len(names)} tensors ({some}); "
            "name the framework it comes from, or give the file of the whole detector"
        )
    return found[0].describe(file)
