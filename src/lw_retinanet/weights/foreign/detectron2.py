"""Detectron2's RetinaNet: pickles of the model zoo and ``.pth`` files of its trainer."""

from collections.abc import Collection

from lw_retinanet.conventions import STRIDES, AnchorRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, TensorNames, WeightsFormat

NAME = "detectron2"
# Detectron2 clips boxes after scaling them to the original image, which is the same as clipping them before.
CONVENTIONS = Conventions(
    stride_in="1x1",
    anchors=AnchorRule(order="scale_major"),
    input=InputRule(resize="short_side", size=800, channel_order="bgr", scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)),
    output=OutputRule(score_threshold=0.05, clip="after_nms", drop_empty=True),
)

_NAMES = TensorNames(
    {
        "stem": "backbone.bottom_up.stem.conv1.{parameter}",
        "stem_norm": "backbone.bottom_up.stem.conv1.norm.{parameter}",
        "conv": "backbone.bottom_up.res{res}.{block}.conv{conv}.{parameter}",
        "norm": "backbone.bottom_up.res{res}.{block}.conv{conv}.norm.{parameter}",
        "shortcut": "backbone.bottom_up.res{res}.{block}.shortcut.{parameter}",
        "shortcut_norm": "backbone.bottom_up.res{res}.{block}.shortcut.norm.{parameter}",
        "lateral": "backbone.fpn_lateral{level}.{parameter}",
        "output": "backbone.fpn_output{level}.{parameter}",
        "extra": "backbone.top_block.p{level}.{parameter}",
        "cls_unit": "head.cls_subnet.{twice}.{parameter}",
        "bbox_unit": "head.bbox_subnet.{twice}.{parameter}",
        "cls_prediction": "head.cls_score.{parameter}",
        "bbox_prediction": "head.bbox_pred.{parameter}",
    }
)
_UNUSED = (
    (r"pixel_mean|pixel_std", "read into the input rule"),
    (r"anchor_generator\.cell_anchors\.\d|anchor_generator\.cell_anchors", "checked against the anchor rule"),
    (r"backbone\.bottom_up\.(linear|fc)\..*|backbone\.bottom_up\.stem\.fc\..*", "the classifier of the backbone's first training"),
)


def recognises(names: Collection[str]) -> bool:
    """Return whether these are names of Detectron2's tensors."""
    return "head.cls_score.weight" in names or "backbone.bottom_up.stem.conv1.weight" in names


def describe(file: ForeignFile) -> WeightsFormat:
    """Return how to read a file of Detectron2.

    Raises:
        WeightsError: For norms in the towers: their convolutions have biases, unlike ours.
    """
    if "head.cls_subnet.1.weight" in file.tensors:
        raise WeightsError(f"{file.where} has norms inside its towers (head.cls_subnet.1), which cannot be converted from Detectron2")
    conventions = _with_pixels(file, CONVENTIONS)
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
        conventions = conventions.model_copy(update={"stride_in": "3x3"})  # basic blocks have no 1x1 convolution
        assumed = assumed[1:]
    is_zoo = "__author__" in file.extras
    return WeightsFormat(
        framework=NAME,
        generation="model zoo" if is_zoo else "trained",
        conventions=conventions,
        names=_NAMES,
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
