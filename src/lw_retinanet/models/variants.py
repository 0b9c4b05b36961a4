"""The rows of the paper's tables, each a small function that shows all that differs from the baseline; and plans by name."""

from collections.abc import Callable

from lw_retinanet import preset_names
from lw_retinanet.config import nearest
from lw_retinanet.errors import ConfigError
from lw_retinanet.models.plan import HeadPlan, d_block


def retinanet() -> HeadPlan:
    """RetinaNet: one head for all levels."""
    return HeadPlan()


def lw_v1() -> HeadPlan:
    """LW-RetinaNet-v1: D-block-v2 in the class branch of D3 (Table 2)."""
    return HeadPlan(cls={"P3": d_block("v2")})


def lw_v2() -> HeadPlan:
    """LW-RetinaNet-v2: D-block-v3 in the class branch of D3 (Table 2)."""
    return HeadPlan(cls={"P3": d_block("v3")})


def lw_v3() -> HeadPlan:
    """LW-RetinaNet-v3: D-block-v3 in both branches of D3 (Table 2)."""
    return HeadPlan(cls={"P3": d_block("v3")}, bbox={"P3": d_block("v3")})


def lw_v3_released() -> HeadPlan:
    """LW-RetinaNet-v3 as in the authors' released code: the 3x3 box prediction stays shared by all levels."""
    return HeadPlan(cls={"P3": d_block("v3")}, bbox={"P3": d_block("v3", predict="shared")})


def bbox_v1() -> HeadPlan:
    """D-block-v1 in the box branch of D3 (Table 1)."""
    return HeadPlan(bbox={"P3": d_block("v1")})


def bbox_v2() -> HeadPlan:
    """D-block-v2 in the box branch of D3 (Table 1)."""
    return HeadPlan(bbox={"P3": d_block("v2")})


def bbox_v3() -> HeadPlan:
    """D-block-v3 in the box branch of D3 (Table 1)."""
    return HeadPlan(bbox={"P3": d_block("v3")})


def lw_narrow() -> HeadPlan:
    """Ours: a tower 96 wide in both branches of D3, at 1.09 times D3 of LW-v3 and with a 9x9 field of view."""
    return HeadPlan(cls={"P3": d_block("narrow")}, bbox={"P3": d_block("narrow")})


def lw_dw5() -> HeadPlan:
    """Ours: LW-v3 with one 5x5 depthwise convolution in each branch of D3."""
    return HeadPlan(cls={"P3": d_block("dw5")}, bbox={"P3": d_block("dw5")})


PRESETS: dict[str, Callable[[], HeadPlan]] = {
    "retinanet": retinanet,
    "lw-v1": lw_v1,
    "lw-v2": lw_v2,
    "lw-v3": lw_v3,
    "lw-v3-released": lw_v3_released,
    "bbox-v1": bbox_v1,
    "bbox-v2": bbox_v2,
    "bbox-v3": bbox_v3,
    "lw-narrow": lw_narrow,
    "lw-dw5": lw_dw5,
}


def plan_of(name: str) -> HeadPlan:
    """The head plan of a name: one of :data:`PRESETS`, or a block and the branches of D3 that own it.

    Args:
        name: ``lw-v3`` and the like, or ``cls-``, ``bbox-`` or ``both-`` and a block (:data:`lw_retinanet.preset_names.BLOCKS`):
            ``cls-dw5``, ``both-v1-bn``, ``both-narrow64``. The width of ``narrow`` is a multiple of 8 from 8 to 512; 96 without a number.

    Raises:
        ConfigError: for any other name, with the nearest known one.
    """
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]()
    parts = preset_names.parse_block_name(str(name))
    if parts is None:
        hint = nearest(str(name), preset_names.similar_presets(str(name)))
        raise ConfigError(f"unknown preset {name!r}{hint}; known: {preset_names.IN_WORDS}")
    tower = d_block(parts.block, width=parts.width)
    return HeadPlan.model_validate({branch: {"P3": tower} for branch in parts.branches})
