"""NVIDIA's odtk (retinanet-examples)."""

import re
from collections.abc import Collection

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, Naming, fpn_part, head_part
from lw_retinanet.weights.foreign.origins import ODTK
from lw_retinanet.weights.foreign.state_file import ForeignFile

_HEADS = {"cls": "cls_head", "bbox": "box_head"}
_PREDICTION = 8  # place in odtk's sequence of four convolutions with their ReLUs
_STEM = re.compile(r"backbones\.(\w+)\.features\.conv1\.weight")


def recognises(names: Collection[str]) -> bool:
    return "cls_head.0.weight" in names and any(name.startswith("backbones.") for name in names)


def blueprint(file: ForeignFile) -> Blueprint:
    """How to read a file of odtk's.

    Raises:
        WeightsError: for several backbones, one that is no ResNet, or rotated boxes.
    """
    found = sorted({name.split(".")[1] for name in file.tensors if name.startswith("backbones.") and name.count(".") > 1})
    if len(found) != 1 or not any(_STEM.fullmatch(name) for name in file.tensors):
        raise WeightsError(f"{file.where} has the backbone {' and '.join(found)[:80]}; of odtk's, one ResNet with FPN can be converted")
    scales, ratios = _numbers(file.extras.get("scales")), _numbers(file.extras.get("ratios"))
    conventions, assumed = ODTK, []
    if scales:
        octaves = tuple(scale / conventions.anchors.base_size for scale in scales)
        conventions = conventions.model_copy(update={"anchors": conventions.anchors.model_copy(update={"octave_scales": octaves})})
    if ratios:
        conventions = conventions.model_copy(update={"anchors": conventions.anchors.model_copy(update={"aspect_ratios": ratios})})
    if file.extras.get("rotated_bbox") or file.extras.get("angles"):
        raise WeightsError(f"{file.where} was trained for rotated boxes, which cannot be converted")
    for setting, values in (("anchors.octave_scales", scales), ("anchors.aspect_ratios", ratios)):
        if not values:
            value = list(getattr(conventions.anchors, setting.partition(".")[2]))
            assumed.append(Assumption(setting=setting, value=value, why="odtk's default; the file does not say"))
    rule = conventions.input
    assumed.append(Assumption(setting="input.size", value=rule.size, why=f"odtk's default; longer side at most {rule.max_size}"))
    return Blueprint(
        framework="odtk",
        generation=found[0],
        conventions=conventions,
        name=naming(found[0]),
        unused=((r"backbones\.\w+\.features\.fc\..*", "the classifier of the backbone's first training"),),
        assumed=tuple(assumed),
    )


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) and 0 < value < 1000 for value in values):
        return ()
    return tuple(float(value) for value in values)


def naming(backbone: str) -> Naming:
    """Our names -> odtk's, for its name of the backbone (``ResNet50FPN``)."""

    def name(ours: str) -> str | None:
        place = f"backbones.{backbone}."
        if ours.startswith("backbone."):
            return f"{place}features.{ours.removeprefix('backbone.')}"
        if part := fpn_part(ours):
            kind, which, parameter = part
            if kind == "extra_blocks":
                return f"{place}pyramid{which.removeprefix('p')}.{parameter}"
            return f"{place}{'lateral' if kind == 'inner_blocks' else 'smooth'}{int(which) + 3}.{parameter}"
        if (head := head_part(ours)) and head.layer == 0:
            if head.unit is not None and 2 * head.unit >= _PREDICTION:
                return None
            return f"{_HEADS[head.branch]}.{_PREDICTION if head.unit is None else 2 * head.unit}.{head.parameter}"
        return None

    return name
