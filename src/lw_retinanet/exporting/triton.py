"""A model repository for NVIDIA's Triton Inference Server around an ONNX file."""

import re
from pathlib import Path
from typing import Any

from lw_retinanet.errors import OutputError
from lw_retinanet.exporting.onnx import OnnxRuntime
from lw_retinanet.files import write_text

MAX_BATCH = 8
_CONFIG, _MODEL = "config.pbtxt", Path("1") / "model.onnx"
_TYPES = {"images": "TYPE_FP32", "sizes_hw": "TYPE_INT64", "labels": "TYPE_INT64", "counts": "TYPE_INT64"}


class TritonRepository(OnnxRuntime):
    """A new folder with an ONNX file that gives boxes, and Triton's configuration. ONNX Runtime runs it here, too."""

    always_gives_boxes = True
    companions = ("config.pbtxt",)

    @classmethod
    def find(cls, path: Path) -> Path | None:
        """The ONNX file of a repository."""
        return path / _MODEL if (path / _CONFIG).is_file() else None

    @classmethod
    def place(cls, out: Path) -> Path:
        """The ONNX file in a folder that does not exist or is empty."""
        _model_name(out)
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} is {'not empty' if out.is_dir() else 'a file'}; name a new folder for the Triton model")
        return out / _MODEL

    @classmethod
    def complete(cls, out: Path, network: Any) -> None:
        """Write ``config.pbtxt``."""
        write_text(out / _CONFIG, config_text(_model_name(out), network))


def _model_name(folder: Path) -> str:
    """The folder's own name, which is what clients ask for."""
    name = folder.absolute().name
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise OutputError(f"{folder}: Triton names the model after its folder, so use letters, digits, '-', '_' and '.' only")
    return name


def config_text(name: str, network: Any) -> str:
    """``config.pbtxt`` for a network whose first axis is the batch.

    Args:
        name: Name of the model.
        network: ``onnx.ModelProto`` with the inputs and outputs of an :class:`~lw_retinanet.exporting.graph.ExportGraph`.
    """
    blocks = [f'name: "{name}"', 'backend: "onnxruntime"', f"max_batch_size: {MAX_BATCH}", "dynamic_batching { }"]
    for what, values in (("input", network.graph.input), ("output", network.graph.output)):
        entries = ",\n".join(_entry(value) for value in values)
        blocks.append(f"{what} [\n{entries}\n]")
    return "\n".join(blocks) + "\n"


def _entry(value: Any) -> str:
    dims = [dimension.dim_value if dimension.HasField("dim_value") else -1 for dimension in value.type.tensor_type.shape.dim[1:]]
    # Triton has no tensors without axes: one number for each image travels as (1,).
    shape = ", ".join(map(str, dims)) if dims else "1"
    reshape = "" if dims else ", reshape { shape: [ ] }"
    return f'  {{ name: "{value.name}", data_type: {_TYPES.get(value.name, "TYPE_FP32")}, dims: [ {shape} ]{reshape} }}'
