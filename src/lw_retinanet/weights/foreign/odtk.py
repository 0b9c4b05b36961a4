"""RetinaNet of NVIDIA's odtk (its repository is called retinanet-examples)."""

import re
from collections.abc import Collection

from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, TensorNames, WeightsFormat

NAME = "odtk"
# odtk places anchors around the centre of a cell but measures them with both border pixels, so the centres of its decoded boxes lie half
# a pixel further. Its stride is the padded width over the feature map's width, which is the fixed stride when inputs are padded to 128.
CONVENTIONS = Conventions(
    anchors=AnchorRule(aspect_ratios=(1.0, 2.0, 0.5), order="scale_major", centre=0.5),
    boxes=BoxRule(legacy_plus_one=True, clamp="none"),
    input=InputRule(resize="short_side", size=800, rounding="floor", pad_multiple=128),
    output=OutputRule(score_threshold=0.05, clip_to="padded_minus_one", scale_back="uniform"),
)

_HEADS = {"cls": "cls_head", "bbox": "box_head"}
_STEM = re.compile(r"backbones\.(\w+)\.features\.conv1\.weight")


def recognises(names: Collection[str]) -> bool:
    """Return whether these are names of odtk's tensors."""
    return "cls_head.0.weight" in names and any(name.startswith("backbones.") for name in names)


def describe(file: ForeignFile) -> WeightsFormat:
    """Return how to read a file of odtk.

    Raises:
        WeightsError: For several backbones, a backbone that is not a ResNet, or rotated boxes.
    """
    found = sorted({name.split(".")[1] for name in file.tensors if name.startswith("backbones.") and name.count(".") > 1})
    if len(found) != 1 or not any(_STEM.fullmatch(name) for name in file.tensors):
        raise WeightsError(f"{file.where} has the backbone {' and '.join(found)[:80]}; only one ResNet with FPN can be converted")
    scales, ratios = _numbers(file.extras.get("scales")), _numbers(file.extras.get("ratios"))
    anchors, assumed = CONVENTIONS.anchors, []
    if scales:
        anchors = anchors.model_copy(update={"octave_scales": tuple(scale / anchors.base_size for scale in scales)})
    if ratios:
        anchors = anchors.model_copy(update={"aspect_ratios": ratios})
    if file.extras.get("rotated_bbox") or file.extras.get("angles"):
        raise WeightsError(f"{file.where} was trained for rotated boxes, which cannot be converted")
    for setting, values in (("anchors.octave_scales", scales), ("anchors.aspect_ratios", ratios)):
        if not values:
            value = list(getattr(anchors, setting.partition(".")[2]))
            assumed.append(Assumption(setting=setting, value=value, why="odtk's default; the file does not state it"))
    rule = CONVENTIONS.input
    assumed.append(Assumption(setting="input.size", value=rule.size, why=f"odtk's default; longer side at most {rule.max_size}"))
    return WeightsFormat(
        framework=NAME,
        generation=found[0],
        conventions=CONVENTIONS.model_copy(update={"anchors": anchors}),
        names=_names(found[0]),
        unused=((r"backbones\.\w+\.features\.fc\..*", "the classifier of the backbone's first training"),),
        assumed=tuple(assumed),
    )


def _numbers(values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple) or not all(isinstance(value, int | float) and 0 < value < 1000 for value in values):
        return ()
    return tuple(float(value) for value in values)


def _names(backbone: str) -> TensorNames:
    """The names for odtk's name of the backbone, such as ``ResNet50FPN``."""
    place = f"backbones.{backbone}"
    # A head is an nn.Sequential of four convolutions, each followed by a ReLU, and the prediction.
    heads = {f"{ours}_unit{unit}": f"{theirs}.{2 * unit}.{{parameter}}" for ours, theirs in _HEADS.items() for unit in range(4)}
    return TensorNames(
        {
            "backbone": f"{place}.features.{{rest}}",
            "lateral": f"{place}.lateral{{level}}.{{parameter}}",
            "output": f"{place}.smooth{{level}}.{{parameter}}",
            "extra": f"{place}.pyramid{{level}}.{{parameter}}",
            **heads,
            **{f"{ours}_prediction": f"{theirs}.8.{{parameter}}" for ours, theirs in _HEADS.items()},
        }
    )
