"""torchvision's RetinaNet with the weights of one of ours: what the comparison is made against."""

from functools import partial
from typing import Any

from torch import nn
from torchvision.models import resnet18, resnet34, resnet50, resnet101, resnet152
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from lw_retinanet.conventions import LEVELS, STRIDES, AnchorRule, BoxRule, Conventions
from lw_retinanet.errors import InputError
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.weights.foreign.origins import TORCHVISION_V1, TORCHVISION_V2
from lw_retinanet.weights.foreign.torchvision import naming

_RESNETS: dict[tuple[str, tuple[int, ...]], Any] = {
    ("BasicBlock", (2, 2, 2, 2)): resnet18,
    ("BasicBlock", (3, 4, 6, 3)): resnet34,
    ("Bottleneck", (3, 4, 6, 3)): resnet50,
    ("Bottleneck", (3, 4, 23, 3)): resnet101,
    ("Bottleneck", (3, 8, 36, 3)): resnet152,
}
_PLAIN_UNITS: dict[tuple[str, ...], Any] = {("3x3",) * 4: None, ("3x3-gn",) * 4: partial(nn.GroupNorm, 32)}


def why_not_torchvision(model: RetinaNet, *, switchable: bool = False) -> str | None:
    """Why torchvision's class cannot hold this model with its full head, or None if it can.

    Args:
        model: ours.
        switchable: it is a lightened one that still has the full head of before.
    """
    head, conventions = model.head, model.conventions
    if head.plan.shared.units not in _PLAIN_UNITS:
        return "its towers are not torchvision's"
    if (head.plan.cls or head.plan.bbox) and not switchable:
        return "its head is light, and no full one came with it"
    if not conventions.p7_relu:
        return "it has no ReLU before P7"
    if conventions.boxes != BoxRule():
        return "it decodes boxes in another way"
    rule = conventions.input
    if rule.channel_order != "rgb" or rule.scale != 255.0:
        return "it takes pictures in another form"
    anchors = conventions.anchors
    if anchors.order != "ratio_major" or anchors.centre or anchors.inclusive:
        return "its anchors come in another order or place"
    return None


def torchvision_conventions(conventions: Conventions) -> Conventions:
    """These as torchvision's class can have them: its rounded anchors and its way of resizing, at the same sizes and thresholds."""
    rule, given = TORCHVISION_V1, conventions.input
    max_size = given.size if given.resize == "long_side" else given.max_size
    scales, ratios = conventions.anchors.octave_scales, conventions.anchors.aspect_ratios
    return rule.model_copy(
        update={
            "stride_in": conventions.stride_in,
            "norm_eps": conventions.norm_eps,
            "p6_source": conventions.p6_source,
            "anchors": rule.anchors.model_copy(
                update={"base_size": conventions.anchors.base_size, "octave_scales": scales, "aspect_ratios": ratios}
            ),
            "input": rule.input.model_copy(
                update={
                    "size": given.size,
                    "max_size": max_size,
                    "pad_multiple": given.pad_multiple,
                    "mean": given.mean,
                    "std": given.std,
                }
            ),
            "output": rule.output.model_copy(
                update={
                    "score_threshold": conventions.output.score_threshold,
                    "candidates_per_level": conventions.output.candidates_per_level,
                    "nms_iou": conventions.output.nms_iou,
                    "max_detections": conventions.output.max_detections,
                }
            ),
        }
    )


def preset_conventions(conventions: Conventions) -> Conventions:
    """For a network that is made up here: what torchvision's newer RetinaNet does, so that both do the very same work."""
    own = torchvision_conventions(conventions)
    return own.model_copy(update={"norm_eps": TORCHVISION_V2.norm_eps, "p6_source": TORCHVISION_V2.p6_source})


def torchvision_twin(model: RetinaNet) -> TorchvisionRetinaNet:
    """torchvision's class, built as torchvision builds it, with the weights of this model's backbone, pyramid and full head.

    Args:
        model: on the CPU, one that :func:`why_not_torchvision` has nothing against; its own light towers are left out.

    Returns:
        In evaluation mode, with the model's sizes and thresholds. Anchors and resizing are torchvision's
        (:func:`torchvision_conventions`).

    Raises:
        InputError: if the backbone is no ResNet with batch norm.
    """
    conventions = torchvision_conventions(model.conventions)
    rule, output = conventions.input, conventions.output
    backbone = _backbone(model, conventions)
    generator = _anchor_generator(conventions.anchors)
    head = RetinaNetHead(
        backbone.out_channels,
        generator.num_anchors_per_location()[0],
        model.num_classes,
        norm_layer=_PLAIN_UNITS[model.head.plan.shared.units],
    )
    twin = TorchvisionRetinaNet(
        backbone,
        model.num_classes,
        min_size=rule.size,
        max_size=rule.max_size,
        image_mean=list(rule.mean),
        image_std=list(rule.std),
        anchor_generator=generator,
        head=head,
        score_thresh=output.score_threshold,
        nms_thresh=output.nms_iou,
        detections_per_img=output.max_detections,
        topk_candidates=output.candidates_per_level,
        size_divisible=rule.pad_multiple,
    )
    twin.load_state_dict(_renamed(model))
    return twin.eval()


def _backbone(model: RetinaNet, conventions: Conventions) -> Any:
    ours: Any = model.backbone
    stages: list[Any] = [getattr(ours, f"layer{number}", None) for number in range(1, 5)]
    kind = None if None in stages else (type(stages[0][0]).__name__, tuple(map(len, stages)))
    has_group_norm = any(isinstance(module, nn.GroupNorm) for module in ours.modules())
    if kind is None or kind not in _RESNETS or has_group_norm:
        what = "its backbone has group norm" if has_group_norm else f"its backbone is a {type(ours).__name__}"
        raise InputError(f"torchvision's RetinaNet needs a ResNet with batch norm, and {what}; leave --against out")
    trains_norm = any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())
    norm = partial(nn.BatchNorm2d if trains_norm else FrozenBatchNorm2d, eps=conventions.norm_eps)
    body = _RESNETS[kind](weights=None, norm_layer=norm)
    if conventions.stride_in == "1x1":
        for stage in (body.layer2, body.layer3, body.layer4):
            stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    channels, width = list(ours.channels), model.fpn.out_channels
    extra = LastLevelP6P7(width if conventions.p6_source == "P5" else channels[-1], width)
    layers = {f"layer{number}": str(place) for place, number in enumerate((2, 3, 4))}
    return BackboneWithFPN(body, layers, channels, width, extra_blocks=extra)


def _anchor_generator(rule: AnchorRule) -> AnchorGenerator:
    sides = [stride * rule.base_size for stride in STRIDES]
    sizes = tuple(tuple(int(side * scale) for scale in rule.octave_scales) for side in sides)
    return AnchorGenerator(sizes, (rule.aspect_ratios,) * len(LEVELS))


def _renamed(model: RetinaNet) -> dict[str, Any]:
    name = naming()
    full_output = "fpn.full_output."
    tensors = model.state_dict()
    for key in [key for key in tensors if key.startswith(full_output)]:
        tensors[f"fpn.layer_blocks.0.0.{key.removeprefix(full_output)}"] = tensors.pop(key)
    shared = {key: tensor for key, tensor in tensors.items() if ".own_units." not in key and ".own_predict." not in key}
    renamed = {name(key): tensor for key, tensor in shared.items()}
    assert None not in renamed
    return {str(key): tensor for key, tensor in renamed.items()}
