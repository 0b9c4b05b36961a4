"""What heads are called: the paper's rows and ours by name, and every block in every branch.

Here are names alone, so that settings and help can check one without importing torch; :func:`lw_retinanet.models.variants.plan_of` turns
them into plans.
"""

import re
from dataclasses import dataclass
from typing import Literal

BranchName = Literal["cls", "bbox"]

NAMED = ("retinanet", "lw-v1", "lw-v2", "lw-v3", "lw-v3-released", "bbox-v1", "bbox-v2", "bbox-v3", "lw-narrow", "lw-dw5")
BRANCHES: dict[str, tuple[BranchName, ...]] = {"cls": ("cls",), "bbox": ("bbox",), "both": ("cls", "bbox")}
BLOCKS = ("v1", "v2", "v3", "narrow", "dw5", "v1-bn", "v3-bn")
MIN_WIDTH, MAX_WIDTH, WIDTH_STEP = 8, 512, 8  # of `narrow`; multiples of eight fill vector registers
IN_WORDS = f"{', '.join(NAMED)}, or cls-, bbox- or both- with one of {', '.join(BLOCKS)} (narrow64 is 64 wide)"

_GENERATED = tuple(f"{branches}-{block}" for branches in BRANCHES for block in BLOCKS)
_PATTERN = re.compile(rf"({'|'.join(BRANCHES)})-({'|'.join(BLOCKS)})([1-9][0-9]{{0,5}})?")


@dataclass(frozen=True, kw_only=True)
class BlockName:
    """A block in branches of D3, as a name like ``both-narrow64`` says it.

    Args:
        branches: that own it.
        block: one of :data:`BLOCKS`.
        width: channels inside its tower; None where the name leaves it to the block.
    """

    branches: tuple[BranchName, ...]
    block: str
    width: int | None


def preset_names() -> tuple[str, ...]:
    """Every name but those with a width: the ones of tables first, then every block in every branch."""
    return tuple(dict.fromkeys(NAMED + _GENERATED))


def parse_block_name(name: str) -> BlockName | None:
    """The parts of ``cls-v3``, ``both-narrow64`` and the like; None for any other name."""
    parts = _parts(name)
    if parts is None or (parts.width is not None and parts.width not in _widths(parts.block)):
        return None
    return parts


def is_preset(name: str) -> bool:
    """Whether there is a head of this name."""
    return name in NAMED or parse_block_name(name) is not None


def similar_presets(name: str) -> tuple[str, ...]:
    """Names to look for the nearest of an unknown one among: all of them or, for a wrong width, the one with the nearest width."""
    parts = _parts(name)
    if parts is None or parts.width is None or not _widths(parts.block):
        return preset_names()
    width = min(_widths(parts.block), key=lambda each: abs(each - (parts.width or 0)))
    return (f"{name.removesuffix(str(parts.width))}{width}",)


def _parts(name: str) -> BlockName | None:
    found = _PATTERN.fullmatch(name)
    if not found:
        return None
    branches, block, width = found.groups()
    return BlockName(branches=BRANCHES[branches], block=block, width=int(width) if width else None)


def _widths(block: str) -> range:
    """What may stand behind a block's name."""
    return range(MIN_WIDTH, MAX_WIDTH + 1, WIDTH_STEP) if block == "narrow" else range(0)
