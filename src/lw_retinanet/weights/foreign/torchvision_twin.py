"""torchvision's own RetinaNet with the weights of one of our models, or of a foreign weights file."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.conventions import LEVELS, STRIDES, BoxRule, Conventions
from lw_retinanet.errors import InputError
from lw_retinanet.heads import SHARED
from lw_retinanet.models.blocks import PREDICTIONS, UNITS
from lw_retinanet.models.head import Branch
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.conversion import ConversionSource
from lw_retinanet.weights.foreign.levelwise import give_own_layers
from lw_retinanet.weights.foreign.network import RESNETS
from lw_retinanet.weights.foreign.torchvision import TORCHVISION_V1, TORCHVISION_V2, tensor_names

# Units of a tower that torchvision's head can have -> the norm that makes them.
_HEAD_NORMS: dict[tuple[str, ...], Any] = {("3x3",) * 4: None, ("3x3-gn",) * 4: partial(nn.GroupNorm, 32)}


def why_not_torchvision(model: RetinaNet, *, switchable: bool = False) -> str | None:
    """Return why torchvision's class cannot hold this model with its full head, or None if it can.

    Args:
        model: One of our models.
        switchable: Whether the model is lightened and still has the full head from before.
    """
    head, conventions = model.head, model.conventions
    if head.plan.shared.units not in _HEAD_NORMS:
        return "its towers are not torchvision's"
    if (head.plan.cls or head.plan.bbox) and not switchable:
        return "its head is light, and it has no full head beside it"
    if not conventions.p7_relu:
        return "it has no ReLU before P7"
    if conventions.boxes != BoxRule():
        return "it decodes boxes in another way"
    rule = conventions.input
    if rule.channel_order != "rgb" or rule.scale != 255.0:
        return "it normalises images in another way"
    anchors = conventions.anchors
    if anchors.order != "ratio_major" or anchors.centre or anchors.inclusive:
        return "its anchors have another order or place"
    return None


def why_not_light(model: RetinaNet) -> str | None:
    """Return why torchvision's class cannot hold this model with the light towers that it has, or None if it can."""
    for branch, plans in ((model.head.cls, model.head.plan.cls), (model.head.bbox, model.head.plan.bbox)):
        if any(not {*plan.units} <= {*UNITS} or plan.predict not in (SHARED, *PREDICTIONS) for plan in plans.values()):
            return "a light tower shares units with other levels"
        if branch.shared_predict is None or len(branch.shared_units) < branch.num_shared_units:
            return "every level of its head has a tower of its own"
    return why_not_torchvision(model, switchable=True)


def torchvision_conventions(conventions: Conventions) -> Conventions:
    """Return torchvision's conventions with the sizes, thresholds and other values of these that torchvision lets its users choose."""
    usual, given = TORCHVISION_V1, conventions.input
    max_size = given.size if given.resize == "long_side" else given.max_size
    input_values = {**_fields(given, "size", "pad_multiple", "mean", "std"), "max_size": max_size}
    output_values = _fields(conventions.output, "score_threshold", "candidates_per_level", "nms_iou", "max_detections")
    return usual.model_copy(
        update={
            **_fields(conventions, "norm_eps", "p6_source", "stride_in"),
            "anchors": usual.anchors.model_copy(update=_fields(conventions.anchors, "base_size", "octave_scales", "aspect_ratios")),
            "input": usual.input.model_copy(update=input_values),
            "output": usual.output.model_copy(update=output_values),
        }
    )


def _fields(record: object, *names: str) -> dict[str, Any]:
    return {name: getattr(record, name) for name in names}


def preset_conventions(conventions: Conventions) -> Conventions:
    """Return the conventions of torchvision's newer RetinaNet, for a network without weights: both then do the same work."""
    own = torchvision_conventions(conventions)
    return own.model_copy(update=_fields(TORCHVISION_V2, "norm_eps", "p6_source"))


def torchvision_twin(model: RetinaNet, *, light: bool = False) -> TorchvisionRetinaNet:
    """Build torchvision's RetinaNet with the weights of this model's backbone, pyramid and full head.

    Args:
        model: A model for which :func:`why_not_torchvision` returns None; its light towers are left out.
        light: Give the twin the light towers, too, as lightening in place would; :func:`why_not_light` must return None.

    Returns:
        The network in evaluation mode, with the model's sizes and thresholds. Its anchors and its resizing are torchvision's
        (:func:`torchvision_conventions`).

    Raises:
        InputError: If the backbone is not a ResNet with batch norm.
    """
    body: Any = model.backbone
    stages: list[Any] = [getattr(body, f"layer{number}", None) for number in range(1, 5)]
    kind = None if None in stages else (type(stages[0][0]).__name__ == "Bottleneck", tuple(map(len, stages)))
    has_group_norm = any(isinstance(module, nn.GroupNorm) for module in body.modules())
    if kind is None or kind not in RESNETS or has_group_norm:
        found = "its backbone has group norm" if has_group_norm else f"its backbone is a {type(body).__name__}"
        raise InputError(f"torchvision's RetinaNet needs a ResNet with batch norm, and {found}; do not compare with torchvision")
    trains_norm = any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    twin = _build(
        RESNETS[kind],
        torchvision_conventions(model.conventions),
        width=model.fpn.out_channels,
        num_rows=model.num_classes,
        head_norm=_HEAD_NORMS[model.head.plan.shared.units],
        backbone_norm=nn.BatchNorm2d if trains_norm else FrozenBatchNorm2d,
        tensors=_torchvision_tensors(model, light=light),
    )
    if light:
        heads: Any = twin.head
        _give_towers(heads.classification_head, "cls_logits", model.head.cls)
        _give_towers(heads.regression_head, "bbox_reg", model.head.bbox)
    return twin.eval()


