"""MMDetection's RetinaNet, versions 2 and 3. Its files carry their configuration as text, which is parsed here and never run."""

import ast
import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from lw_retinanet.conventions import BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.classes import plain_name
from lw_retinanet.weights.foreign.coco_classes import COCO_CLASSES
from lw_retinanet.weights.foreign.stated import Stated, Statements
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, TensorNames, WeightsFormat

NAME = "mmdet"
# Version 3. It clips boxes in pixels of the input and then scales them, which is the same as clipping them in the original image.
CONVENTIONS = Conventions(
    p7_relu=False,
    boxes=BoxRule(clamp="both"),
    input=InputRule(resize="short_side", size=800, antialias=False, scale=1.0, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    output=OutputRule(score_threshold=0.05, frame="picture", drop_empty=True),
)
CAFFE_CONVENTIONS = CONVENTIONS.model_copy(
    update={
        "stride_in": "1x1",
        "input": CONVENTIONS.input.model_copy(update={"channel_order": "bgr", "mean": (103.53, 116.28, 123.675), "std": (1.0, 1.0, 1.0)}),
    }
)

_NAMES = TensorNames(
    {
        "backbone": "backbone.{rest}",
        "lateral": "neck.lateral_convs.{index}.conv.{parameter}",
        "output": "neck.fpn_convs.{index}.conv.{parameter}",
        "extra": "neck.fpn_convs.{index}.conv.{parameter}",
        "cls_unit": "bbox_head.cls_convs.{unit}.conv.{parameter}",
        "bbox_unit": "bbox_head.reg_convs.{unit}.conv.{parameter}",
        "cls_unit_norm": "bbox_head.cls_convs.{unit}.gn.{parameter}",
        "bbox_unit_norm": "bbox_head.reg_convs.{unit}.gn.{parameter}",
        "cls_prediction": "bbox_head.retina_cls.{parameter}",
        "bbox_prediction": "bbox_head.retina_reg.{parameter}",
    }
)
# Our field of the output rule -> MMDetection's keys.
_OUTPUT: dict[str, tuple[str, ...]] = {
    "score_threshold": ("score_thr",),
    "candidates_per_level": ("nms_pre",),
    "nms_iou": ("iou_threshold",),
    "max_detections": ("max_per_img",),
}
_MAX_TEXT = 500_000


def recognises(names: Collection[str]) -> bool:
    """Return whether these are names of the tensors of a detector of MMDetection."""
    return any(name.startswith("bbox_head.") for name in names)


def describe(file: ForeignFile) -> WeightsFormat:
    """Return how to read a file of MMDetection.

    Raises:
        WeightsError: For the head of another detector, or a file of version 1, whose anchors differ.
    """
    if "bbox_head.retina_cls.weight" not in file.tensors:
        head = next(name for name in file.tensors if name.startswith("bbox_head."))
        raise WeightsError(f"{file.where} is a detector of MMDetection, but no RetinaNet (it has {head}); only RetinaNet can be converted")
    meta = file.extras.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    version = str(meta.get("mmdet_version", ""))
    if version.startswith(("0.", "1.")):
        raise WeightsError(
            f"{file.where} was made by MMDetection {version[:20]}, whose anchors and class order differ; "
            "convert it with MMDetection's tools/model_converters/upgrade_model_version.py first"
        )
    inside = meta.get("cfg") or meta.get("config")
    config = _ConfigText(inside or file.extras.get(".py"))
    conventions, assumed = _conventions(config)
    where = "the configuration inside" if inside else "the configuration beside it"
    statements = Statements(conventions={setting: Stated(value=value, where=where) for setting, value in _stated(config).items()})
    return WeightsFormat(
        framework=NAME,
        generation=f"MMDetection {version[:20]}" if version else "MMDetection",
        conventions=conventions,
        names=_NAMES,
        unused=(
            (r"backbone\.fc\..*", "the classifier of the backbone's first training"),
            (r"data_preprocessor\.(mean|std)", "no weights"),
        ),
        assumed=tuple(assumed),
        statements=statements,
        categories=_classes(meta),
    )


class _ConfigText:
    """The keyword arguments and dict entries with literal values in the text of an MMDetection configuration."""

    def __init__(self, text: object) -> None:
        self.found: dict[str, list[Any]] = {}
        if not isinstance(text, str) or len(text) > _MAX_TEXT:
            return
        with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.keyword) and node.arg:
                    self._add(node.arg, node.value)
                elif isinstance(node, ast.Dict):
                    for key, value in zip(node.keys, node.values, strict=True):
                        if isinstance(key, ast.Constant):
                            self._add(str(key.value), value)

    def _add(self, key: str, node: ast.expr) -> None:
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            self.found.setdefault(key, []).append(ast.literal_eval(node))

    def __bool__(self) -> bool:
        return any(self.found.values())

    def only(self, *keys: str) -> Any:
        """Return the value of these keys if all of them agree; else None."""
        values = [value for key in keys for value in self.found.get(key, [])]
        return values[0] if values and all(value == values[0] for value in values) else None


