"""The original Detectron's RetinaNet: Caffe2 blobs, with a per-channel scale and shift (an affine layer) in place of every norm."""

import re
from collections.abc import Collection

from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import (
    Assumption,
    TensorName,
    WeightsFormat,
    parse_block_tensor,
    parse_fpn_tensor,
    parse_head_tensor,
)

NAME = "caffe2"
# Affine layers have no epsilon, so 0 reproduces them exactly. P6 comes from C5, with a ReLU before P7.
# The centre of a cell's inclusive anchors, (stride - 1) / 2, is half a stride where the last pixel counts whole.
CONVENTIONS = Conventions(
    stride_in="1x1",
    norm_eps=0.0,
    anchors=AnchorRule(aspect_ratios=(1.0, 2.0, 0.5), order="scale_major", rounding="detectron", centre=0.5, inclusive=True),
    boxes=BoxRule(legacy_plus_one=True),
    input=InputRule(
        resize="short_side",
        size=800,
        rounding="detectron",
        antialias=False,
        resample_as="float32",
        pad_multiple=128,
        channel_order="bgr",
        scale=1.0,
        mean=(102.9801, 115.9465, 122.7717),
        std=(1.0, 1.0, 1.0),
    ),
    output=OutputRule(last_level_score_threshold=0.0, clip_to="picture_minus_one", frame="picture", scale_back="uniform"),
)
_BLOB = re.compile(r"res([2-5])_(\d+)_branch2a_w")
_PARAMETERS = {"weight": "w", "bias": "b"}
_AFFINE = {"weight": "s", "bias": "b"}
_BRANCHES = {0: "branch1", 1: "branch2a", 2: "branch2b", 3: "branch2c"}
_UNUSED = (
    (r".*_momentum", "the optimiser's"),
    (r"lr|.*_iter|.*/lr|.*/iter.*|gpu_0/.*|__preserve__/.*", "the trainer's"),
    (r"(fc1000|pred)_[wb]", "the classifier of the backbone's first training"),
    (r"conv1_b|res\d_\d+_branch(1|2[abc])_b", "a bias of zero before an affine layer"),
)


def recognises(names: Collection[str]) -> bool:
    """Return whether these are names of Detectron's blobs."""
    return any(name.startswith("retnet_") for name in names)


def describe(file: ForeignFile) -> WeightsFormat:
    """Return how to read a file of the original Detectron.

    Raises:
        WeightsError: For one tower that both branches share, a backbone with biases, or levels with towers of their own.
    """
    if "retnet_bbox_conv_n0_fpn3_w" not in file.tensors and "retnet_cls_conv_n0_fpn3_w" in file.tensors:
        raise WeightsError(f"{file.where} has one tower for classes and boxes (SHARE_CLS_BBOX_TOWER), which cannot be converted")
    own = [name for name in file.tensors if re.fullmatch(r"retnet_\w+_fpn[4-7]_[wb]", name)]
    if own:
        raise WeightsError(f"{file.where} has heads that differ between levels ({own[0]}); only one head for all levels can be converted")
    biased = [key for key, tensor in file.tensors.items() if re.fullmatch(_UNUSED[-1][0], key) and bool(tensor.any())]
    if biased:
        raise WeightsError(f"{file.where} has a bias that is not zero before an affine layer ({biased[0]}), which cannot be converted")
    last = dict.fromkeys(range(2, 6), -1)
    for name in file.tensors:
        if match := _BLOB.fullmatch(name):
            last[int(match[1])] = max(last[int(match[1])], int(match[2]))
    rule = CONVENTIONS.input
    return WeightsFormat(
        framework=NAME,
        generation="Detectron",
        conventions=CONVENTIONS,
        tensor_name=_tensor_name(last),
        unused=_UNUSED,
        assumed=(
            Assumption(setting="stride_in", value=CONVENTIONS.stride_in, why="Detectron's MSRA backbones"),
            Assumption(setting="input.size", value=rule.size, why=f"test size; longer side at most {rule.max_size}"),
        ),
    )


def _tensor_name(last: dict[int, int]) -> TensorName:
    """Return the function from our names to blobs; ``last`` is the number of the last block of res2..res5, which FPN blobs contain."""

    def name(ours: str) -> str | None:
        if ours == "backbone.conv1.weight":
            return "conv1_w"
        if ours.startswith("backbone.bn1."):
            return _affine("res_conv1", ours.rpartition(".")[2])
        if block := parse_block_tensor(ours):
            blob = f"res{block.stage + 1}_{block.block}_{_BRANCHES[block.conv]}"
            return _affine(blob, block.parameter) if block.is_norm else f"{blob}_w"
        if part := parse_fpn_tensor(ours):
            kind, which, parameter = part
            if kind == "extra_blocks":
                return f"fpn_{which.removeprefix('p')}_{_PARAMETERS[parameter]}"
            stage = int(which) + 3
            blob = f"res{stage}_{last[stage]}_sum"
            if kind == "layer_blocks":
                return f"fpn_{blob}_{_PARAMETERS[parameter]}"
            # The coarsest level starts the top-down path, so Detectron does not call its convolution lateral.
            return f"fpn_inner_{blob}{'' if stage == 5 else '_lateral'}_{_PARAMETERS[parameter]}"
        if (head := parse_head_tensor(ours)) and head.layer == 0:
            layer = "pred" if head.unit is None else f"conv_n{head.unit}"
            return f"retnet_{head.branch}_{layer}_fpn3_{_PARAMETERS[head.parameter]}"
        return None

    return name


def _affine(blob: str, parameter: str) -> str | None:
    return f"{blob}_bn_{_AFFINE[parameter]}" if parameter in _AFFINE else None
