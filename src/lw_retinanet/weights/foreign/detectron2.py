"""Detectron2's RetinaNet: model zoo pickles and its trainer's .pth files."""

from collections.abc import Collection

from lw_retinanet.conventions import STRIDES, Conventions
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, block_part, fpn_part, head_part
from lw_retinanet.weights.foreign.origins import DETECTRON2
from lw_retinanet.weights.foreign.state_file import ForeignFile

_SUBNETS = {"cls": "cls_subnet", "bbox": "bbox_subnet"}
_PREDICTORS = {"cls": "cls_score", "bbox": "bbox_pred"}
_UNUSED = (
    (r"pixel_mean|pixel_std", "read into the input rule"),
    (r"anchor_generator\.cell_anchors\.\d|anchor_generator\.cell_anchors", "checked against the anchor rule"),
    (r"backbone\.bottom_up\.(linear|fc)\..*|backbone\.bottom_up\.stem\.fc\..*", "the classifier of the backbone's first training"),
)


def recognises(names: Collection[str]) -> bool:
    return "head.cls_score.weight" in names or "backbone.bottom_up.stem.conv1.weight" in names


def blueprint(file: ForeignFile) -> Blueprint:
    """How to read a file of Detectron2's.

    Raises:
        WeightsError: for norms in the towers, which stand behind biased convolutions there.
    """
    if "head.cls_subnet.1.weight" in file.tensors:
        raise WeightsError(f"{file.where} has norms inside its towers (head.cls_subnet.1), which cannot be converted from Detectron2")
    conventions = _with_pixels(file, DETECTRON2)
    stored = [file.tensors[key] for level in range(len(STRIDES)) if (key := f"anchor_generator.cell_anchors.{level}") in file.tensors]
    assumed = [
        Assumption(setting="stride_in", value=conventions.stride_in, why="Detectron2's MSRA backbones; 3x3 with STRIDE_IN_1X1 off"),
        Assumption(setting="norm_eps", value=conventions.norm_eps, why="Detectron2's frozen norms"),
        Assumption(setting="input.size", value=conventions.input.size, why=f"test size; longer side at most {conventions.input.max_size}"),
    ]
    if "pixel_mean" not in file.tensors:
        mean = list(conventions.input.mean)
        assumed.append(Assumption(setting="input.mean", value=mean, why="Detectron2's default, BGR from 0 to 255"))
    if "backbone.bottom_up.res2.0.conv3.weight" not in file.tensors:
        conventions = conventions.model_copy(update={"stride_in": "3x3"})  # basic blocks have no choice
        assumed = assumed[1:]
    is_zoo = "__author__" in file.extras
    return Blueprint(
        framework="detectron2",
        generation="model zoo" if is_zoo else "trained",
        conventions=conventions,
        name=name,
        unused=_UNUSED,
        assumed=tuple(assumed),
        cell_anchors=tuple(stored) if len(stored) == len(STRIDES) else (),
    )


def _with_pixels(file: ForeignFile, conventions: Conventions) -> Conventions:
    changes = {}
    for key, field in (("pixel_mean", "mean"), ("pixel_std", "std")):
        if key in file.tensors and file.tensors[key].numel() == 3:
            changes[field] = tuple(file.tensors[key].double().flatten().tolist())
    return conventions.model_copy(update={"input": conventions.input.model_copy(update=changes)})


def name(ours: str) -> str | None:
    """Our names -> Detectron2's."""
    if ours.startswith("backbone.conv1."):
        return ours.replace("backbone.", "backbone.bottom_up.stem.", 1)
    if ours.startswith("backbone.bn1."):
        return ours.replace("backbone.bn1.", "backbone.bottom_up.stem.conv1.norm.", 1)
    if block := block_part(ours):
        conv = f"conv{block.conv}" if block.conv else "shortcut"
        return f"backbone.bottom_up.res{block.stage + 1}.{block.block}.{conv}.{'norm.' if block.is_norm else ''}{block.parameter}"
    if part := fpn_part(ours):
        kind, which, parameter = part
        if kind == "extra_blocks":
            return f"backbone.top_block.{which}.{parameter}"
        return f"backbone.fpn_{'lateral' if kind == 'inner_blocks' else 'output'}{int(which) + 3}.{parameter}"
    if (head := head_part(ours)) and head.layer == 0:
        if head.unit is None:
            return f"head.{_PREDICTORS[head.branch]}.{head.parameter}"
        return f"head.{_SUBNETS[head.branch]}.{2 * head.unit}.{head.parameter}"
    return None
