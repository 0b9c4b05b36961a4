"""What a safetensors file says it holds, and which numbers can be weights."""

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from lw_retinanet.errors import shown

FLOATS = ("F64", "F32", "F16", "BF16")
LARGEST = 1e12  # of a weight; beyond it the products of a few layers leave the range of floats
_MOST_HEADER, _MOST_TENSORS = 64 << 20, 100_000


@dataclass(frozen=True, kw_only=True)
class TensorHeader:
    """The header of a safetensors file.

    Args:
        metadata: Text by name.
        kinds: Type and shape by a tensor's name, for example ``("F32", (64, 3, 7, 7))``.
    """

    metadata: Mapping[str, str]
    kinds: Mapping[str, tuple[str, tuple[int, ...]]]


def read_header(path: Path) -> TensorHeader:
    """Read the header alone. safetensors checks the rest when it opens the file, but takes the last of two tensors of one name.

    Raises:
        SafetensorError: If it is no header.
        OSError: If the file cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise SafetensorError("it is no ordinary file")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if not 2 <= size <= _MOST_HEADER:
            raise SafetensorError("it does not begin with a header of safetensors")
        text = file.read(size)
    try:
        content = json.loads(text, object_pairs_hook=_unique)
        metadata = content.pop("__metadata__", None) or {}
        kinds = {name: (str(entry["dtype"]), tuple(int(side) for side in entry["shape"])) for name, entry in content.items()}
        metadata = {name: value for name, value in metadata.items() if isinstance(value, str)}
    except SafetensorError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SafetensorError("its header is damaged") from None
    if len(kinds) > _MOST_TENSORS:
        raise SafetensorError(f"it holds {len(kinds):,} tensors, more than any detector")
    return TensorHeader(metadata=metadata, kinds=kinds)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if not found:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise SafetensorError(f"its header has {shown(name)} twice")
        values[name] = value
    return values


def fault(name: str, values: Tensor, eps: float) -> str | None:
    """What makes numbers unusable as the weights of a network, or None.

    Args:
        name: The tensor's name; a norm divides by the root of ``running_var`` plus ``eps``.
        values: Floating point numbers.
        eps: Epsilon of the norms.
    """
    if not values.numel():
        return None
    low, high = (float(number) for number in torch.aminmax(values))
    if not torch.isfinite(torch.tensor([low, high])).all():
        return "not finite"
    if max(-low, high) > LARGEST:
        return f"with numbers beyond {LARGEST:g}"
    if name.endswith("running_var") and (low < 0 or low + eps <= 0):
        return "of variances that are not above 0"
    return None
