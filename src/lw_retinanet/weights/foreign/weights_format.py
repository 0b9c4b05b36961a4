"""How a framework names its tensors, and which of its conventions a weights file does not state."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category

TensorName = Callable[[str], str | None]

# Left out of every conversion, whatever the framework.
_COUNTERS = (r".*\.num_batches_tracked", "a counter of training")
_BLOCK = re.compile(r"backbone\.layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.([01]))\.(\w+)")
_FPN = re.compile(r"fpn\.(inner_blocks|layer_blocks|extra_blocks)\.(\d|p6|p7)(?:\.0)?\.(weight|bias)")
_HEAD = re.compile(r"head\.(cls|bbox)\.(?:shared_units\.(\d+)\.(\d)|(shared_predict))\.(weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A property of the model that its weights file does not state.

    Args:
        setting: Dotted name of a field of Conventions, or ``classes``.
        value: The value that was assumed.
        why: The reason for this value.
    """

    setting: str
    value: Any
    why: str


@dataclass(frozen=True, kw_only=True)
class WeightsFormat:
    """How to read one weights file of another framework.

    Args:
        framework: Name of the framework, one of ``frameworks.NAMES``.
        generation: Version or variant of the framework's format, for people.
        conventions: The framework's conventions, updated with what the file itself states.
        tensor_name: Maps the name of one of our tensors to the file's name. It returns None for a tensor that the format lacks and
            a constant replaces.
        unused: Regular expressions for names of tensors that are left out, each with the reason.
        assumed: What the file does not state.
        categories: The classes that the file names, in the order of its class rows.
        has_background_row: Whether class row 0 may be the background (torchvision's layout).
        cell_anchors: For each level the (anchors, 4) anchors around (0, 0) that the file stores; the conventions must give the same ones.
    """

    framework: str
    generation: str
    conventions: Conventions
    tensor_name: TensorName
    unused: tuple[tuple[str, str], ...] = ()
    assumed: tuple[Assumption, ...] = ()
    categories: tuple[Category, ...] | None = None
    has_background_row: bool = False
    cell_anchors: tuple[Tensor, ...] = ()

    def reason_to_drop(self, name: str) -> str | None:
        """Return why a tensor of the file is not used, or None if the format gives no reason."""
        return next((reason for pattern, reason in (_COUNTERS, *self.unused) if re.fullmatch(pattern, name)), None)


@dataclass(frozen=True, kw_only=True)
class BlockTensor:
    """A tensor of a residual block: of convolution ``conv`` (0 is the shortcut's), or of the norm behind it."""

    stage: int
    block: int
    conv: int
    is_norm: bool
    parameter: str


@dataclass(frozen=True, kw_only=True)
class HeadTensor:
    """A tensor of the head: of unit ``unit`` (``layer`` 0 is the convolution, 1 the norm), or of the prediction if ``unit`` is None."""

    branch: Literal["cls", "bbox"]
    unit: int | None
    layer: int
    parameter: str


def parse_block_tensor(name: str) -> BlockTensor | None:
    """Split one of our names of a residual block's tensor; None for every other name, the stem's included."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    is_norm = match[3] == "bn" or match[5] == "1"
    return BlockTensor(stage=int(match[1]), block=int(match[2]), conv=int(match[4] or 0), is_norm=is_norm, parameter=match[6])


def parse_fpn_tensor(name: str) -> tuple[str, str, str] | None:
    """Split one of our names of the FPN, such as ``("inner_blocks", "0", "weight")`` or ``("extra_blocks", "p6", "bias")``."""
    match = _FPN.fullmatch(name)
    return (match[1], match[2], match[3]) if match else None


def parse_head_tensor(name: str) -> HeadTensor | None:
    """Split one of our names of the head; None for every other name."""
    match = _HEAD.fullmatch(name)
    if match is None:
        return None
    unit = None if match[4] else int(match[2])
    return HeadTensor(branch="cls" if match[1] == "cls" else "bbox", unit=unit, layer=int(match[3] or 0), parameter=match[5])
