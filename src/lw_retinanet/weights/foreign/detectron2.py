"""Detectron2's RetinaNet: pickles of the model zoo and ``.pth`` files of its trainer."""

from collections.abc import Collection

from lw_retinanet.conventions import STRIDES, AnchorRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, WeightsFormat, parse_block_tensor, parse_fpn_tensor, parse_head_tensor

NAME = "detectron2"
# Detectron2 clips boxes after scaling them to the original image, which is the same as clipping them before.
CONVENTIONS = Conventions(
    stride_in="1x1",
    anchors=AnchorRule(order="scale_major"),
    input=InputRule(resize="short_side", size=800, channel_order="bgr", scale=1.0, mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0)),
    output=OutputRule(clip="after_nms", drop_empty=True),
)

_SUBNETS = {"cls": "cls_subnet", "bbox": "bbox_subnet"}
_PREDICTORS = {"cls": "cls_score", "bbox": "bbox_pred"}
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
        tensor_name=_tensor_name,
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


def _tensor_name(ours: str) -> str | None:
    if ours.startswith("backbone.conv1."):
        return ours.replace("backbone.", "backbone.bottom_up.stem.", 1)
    if ours.startswith("backbone.bn1."):
        return ours.replace("backbone.bn1.", "backbone.bottom_up.stem.conv1.norm.", 1)
    if block := parse_block_tensor(ours):
        conv = f"conv{block.conv}" if block.conv else "shortcut"
        return f"backbone.bottom_up.res{block.stage + 1}.{block.block}.{conv}.{'norm.' if block.is_norm else ''}{block.parameter}"
    if part := parse_fpn_tensor(ours):
        kind, which, parameter = part
        if kind == "extra_blocks":
            return f"backbone.top_block.{which}.{parameter}"
        return f"backbone.fpn_{'lateral' if kind == 'inner_blocks' else 'output'}{int(which) + 3}.{parameter}"
    if (head := parse_head_tensor(ours)) and head.layer == 0:
        if head.unit is None:
            return f"head.{_PREDICTORS[head.branch]}.{head.parameter}"
        return f"head.{_SUBNETS[head.branch]}.{2 * head.unit}.{head.parameter}"
    return None
