"""Where a checkpoint keeps a detector: which of its state dicts, and behind which prefix of the names."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lw_retinanet.errors import WeightsError, shown
from lw_retinanet.weights.foreign.pickled_arrays import PickledArray

_ROOTS = {"backbone", "backbones", "neck", "head", "bbox_head", "cls_head", "box_head"}  # any detector that can be converted has two
_AVERAGED = re.compile(r"(^|[._])(ema|averaged?|avg|swa|teacher|shadow)($|[._])")
_MOST_DEPTH = 4


@dataclass(frozen=True, kw_only=True)
class WeightsPlace:
    """A place of a checkpoint that holds a whole detector.

    Args:
        path: Keys of the dictionaries that lead to it.
        prefix: What its tensors' names begin with, a dot at the end.
        state: The dictionary.
        name: What people call it: ``model``, ``model_ema``, ``state_dict.student``.
    """

    path: tuple[str, ...]
    prefix: str
    state: Mapping[str, Any]
    name: str


def find_place(content: object, where: str, wanted: str | None = None) -> tuple[WeightsPlace | None, list[str]]:
    """Find the detector in a checkpoint.

    Weights that were averaged in training, such as ``ema``, are only taken if there are no others, or if they are wanted.

    Args:
        content: What the reader of the file returned.
        where: Name of the file, for messages.
        wanted: Name of the place; None chooses.

    Returns:
        The place, or None if no names look like a detector's; and the names of the other places.

    Raises:
        WeightsError: If there are several of equal right, or none of this name.
    """
    places = list(_places(content, ()))
    names = ", ".join(shown(place.name) for place in places)
    if wanted is not None:
        chosen = [place for place in places if place.name == wanted]
        if not chosen:
            raise WeightsError(f"{where} has no weights of a detector called {shown(wanted)}; it has {names or 'none'}")
    else:
        chosen = [place for place in places if not _AVERAGED.search(place.name)] or places
        if len(chosen) > 1:
            raise WeightsError(
                f"{where} holds {len(chosen)} detectors; choose one of them by name: weights={' or weights='.join(names.split(', '))}"
            )
    return (chosen[0] if chosen else None), [place.name for place in places if place not in chosen]


def _places(content: object, path: tuple[str, ...]) -> Iterator[WeightsPlace]:
    if not isinstance(content, Mapping) or len(path) > _MOST_DEPTH:
        return
    roots: dict[str, set[str]] = {}
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor | PickledArray):
            parts = name.split(".")
            root = next((place for place, part in enumerate(parts) if part in _ROOTS), None)
            if root is not None:
                roots.setdefault("".join(f"{part}." for part in parts[:root]), set()).add(parts[root])
    whole = [prefix for prefix, found in roots.items() if len(found) > 1]
    for prefix in whole:
        names = path if path and len(whole) == 1 else (*path, *prefix.split(".")[:-1])
        yield WeightsPlace(path=path, prefix=prefix, state=content, name=".".join(names))
    for name, value in content.items():
        if isinstance(name, str):
            yield from _places(value, (*path, name))
