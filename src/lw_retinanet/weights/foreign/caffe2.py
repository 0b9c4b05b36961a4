"""The original Detectron's RetinaNet: Caffe2 blobs, with a per-channel scale and shift (an affine layer) in place of every norm."""

import re
from collections.abc import Collection

from lw_retinanet.conventions import AnchorRule, BoxRule, Conventions, InputRule, OutputRule
from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, TensorNames, WeightsFormat

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
    output=OutputRule(
        score_threshold=0.05, last_level_score_threshold=0.0, clip_to="picture_minus_one", frame="picture", scale_back="uniform"
    ),
)
_BLOB = re.compile(r"res([2-5])_(\d+)_branch2a_w")
_NAMES = {
    "stem": "conv1_{parameter}",
    "stem_norm": "res_conv1_bn_{parameter}",
    "conv": "res{res}_{block}_branch2{letter}_{parameter}",
    "norm": "res{res}_{block}_branch2{letter}_bn_{parameter}",
    "shortcut": "res{res}_{block}_branch1_{parameter}",
    "shortcut_norm": "res{res}_{block}_branch1_bn_{parameter}",
    "extra": "fpn_{level}_{parameter}",
    "cls_unit": "retnet_cls_conv_n{unit}_fpn3_{parameter}",
    "bbox_unit": "retnet_bbox_conv_n{unit}_fpn3_{parameter}",
    "cls_prediction": "retnet_cls_pred_fpn3_{parameter}",
    "bbox_prediction": "retnet_bbox_pred_fpn3_{parameter}",
}
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
        names=_names(last),
        unused=_UNUSED,
        assumed=(
            Assumption(setting="stride_in", value=CONVENTIONS.stride_in, why="Detectron's MSRA backbones"),
            Assumption(setting="input.size", value=rule.size, why=f"test size; longer side at most {rule.max_size}"),
        ),
    )


def _names(last: dict[int, int]) -> TensorNames:
    """The names for the number of the last block of res2..res5, which names of the FPN contain."""
    names = dict(_NAMES)
    for level in (3, 4, 5):
        # The coarsest level starts the top-down path, so Detectron does not call its convolution lateral.
        names[f"lateral{level}"] = f"fpn_inner_res{level}_{last[level]}_sum{'' if level == 5 else '_lateral'}_{{parameter}}"
        names[f"output{level}"] = f"fpn_res{level}_{last[level]}_sum_{{parameter}}"
    return TensorNames(names, parameters={"weight": "w", "bias": "b"}, norm_parameters={"weight": "s", "bias": "b"})
