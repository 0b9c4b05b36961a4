"""torchvision's RetinaNet: files of its three generations of names, and live models."""

from collections.abc import Collection

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, Naming, fpn_part, head_part
from lw_retinanet.weights.foreign.coco_classes import TORCHVISION_COCO_ROWS
from lw_retinanet.weights.foreign.origins import TORCHVISION_V1, TORCHVISION_V2
from lw_retinanet.weights.foreign.state_file import ForeignFile

_HEADS = {"cls": "head.classification_head", "bbox": "head.regression_head"}
_PREDICTORS = {"cls": "cls_logits", "bbox": "bbox_reg"}
UNUSED = (
    (r"backbone\.body\.fc\..*", "the classifier of the backbone's first training"),
    (r"transform\..*|anchor_generator\..*", "no weights"),
)


def recognises(names: Collection[str]) -> bool:
    return "head.classification_head.cls_logits.weight" in names and "head.regression_head.bbox_reg.weight" in names


def blueprint(file: ForeignFile) -> Blueprint:
    """How to read a file of torchvision's, or of a product built on its class.

    Raises:
        WeightsError: for a head that is not RetinaNet's.
    """
    names = file.tensors.keys()
    if "head.regression_head.bbox_ctrness.weight" in names:
        raise WeightsError(f"{file.where} is torchvision's FCOS, no RetinaNet; it cannot become a model file")
    has_plain_pyramid = "backbone.fpn.inner_blocks.0.weight" in names
    has_flat_towers = "head.classification_head.conv.2.weight" in names
    has_norm = "head.classification_head.conv.0.1.weight" in names
    num_rows, is_cocos = _rows(file), False
    counts = any(name.startswith("backbone.body.") and name.endswith("num_batches_tracked") for name in names)
    if has_norm:
        conventions = TORCHVISION_V2
        assumed = [_eps(1e-5, "v2 is trained with ordinary batch norm")]
    else:
        is_cocos = num_rows == TORCHVISION_COCO_ROWS and not counts
        if is_cocos:
            assumed = [_eps(0.0, f"{TORCHVISION_COCO_ROWS} class rows and frozen norms, as in torchvision's own file of COCO")]
        else:
            assumed = [_eps(1e-5, "torchvision's default for a model that is not its own file of COCO")]
        conventions = TORCHVISION_V1.model_copy(update={"norm_eps": assumed[0].value})
    rule = conventions.input
    assumed.append(Assumption(setting="input.size", value=rule.size, why=f"torchvision's default; longer side at most {rule.max_size}"))
    assumed.append(Assumption(setting="stride_in", value=conventions.stride_in, why="torchvision's ResNets"))
    generation = "v2" if has_norm else "v1"
    if has_plain_pyramid or has_flat_towers:
        generation += ", names of before 0.13" if has_plain_pyramid else ", names of 0.13 to 0.14"
    return Blueprint(
        framework="torchvision",
        generation=generation,
        conventions=conventions,
        name=naming(has_plain_pyramid=has_plain_pyramid, has_flat_towers=has_flat_towers),
        unused=UNUSED,
        assumed=tuple(assumed),
        counts_background=True,
    )


def naming(*, has_plain_pyramid: bool = False, has_flat_towers: bool = False) -> Naming:
    """Our names -> torchvision's.

    Args:
        has_plain_pyramid: ``inner_blocks.0.weight``, and not ``inner_blocks.0.0.weight``.
        has_flat_towers: towers as ``conv.{0,2,4,6}``, and not ``conv.{0,1,2,3}.0``.
    """

    def name(ours: str) -> str | None:
        if ours.startswith("backbone."):
            return f"backbone.body.{ours.removeprefix('backbone.')}"
        if part := fpn_part(ours):
            kind, which, parameter = part
            inner = "" if has_plain_pyramid or kind == "extra_blocks" else ".0"
            return f"backbone.fpn.{kind}.{which}{inner}.{parameter}"
        if head := head_part(ours):
            place = _HEADS[head.branch]
            if head.unit is None:
                return f"{place}.{_PREDICTORS[head.branch]}.{head.parameter}"
            if has_flat_towers:
                return f"{place}.conv.{2 * head.unit}.{head.parameter}" if head.layer == 0 else None
            return f"{place}.conv.{head.unit}.{head.layer}.{head.parameter}"
        return None

    return name


def _rows(file: ForeignFile) -> int:
    boxes = file.tensors["head.regression_head.bbox_reg.weight"].shape
    rows = file.tensors["head.classification_head.cls_logits.weight"].shape
    return rows[0] // max(1, boxes[0] // 4) if boxes and rows else 0


def _eps(value: float, why: str) -> Assumption:
    return Assumption(setting="norm_eps", value=value, why=why)
