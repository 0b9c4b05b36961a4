"""MMDetection's RetinaNet, versions 2 and 3. Its files carry their configuration as text, which is parsed here and never run."""

import ast
import re
from collections.abc import Collection, Mapping
from typing import Any

from lw_retinanet.conventions import Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, fpn_part, head_part
from lw_retinanet.weights.foreign.coco_classes import COCO_CLASSES
from lw_retinanet.weights.foreign.origins import MMDET, MMDET_CAFFE
from lw_retinanet.weights.foreign.state_file import ForeignFile

_TOWERS = {"cls": "cls_convs", "bbox": "reg_convs"}
_PREDICTORS = {"cls": "retina_cls", "bbox": "retina_reg"}
_MOST_TEXT = 500_000


def recognises(names: Collection[str]) -> bool:
    return any(name.startswith("bbox_head.") for name in names)


def blueprint(file: ForeignFile) -> Blueprint:
    """How to read a file of MMDetection's.

    Raises:
        WeightsError: for a head that is not RetinaNet's, or a file of version 1, whose anchors differ.
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
    settings = _Settings(meta.get("cfg") or meta.get("config"))
    conventions, assumed = _conventions(settings)
    return Blueprint(
        framework="mmdet",
        generation=f"MMDetection {version[:20]}" if version else "MMDetection",
        conventions=conventions,
        name=name,
        unused=(
            (r"backbone\.fc\..*", "the classifier of the backbone's first training"),
            (r"data_preprocessor\.(mean|std)", "no weights"),
        ),
        assumed=tuple(assumed),
        categories=_classes(meta),
    )


def name(ours: str) -> str | None:
    """Our names -> MMDetection's."""
    if ours.startswith("backbone."):
        return ours
    if part := fpn_part(ours):
        kind, which, parameter = part
        if kind == "inner_blocks":
            return f"neck.lateral_convs.{which}.conv.{parameter}"
        number = {"p6": 3, "p7": 4}[which] if kind == "extra_blocks" else int(which)
        return f"neck.fpn_convs.{number}.conv.{parameter}"
    if head := head_part(ours):
        if head.unit is None:
            return f"bbox_head.{_PREDICTORS[head.branch]}.{head.parameter}"
        return f"bbox_head.{_TOWERS[head.branch]}.{head.unit}.{'gn' if head.layer else 'conv'}.{head.parameter}"
    return None


class _Settings:
    """A configuration's literal keyword arguments and dict entries, wherever they stand."""

    def __init__(self, text: object) -> None:
        self.found: dict[str, list[Any]] = {}
        if not isinstance(text, str) or len(text) > _MOST_TEXT:
            return
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg:
                self._note(node.arg, node.value)
            elif isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant):
                        self._note(str(key.value), value)

    def _note(self, key: str, node: ast.expr) -> None:
        try:
            value = ast.literal_eval(node)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return
        values = self.found.setdefault(key, [])
        if value not in values:
            values.append(value)

    def __bool__(self) -> bool:
        return bool(self.found)

    def only(self, *keys: str) -> Any:
        """The value that these keys have, if it is the same everywhere; else None."""
        values = [value for key in keys for value in self.found.get(key, [])]
        return values[0] if values and all(value == values[0] for value in values) else None


def _conventions(settings: _Settings) -> tuple[Conventions, list[Assumption]]:
    style = settings.only("style")
    conventions = MMDET_CAFFE if style == "caffe" else MMDET
    values = conventions.model_dump()
    assumed: list[Assumption] = []
    if style not in ("caffe", "pytorch"):
        why = "style='pytorch', which the file does not say; a caffe model also wants input.channel_order=bgr and its own mean and std"
        assumed.append(Assumption(setting="stride_in", value=conventions.stride_in, why=why))
    if isinstance(relu := settings.only("relu_before_extra_convs"), bool):
        values["p7_relu"] = relu
    elif not settings:
        assumed.append(Assumption(setting="p7_relu", value=conventions.p7_relu, why="MMDetection's default"))
    order = settings.only("bgr_to_rgb", "to_rgb")
    if isinstance(order, bool):
        values["input"]["channel_order"] = "rgb" if order else "bgr"
    for field in ("mean", "std"):
        if _are_numbers(settings.only(field), 3):
            values["input"][field] = tuple(map(float, settings.only(field)))
    if not settings:
        assumed.append(Assumption(setting="input.mean", value=list(conventions.input.mean), why="MMDetection's usual preprocessing"))
    scale = settings.only("scale", "img_scale")
    if _are_numbers(scale, 2):
        values["input"]["max_size"], values["input"]["size"] = int(max(scale)), int(min(scale))
    else:
        assumed.append(Assumption(setting="input.size", value=conventions.input.size, why="MMDetection's usual test scale of (1333, 800)"))
    for field, keys in _OUTPUT.items():
        if _are_numbers([settings.only(*keys)], 1):
            values["output"][field] = settings.only(*keys)
    for field, key in (("aspect_ratios", "ratios"), ("base_size", "octave_base_scale")):
        value = settings.only(key)
        if _are_numbers(value, len(value) if isinstance(value, list | tuple) else 0):
            values["anchors"][field] = tuple(map(float, value))
        elif _are_numbers([value], 1):
            values["anchors"][field] = float(value)
    if isinstance(count := settings.only("scales_per_octave"), int) and 0 < count < 100:
        values["anchors"]["octave_scales"] = tuple(2 ** (i / count) for i in range(count))
    try:
        return Conventions.model_validate(values), assumed
    except ValueError:  # a configuration that says nothing usable is one that says nothing
        return conventions, [*assumed, Assumption(setting="input", value="default", why="the configuration in the file cannot be used")]


_OUTPUT: dict[str, tuple[str, ...]] = {
    "score_threshold": ("score_thr",),
    "candidates_per_level": ("nms_pre",),
    "nms_iou": ("iou_threshold",),
    "max_detections": ("max_per_img",),
}


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
    if [_plain(value) for value in names] == [_plain(category.name) for category in COCO_CLASSES]:
        return COCO_CLASSES
    return tuple(Category(id=number, name=value) for number, value in enumerate(names))


def _plain(value: str) -> str:
    return re.sub(r"[\s_-]+", " ", value).strip().casefold()
