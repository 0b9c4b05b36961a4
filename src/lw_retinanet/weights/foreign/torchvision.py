"""torchvision's RetinaNet: weights files of its three generations of tensor names, and its own trained weights by name."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model_weights

from lw_retinanet.conventions import AnchorRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError, first_line, nearest
from lw_retinanet.weights.foreign.coco_classes import TORCHVISION_COCO_ROWS
from lw_retinanet.weights.foreign.stated import Stated, Statements, places, plain, read_statements
from lw_retinanet.weights.foreign.weights_file import ForeignFile, unwrap
from lw_retinanet.weights.foreign.weights_format import Assumption, TensorNames, WeightsFormat

NAME = "torchvision"
# torchvision 0.13 and later. It sets the epsilon of the norms to 0 when it loads its own v1 weights; a network that somebody trained
# from this class may have 1e-5, which the weights do not tell.
TORCHVISION_V1 = Conventions(
    norm_eps=0.0,
    p6_source="P5",
    anchors=AnchorRule(rounding="torchvision", stride_rule="padded_over_feature"),
    input=InputRule(resize="short_side", size=800, rounding="floor", antialias=False, resample_as="float32"),
    output=OutputRule(score_threshold=0.05, max_detections=300),
)
TORCHVISION_V2 = TORCHVISION_V1.model_copy(update={"norm_eps": 1e-5, "p6_source": "C5"})
DOWNLOAD = "torchvision:"

_DOWNLOADABLE = ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
UNUSED = (
    (r"backbone\.body\.fc\..*", "the classifier of the backbone's first training"),
    (r"transform\..*|anchor_generator\..*", "no weights"),
    (r"head\.(classification|regression)_head\.lightened", "a mark of light heads"),
)


def recognises(names: Collection[str]) -> bool:
    """Return whether these are names of the tensors of torchvision's RetinaNet."""
    return "head.classification_head.cls_logits.weight" in names and "head.regression_head.bbox_reg.weight" in names


def describe(file: ForeignFile) -> WeightsFormat:
    """Return how to read a file of torchvision, or of a program that uses torchvision's class.

    Raises:
        WeightsError: For the head of another detector.
    """
    names = file.tensors.keys()
    if "head.regression_head.bbox_ctrness.weight" in names:
        raise WeightsError(f"{file.where} is torchvision's FCOS and not a RetinaNet, so it cannot be converted")
    has_plain_pyramid = "backbone.fpn.inner_blocks.0.weight" in names
    has_flat_towers = "head.classification_head.conv.2.weight" in names
    has_norm = "head.classification_head.conv.0.1.weight" in names
    has_counters = any(name.startswith("backbone.body.") and name.endswith("num_batches_tracked") for name in names)
    eps, why = 1e-5, "torchvision's default for a model that is not its own file of COCO"
    if has_norm:
        why = "v2 is trained with ordinary batch norm"
    elif _num_rows(file) == TORCHVISION_COCO_ROWS and not has_counters:
        eps, why = 0.0, f"{TORCHVISION_COCO_ROWS} class rows and frozen norms, as in torchvision's own file of COCO"
    conventions = TORCHVISION_V2 if has_norm else TORCHVISION_V1.model_copy(update={"norm_eps": eps})
    rule = conventions.input
    assumed = (
        Assumption(setting="norm_eps", value=eps, why=why),
        Assumption(setting="input.size", value=rule.size, why=f"torchvision's default; longer side at most {rule.max_size}"),
        Assumption(setting="stride_in", value=conventions.stride_in, why="torchvision's ResNets"),
    )
    generation = "v2" if has_norm else "v1"
    if has_plain_pyramid or has_flat_towers:
        generation += ", names of before 0.13" if has_plain_pyramid else ", names of 0.13 to 0.14"
    return WeightsFormat(
        framework=NAME,
        generation=generation,
        conventions=conventions,
        names=tensor_names(has_plain_pyramid=has_plain_pyramid, has_flat_towers=has_flat_towers),
        unused=UNUSED,
        assumed=assumed,
        statements=_statements(file, has_norm=has_norm),
        has_background_row=True,
    )


def _statements(file: ForeignFile, *, has_norm: bool) -> Statements:
    """What the program around torchvision's class says: DeepForest, Lightning, a folder of the hub, torchvision's own training script."""
    extras = {key: value for key, value in file.extras.items() if key not in ("config.yaml", ".py")}
    found = read_statements(extras)
    conventions = dict(found.conventions)
    eps = None if has_norm else _stated_eps(extras)
    if eps:
        conventions["norm_eps"] = eps
    if _is_deepforest(extras):
        for setting, value in (("output.nms_iou", 0.05), ("output.score_threshold", 0.1)):
            conventions.setdefault(setting, Stated(value=value, where="DeepForest's default"))
        if found.class_names and len(found.class_names.value) > 1:
            conventions["output.class_agnostic"] = Stated(value=True, where="DeepForest's predict_image, with several classes")
    return replace(found, conventions=conventions)


