"""A torchvision RetinaNet in memory in, one of our models out."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetHead, RetinaNetRegressionHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.conventions import STRIDES, AnchorRule, Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.models.anchors import cell_anchors
from lw_retinanet.weights.foreign.class_rows import read_classes
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.foreign.convert import convert_file
from lw_retinanet.weights.foreign.torchvision import NAME, TORCHVISION_V1, UNUSED, tensor_names
from lw_retinanet.weights.foreign.weights_file import unwrap
from lw_retinanet.weights.foreign.weights_format import WeightsFormat
from lw_retinanet.weights.model_file import LoadedModel

_WHERE = "this torchvision model"


def from_torchvision(model: nn.Module, categories: Sequence[Category] | Sequence[str] | None = None) -> LoadedModel:
    """Convert a torchvision RetinaNet in memory: weights, anchors, sizes, thresholds, norms and stride are read from the module.

    Args:
        model: torchvision's ``RetinaNet`` with a ResNet and an FPN, or a subclass with the same arithmetic. It stays as it is.
        categories: Names or categories. There are as many as class rows, or one fewer where row 0 is the background. If the largest id of
            the categories is that of the last row, ids are taken for rows. None takes COCO's classes for 91 rows, else ``class_0``, ...

    Raises:
        WeightsError: If something of the model cannot be converted; the message names it.

    Example:
        >>> import torchvision, lw_retinanet as lw
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        >>> loaded = lw.from_torchvision(model, ["cat", "dog"])  # class row 0 is torchvision's background
        >>> loaded.model.num_classes, loaded.record.conventions.input.size
        (2, 800)
    """
    return convert_model(model, categories).loaded


def convert_model(model: nn.Module, categories: Sequence[Category] | Sequence[str] | None = None) -> ConvertedModel:
    """As :func:`from_torchvision`, with a report on every tensor."""
    if not isinstance(model, RetinaNet):
        if place := place_inside(model, RetinaNet):
            raise WeightsError(f"the model is wrapped in a {type(model).__name__}; give the RetinaNet that its attribute {place} holds")
        raise WeightsError(f"a torchvision RetinaNet is expected, got {type(model).__name__}; other detectors cannot be converted")
    _refuse_own_arithmetic(model)
    file = unwrap({name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}, _WHERE)
    has_norm = "head.classification_head.conv.0.1.weight" in file.tensors
    layout = WeightsFormat(
        framework=NAME,
        generation=f"a live {type(model).__name__}, {'v2' if has_norm else 'v1'}",
        conventions=_conventions(model),
        names=tensor_names(),
        unused=UNUSED,
        has_background_row=True,
    )
    given = None if categories is None else read_classes(categories)
    return convert_file(file, layout, given=given, source=type(model).__name__)


def place_inside(model: object, *kinds: type[nn.Module]) -> str | None:
    """The attribute of a model, such as one of Lightning or ``DataParallel``, that holds a detector of these kinds; None if none does."""
    inside = model.named_modules() if isinstance(model, nn.Module) else ()
    return next((name for name, each in inside if isinstance(each, kinds)), None)


def _refuse_own_arithmetic(model: Any) -> None:
    """Refuse a subclass that changes the arithmetic: the weights do not contain what its methods do."""
    head = model.head
    usual: list[tuple[object, type, str]] = [
        (model, RetinaNet, "forward"),
        (model, RetinaNet, "postprocess_detections"),
        (head, RetinaNetHead, "forward"),
        (getattr(head, "classification_head", None), RetinaNetClassificationHead, "forward"),
        (getattr(head, "regression_head", None), RetinaNetRegressionHead, "forward"),
    ]
    for part, home, method in usual:
        # A head that was lightened in place is of a class made from the original one.
        kind = getattr(type(part), "original", type(part))
        if not isinstance(part, home) or getattr(kind, method) is not getattr(home, method):
            raise WeightsError(
                f"{type(part).__name__}.{method} is not torchvision's own {home.__name__}.{method}, so the model cannot be converted"
            )
    extra = getattr(getattr(model.backbone, "fpn", None), "extra_blocks", None)
    if not isinstance(extra, LastLevelP6P7) or not hasattr(model.backbone, "body"):
        raise WeightsError(f"the backbone {type(model.backbone).__name__} is no ResNet with FPN, P6 and P7, and cannot be converted")
    if tuple(model.box_coder.weights) != (1.0, 1.0, 1.0, 1.0):
        raise WeightsError(f"the box coder has the weights {tuple(model.box_coder.weights)}, not 1; this cannot be converted")
    for name in ("fixed_size", "_skip_resize"):
        if getattr(model.transform, name, None):
            raise WeightsError(f"the transform has {name}={getattr(model.transform, name)}, which cannot be converted; leave it out")


def _conventions(model: Any) -> Conventions:
    transform, body = model.transform, model.backbone.body
    values: dict[str, Any] = TORCHVISION_V1.model_dump()
    values["norm_eps"] = _norm_eps(body)
    values["stride_in"] = _stride_in(body)
    values["p6_source"] = "P5" if model.backbone.fpn.extra_blocks.use_P5 else "C5"
    values["anchors"] = _anchors(model.anchor_generator).model_dump()
    values["input"].update(
        size=int(transform.min_size[-1]),  # in evaluation mode torchvision takes the last of several
        max_size=int(transform.max_size),
        pad_multiple=int(transform.size_divisible),
        mean=tuple(map(float, transform.image_mean)),
        std=tuple(map(float, transform.image_std)),
    )
    values["output"].update(
        score_threshold=float(model.score_thresh),
        candidates_per_level=int(model.topk_candidates),
        nms_iou=float(model.nms_thresh),
        max_detections=int(model.detections_per_img),
    )
    try:
        return Conventions.model_validate(values)
    except ValueError as error:
        raise WeightsError(f"a setting of {_WHERE} is out of range: {' '.join(str(error).split())[:200]}") from None


def _norm_eps(body: nn.Module) -> float:
    norms = [module for module in body.modules() if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d)]
    others = [type(module).__name__ for module in body.modules() if isinstance(module, nn.GroupNorm | nn.InstanceNorm2d | nn.LayerNorm)]
    epsilons = sorted({float(norm.eps) for norm in norms})
    if others or not epsilons:
        raise WeightsError(f"the backbone has {others[0] if others else 'no norms'} and not batch norm, which cannot be converted")
    if len(epsilons) > 1:
        raise WeightsError(f"the norms of the backbone have several epsilons ({epsilons}), which cannot be converted")
    return epsilons[0]


def _stride_in(body: Any) -> str:
    found = set()
    for stage in (body.layer2, body.layer3, body.layer4) if hasattr(body, "layer4") else ():
        first, second = stage[0].conv1, stage[0].conv2
        is_dilated = any(conv.dilation != (1, 1) for block in stage for conv in (block.conv1, block.conv2))
        if is_dilated or 2 not in (*first.stride, *second.stride):
            raise WeightsError("the backbone has dilated stages (replace_stride_with_dilation), which cannot be converted")
        found.add("1x1" if hasattr(stage[0], "conv3") and first.stride == (2, 2) else "3x3")
    if len(found) != 1:
        raise WeightsError(f"the backbone {type(body).__name__} is no plain ResNet, and cannot be converted")
    return str(found.pop())


def _anchors(generator: Any) -> AnchorRule:
    sizes, ratios = generator.sizes, generator.aspect_ratios
    usual = TORCHVISION_V1.anchors
    if len(sizes) == len(STRIDES) and len(set(map(tuple, ratios))) == 1:
        aspect_ratios = tuple(float(ratio) for ratio in ratios[0])
        smallest = sizes[0][0]
        guesses: list[Mapping[str, Any]] = [{}]
        # The sizes are rounded: the finest level gives the base size, and the coarsest one the most exact scales.
        guesses.append({"base_size": smallest / STRIDES[0], "octave_scales": tuple(size / sizes[-1][0] for size in sizes[-1])})
        for guess in guesses:
            rule = AnchorRule.model_validate({**usual.model_dump(), **guess, "aspect_ratios": aspect_ratios})
            made = [generator.generate_anchors(level, aspect_ratios) for level in sizes]
            ours = [cell_anchors(stride, rule) for stride in STRIDES]
            if all(a.shape == b.shape and torch.equal(a.round().float(), b) for a, b in zip(made, ours, strict=True)):
                return rule
    raise WeightsError(
        f"the anchors of {_WHERE} (sizes {sizes}, ratios {ratios}) do not double from level to level, and cannot be converted"
    )
