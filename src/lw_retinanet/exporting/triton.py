"""A model repository for NVIDIA's Triton Inference Server around an ONNX file."""

import re
from pathlib import Path
from typing import Any

from lw_retinanet.errors import OutputError
from lw_retinanet.files import write_text

MAX_BATCH = 8
_TYPES = {"images": "TYPE_FP32", "sizes_hw": "TYPE_INT64", "labels": "TYPE_INT64", "counts": "TYPE_INT64"}


def model_name(folder: Path) -> str:
    """The folder's own name, which is what clients ask for.

    Raises:
        OutputError: if Triton would not take it.
    """
    name = folder.absolute().name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise OutputError(f"--out {folder}: Triton calls the model as its folder, so use letters, digits, '-', '_' and '.' only")
    return name


def config_text(name: str, network: Any) -> str:
    """``config.pbtxt`` for a network whose first axis is the batch.

    Args:
        name: of the model.
        network: ``onnx.ModelProto`` with the inputs and outputs of :mod:`lw_retinanet.exporting.end_to_end` or ``raw_graph``.
    """
    blocks = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH}", "dynamic_batching { }"]
    for what, values in (("input", network.graph.input), ("output", network.graph.output)):
        entries = ",\n".join(_entry(value) for value in values)
        blocks.append(f"{what} [\n{entries}\n]")
    return "\n".join(blocks) + "\n"


def _entry(value: Any) -> str:
    dims = [dimension.dim_value if dimension.HasField("dim_value") else -1 for dimension in value.type.tensor_type.shape.dim[1:]]
    # Triton has no tensors without axes: one number an image travels as (1,).
    shape = ", ".join(map(str, dims)) if dims else "1"
    reshape = "" if dims else ", reshape { shape: [ ] }"
    return f'  {{ name: "{value.name}", data_type: {_TYPES.get(value.name, "TYPE_FP32")}, dims: [ {shape} ]{reshape} }}'


def write_config(folder: Path, network: Any) -> None:
    """Write ``config.pbtxt`` into a model's folder."""
    write_text(folder / "config.pbtxt", config_text(model_name(folder), network))