def _is_deepforest(extras: Mapping[str, Any]) -> bool:
    return "numeric_to_label_dict" in extras or any("existing_train_dataloader" in settings for _, settings in places(extras))


def _stated_eps(extras: Mapping[str, Any]) -> Stated | None:
    """The epsilon of frozen norms follows from where a program starts: torchvision sets 0 only when it loads its own file of COCO."""
    for where, settings in places(extras):
        model, weights = plain(settings.get("model")), plain(settings.get("weights"))
        if isinstance(model, Mapping) and "name" in model and settings.get("architecture") == "retinanet":  # DeepForest 2
            begun = "begun from torchvision's file of COCO" if plain(model["name"]) is None else "rebuilt by from_pretrained"
            return Stated(value=0.0 if plain(model["name"]) is None else 1e-5, where=f"{where}model.name, {begun}")
        if "config_file" in settings and "existing_train_dataloader" in settings:
            return Stated(value=0.0, where="DeepForest 1, which begins from torchvision's file of COCO")
        if isinstance(weights, str) and "weights_backbone" in settings:  # torchvision's references/detection/train.py
            return Stated(value=0.0 if "COCO_V1" in weights else 1e-5, where=f"{where}weights")
    if "config.json" in extras:
        return Stated(value=1e-5, where="config.json: from_pretrained loads no file of COCO")
    return None


def tensor_names(*, has_plain_pyramid: bool = False, has_flat_towers: bool = False) -> TensorNames:
    """Return torchvision's names.

    Args:
        has_plain_pyramid: The FPN has ``inner_blocks.0.weight`` instead of ``inner_blocks.0.0.weight``.
        has_flat_towers: The towers have ``conv.{0,2,4,6}`` instead of ``conv.{0,1,2,3}.0``.
    """
    inner = "" if has_plain_pyramid else ".0"
    templates = {
        "backbone": "backbone.body.{rest}",
        "lateral": f"backbone.fpn.inner_blocks.{{index}}{inner}.{{parameter}}",
        "output": f"backbone.fpn.layer_blocks.{{index}}{inner}.{{parameter}}",
        "extra": "backbone.fpn.extra_blocks.p{level}.{parameter}",
        "cls_prediction": "head.classification_head.cls_logits.{parameter}",
        "bbox_prediction": "head.regression_head.bbox_reg.{parameter}",
    }
    for branch, place in (("cls", "head.classification_head.conv"), ("bbox", "head.regression_head.conv")):
        templates[f"{branch}_unit"] = f"{place}.{{twice}}.{{parameter}}" if has_flat_towers else f"{place}.{{unit}}.0.{{parameter}}"
        own = f"{place.removesuffix('.conv')}.own.{{index}}"
        templates[f"{branch}_own_units"] = f"{own}.conv.{{rest}}"
        templates[f"{branch}_own_predict"] = f"{own}.{'cls_logits' if branch == 'cls' else 'bbox_reg'}.{{rest}}"
        if not has_flat_towers:
            templates[f"{branch}_unit_norm"] = f"{place}.{{unit}}.1.{{parameter}}"
    return TensorNames(templates)


def _num_rows(file: ForeignFile) -> int:
    boxes = file.tensors["head.regression_head.bbox_reg.weight"].shape
    rows = file.tensors["head.classification_head.cls_logits.weight"].shape
    return rows[0] // max(1, boxes[0] // 4) if boxes and rows else 0


def is_named(source: str | Path) -> bool:
    """Whether these are weights of torchvision by their name, and not a file."""
    return str(source).startswith(DOWNLOAD)


def require_known(source: str | Path) -> None:
    """Check ``torchvision:NAME``.

    Raises:
        WeightsError: If torchvision has no weights of this name.
    """
    name = str(source).removeprefix(DOWNLOAD)
    if name not in _DOWNLOADABLE:
        raise WeightsError(f"torchvision has no RetinaNet called {name!r}; known: {', '.join(_DOWNLOADABLE)}{nearest(name, _DOWNLOADABLE)}")


def download(source: str) -> ForeignFile:
    """Return the tensors of ``torchvision:NAME``, from torch's cache, or downloaded and checked by their hash.

    Raises:
        WeightsError: For another name, if there is neither a network nor a cached file, or if the cached file is damaged.
    """
    require_known(source)
    weights = get_model_weights(source.removeprefix(DOWNLOAD)).DEFAULT
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a checksum that is wrong, a cached file that is damaged: half a dozen types
        if cached.exists():
            raise WeightsError(
                f"{cached}: cannot be read as weights of {source} ({first_line(error)}); remove the file, and try again"
            ) from None
        raise WeightsError(
            f"{source} is not at {cached}, and cannot be downloaded ({first_line(error)}); on a machine with a network, download "
            f"{weights.url} and put it there"
        ) from None
    return unwrap(state, source)
