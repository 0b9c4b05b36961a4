"""Detectron2's RetinaNet: pickles of the model zoo and ``.pth`` files of its trainer."""

from collections.abc import Collection, Mapping
from typing import Any

from lw_retinanet.conventions import STRIDES, AnchorRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.stated import Stated, Statements, places
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
# Detectron2's settings -> ours.
_SETTINGS = {
    "MODEL.RETINANET.SCORE_THRESH_TEST": "output.score_threshold",
    "MODEL.RETINANET.NMS_THRESH_TEST": "output.nms_iou",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": "output.candidates_per_level",
    "TEST.DETECTIONS_PER_IMAGE": "output.max_detections",
    "INPUT.MIN_SIZE_TEST": "input.size",
    "INPUT.MAX_SIZE_TEST": "input.max_size",
    "INPUT.FORMAT": "input.channel_order",
    "MODEL.PIXEL_MEAN": "input.mean",
    "MODEL.PIXEL_STD": "input.std",
    "MODEL.RESNETS.STRIDE_IN_1X1": "stride_in",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "anchors.aspect_ratios",
}
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
    conventions = CONVENTIONS
    stored = [file.tensors[key] for level in range(len(STRIDES)) if (key := f"anchor_generator.cell_anchors.{level}") in file.tensors]
    assumed = [
        Assumption(setting="stride_in", value=conventions.stride_in, why="Detectron2's MSRA backbones; 3x3 with STRIDE_IN_1X1 off"),
        Assumption(setting="norm_eps", value=conventions.norm_eps, why="Detectron2's frozen norms"),
        Assumption(setting="input.size", value=conventions.input.size, why=f"test size; longer side at most {conventions.input.max_size}"),
    ]
    mean = list(conventions.input.mean)
    assumed.append(Assumption(setting="input.mean", value=mean, why="Detectron2's default, BGR from 0 to 255"))
    if not _has_bottlenecks(file):
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
        statements=_statements(file),
        cell_anchors=tuple(stored) if len(stored) == len(STRIDES) else (),
    )


def _statements(file: ForeignFile) -> Statements:
    """What the configuration inside the file or beside it says, and the tensors that are settings."""
    found: dict[str, Stated] = {}
    num_classes = None
    for where, settings in places(file.extras):
        model = settings.get("MODEL")
        if isinstance(model, Mapping) and model.get("META_ARCHITECTURE") == "RetinaNet":
            for key, setting in _SETTINGS.items():
                if (value := _ours(setting, _at(settings, key), has_bottlenecks=_has_bottlenecks(file))) is not None:
                    found.setdefault(setting, Stated(value=value, where=where + key))
            count = _at(settings, "MODEL.RETINANET.NUM_CLASSES")
            num_classes = num_classes or (Stated(value=count, where=f"{where}MODEL.RETINANET.NUM_CLASSES") if count else None)
    for key, setting in (("pixel_mean", "input.mean"), ("pixel_std", "input.std")):
        if key in file.tensors and file.tensors[key].numel() == 3:
            found[setting] = Stated(value=tuple(file.tensors[key].double().flatten().tolist()), where=key)
    return Statements(conventions=found, num_classes=num_classes)


def _at(settings: Mapping[str, Any], key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _ours(setting: str, value: Any, *, has_bottlenecks: bool) -> Any:
    if setting == "stride_in":
        return ("1x1" if value else "3x3") if isinstance(value, bool) and has_bottlenecks else None
    if setting == "input.channel_order":
        return str(value).lower() if value is not None else None
    if setting == "anchors.aspect_ratios":  # one list for all levels, or one for each
        is_same = isinstance(value, list) and bool(value) and isinstance(value[0], list) and all(each == value[0] for each in value)
        return value[0] if is_same else None
    return value


def _has_bottlenecks(file: ForeignFile) -> bool:
    return "backbone.bottom_up.res2.0.conv3.weight" in file.tensors
