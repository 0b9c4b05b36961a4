"""The original Detectron's RetinaNet: blobs of Caffe2, with an affine channel layer in place of every norm."""

import re
from collections.abc import Collection

from lw_retinanet.errors import WeightsError
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, Naming, block_part, fpn_part, head_part
from lw_retinanet.weights.foreign.origins import CAFFE2
from lw_retinanet.weights.foreign.state_file import ForeignFile

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
    return any(name.startswith("retnet_") for name in names)


def blueprint(file: ForeignFile) -> Blueprint:
    """How to read a file of the original Detectron's.

    Raises:
        WeightsError: for one tower for both branches, a biased backbone, or levels with their own first layers.
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
    rule = CAFFE2.input
    return Blueprint(
        framework="caffe2",
        generation="Detectron",
        conventions=CAFFE2,
        name=naming(last),
        unused=_UNUSED,
        assumed=(
            Assumption(setting="stride_in", value=CAFFE2.stride_in, why="Detectron's MSRA backbones"),
            Assumption(setting="input.size", value=rule.size, why=f"test size; longer side at most {rule.max_size}"),
        ),
    )


def naming(last: dict[int, int]) -> Naming:
    """Our names -> Caffe2's blobs.

    Args:
        last: number of the last block of each of res2..res5, which the pyramid's blobs are called after.
    """

    def name(ours: str) -> str | None:
        if ours == "backbone.conv1.weight":
            return "conv1_w"
        if ours.startswith("backbone.bn1."):
            return _affine("res_conv1", ours.rpartition(".")[2])
        if block := block_part(ours):
            blob = f"res{block.stage + 1}_{block.block}_{_BRANCHES[block.conv]}"
            return _affine(blob, block.parameter) if block.is_norm else f"{blob}_w"
        if part := fpn_part(ours):
            kind, which, parameter = part
            if kind == "extra_blocks":
                return f"fpn_{which.removeprefix('p')}_{_PARAMETERS[parameter]}"
            stage = int(which) + 3
            blob = f"res{stage}_{last[stage]}_sum"
            if kind == "layer_blocks":
                return f"fpn_{blob}_{_PARAMETERS[parameter]}"
            # The coarsest level starts the way down, so nothing comes to it from the side.
            return f"fpn_inner_{blob}{'' if stage == 5 else '_lateral'}_{_PARAMETERS[parameter]}"
        if (head := head_part(ours)) and head.layer == 0:
            layer = "pred" if head.unit is None else f"conv_n{head.unit}"
            return f"retnet_{head.branch}_{layer}_fpn3_{_PARAMETERS[head.parameter]}"
        return None

    return name


def _affine(blob: str, parameter: str) -> str | None:
    return f"{blob}_bn_{_AFFINE[parameter]}" if parameter in _AFFINE else None