def _conventions(config: _ConfigText) -> tuple[Conventions, list[Assumption]]:
    """The conventions of the configuration's style, and what is assumed where it does not say."""
    conventions = CAFFE_CONVENTIONS if config.only("style") == "caffe" else CONVENTIONS
    why = "style='pytorch', since the file does not state it; a caffe model also needs input.channel_order=bgr and its own mean and std"
    size = "MMDetection's usual test scale of (1333, 800)"
    return conventions, [
        Assumption(setting="stride_in", value=conventions.stride_in, why=why),
        Assumption(setting="p7_relu", value=conventions.p7_relu, why="MMDetection's default"),
        Assumption(setting="input.mean", value=list(conventions.input.mean), why="MMDetection's usual preprocessing"),
        Assumption(setting="input.size", value=conventions.input.size, why=size),
    ]


def _stated(config: _ConfigText) -> dict[str, Any]:
    """What the configuration says, under our names."""
    values: dict[str, Any] = {}
    style = config.only("style")
    if style in ("caffe", "pytorch"):
        values["stride_in"] = "1x1" if style == "caffe" else "3x3"
    relu = config.only("relu_before_extra_convs")
    if isinstance(relu, bool) or config:
        values["p7_relu"] = relu if isinstance(relu, bool) else CONVENTIONS.p7_relu
    order = config.only("bgr_to_rgb", "to_rgb")
    if isinstance(order, bool):
        values["input.channel_order"] = "rgb" if order else "bgr"
    for field in ("mean", "std"):
        if _are_numbers(config.only(field), 3):
            values[f"input.{field}"] = tuple(map(float, config.only(field)))
    scale = config.only("scale", "img_scale")
    if _are_numbers(scale, 2):
        values["input.max_size"], values["input.size"] = int(max(scale)), int(min(scale))
    for field, keys in _OUTPUT.items():
        if _are_numbers([config.only(*keys)], 1):
            values[f"output.{field}"] = config.only(*keys)
    for field, key in (("aspect_ratios", "ratios"), ("base_size", "octave_base_scale")):
        value = config.only(key)
        if _are_numbers(value, len(value) if isinstance(value, list | tuple) else 0):
            values[f"anchors.{field}"] = tuple(map(float, value))
        elif _are_numbers([value], 1):
            values[f"anchors.{field}"] = float(value)
    if isinstance(count := config.only("scales_per_octave"), int) and 0 < count < 100:
        values["anchors.octave_scales"] = tuple(2 ** (i / count) for i in range(count))
    return values


def _are_numbers(values: object, count: int) -> bool:
    if not isinstance(values, list | tuple) or len(values) != count or count == 0:
        return False
    return all(isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e5 for value in values)


def _classes(meta: Mapping[str, Any]) -> tuple[Category, ...] | None:
    dataset = meta.get("dataset_meta")
    names = dataset.get("classes", dataset.get("CLASSES")) if isinstance(dataset, Mapping) else meta.get("CLASSES")
    if isinstance(names, str):
        names = (names,)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(value, str) and value for value in names):
        return None
    if [plain_name(value) for value in names] == [plain_name(category.name) for category in COCO_CLASSES]:
        return COCO_CLASSES
    return tuple(Category(id=number, name=value) for number, value in enumerate(names))