def _give_towers(head: nn.Module, prediction: str, branch: Branch) -> None:
    """The light towers of a branch, as layers of torchvision's head."""
    for place, level in enumerate(LEVELS):
        if branch.plans[level] is not None:
            units, _ = branch.layers(level)
            layers: dict[str, nn.Module] = {"conv": nn.Sequential(*units)}
            if level in branch.own_predict:
                layers[prediction] = branch.own_predict[level]
            give_own_layers(head, place, copy.deepcopy(layers))


def torchvision_of_file(source: ConversionSource, conventions: Conventions) -> TorchvisionRetinaNet:
    """Build torchvision's RetinaNet with the tensors of a torchvision file, every class row included.

    Args:
        source: The file.
        conventions: Conventions that :func:`torchvision_conventions` leaves as they are.
    """
    architecture, tensors = source.architecture, source.file.tensors
    return _build(
        architecture.backbone,
        conventions,
        width=architecture.width,
        num_rows=architecture.num_rows,
        head_norm=partial(nn.GroupNorm, 32) if architecture.plan.shared.units[0].endswith("-gn") else None,
        backbone_norm=FrozenBatchNorm2d,
        # torchvision itself accepts the tensor names of its older versions.
        tensors={name: tensor.float() for name, tensor in tensors.items() if source.layout.reason_to_drop(name, tensor) is None},
    )


def _build(
    backbone: str,
    conventions: Conventions,
    *,
    width: int,
    num_rows: int,
    head_norm: Any,
    backbone_norm: Any,
    tensors: Mapping[str, Tensor],
) -> TorchvisionRetinaNet:
    body: Any = getattr(torchvision.models, backbone)(weights=None, norm_layer=partial(backbone_norm, eps=conventions.norm_eps))
    if conventions.stride_in == "1x1":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    c5 = body.fc.in_features
    p6_p7 = LastLevelP6P7(c5 if conventions.p6_source == "C5" else width, width)
    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    anchors, rule, output = conventions.anchors, conventions.input, conventions.output
    # 1e-6 as in models.anchors: a product that should be 32 may be a little less in floating point.
    sizes = tuple(tuple(int(stride * anchors.base_size * scale + 1e-6) for scale in anchors.octave_scales) for stride in STRIDES)
    network = TorchvisionRetinaNet(
        BackboneWithFPN(body, layers, [c5 // 4, c5 // 2, c5], width, extra_blocks=p6_p7),
        num_rows,
        min_size=rule.size,
        max_size=rule.max_size,
        image_mean=list(rule.mean),
        image_std=list(rule.std),
        anchor_generator=AnchorGenerator(sizes, (anchors.aspect_ratios,) * len(LEVELS)),
        head=RetinaNetHead(width, anchors.num_anchors, num_rows, norm_layer=head_norm),
        score_thresh=output.score_threshold,
        nms_thresh=output.nms_iou,
        detections_per_img=output.max_detections,
        topk_candidates=output.candidates_per_level,
        size_divisible=rule.pad_multiple,
    )
    network.load_state_dict(tensors)
    return network.eval()


def _torchvision_tensors(model: RetinaNet, *, light: bool) -> dict[str, Tensor]:
    """The tensors of our model's backbone, pyramid and full head under torchvision's names; ``light`` takes the maps of the light head."""
    names = tensor_names()
    tensors = model.state_dict()
    for place, start in enumerate(("fpn.full_output.", "fpn.full_outputs.P4.")):
        for key in [key for key in tensors if key.startswith(start)]:
            tensor = tensors.pop(key)
            if not light:
                tensors[f"fpn.layer_blocks.{place}.0.{key.removeprefix(start)}"] = tensor
    shared = {key: tensor for key, tensor in tensors.items() if ".own_units." not in key and ".own_predict." not in key}
    renamed = {names(key): tensor for key, tensor in shared.items()}
    assert None not in renamed
    return {str(key): tensor for key, tensor in renamed.items()}
