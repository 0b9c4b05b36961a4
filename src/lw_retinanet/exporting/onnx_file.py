"""ONNX: writing the graph with its manifest behind it, and running it with ONNX Runtime."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.errors import ExportError, InputError, WeightsError
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.manifest import KEY, SEAL_KEY, Manifest, opened, require_network, sealed
from lw_retinanet.exporting.tracing import trace

OPSET = 18
EXTRA = "onnx"
CPU = torch.device("cpu")


def make_onnx(graph: nn.Module) -> Any:
    """A graph module as ``onnx.ModelProto``: dynamic batch, height and width; inputs and outputs carry the module's names.

    Raises:
        MissingExtraError: if ``onnx`` or ``onnxscript`` is not installed.
        ExportError: if an operator has no counterpart in ONNX.
    """
    for package in ("onnx", "onnxscript"):
        need(package, extra=EXTRA, why="writing ONNX")
    program = trace(graph)
    names = {"input_names": list(graph.inputs), "output_names": list(graph.outputs)}  # type: ignore[arg-type]
    try:
        with quiet(), torch.no_grad():
            made = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False, **names)  # type: ignore[arg-type]
            assert made is not None
            model = made.model_proto
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the network has an operation that ONNX lacks ({str(error).splitlines()[0][:200]})") from error
    _name_convolutions(model)
    _rename_axes(model, {"images": ("batch", None, "height", "width"), "sizes_hw": ("batch", None)})
    return model


def _name_convolutions(model: Any) -> None:
    """The name of a layer's weights is that of the layer; one that runs on several levels gets a number."""
    times: dict[str, int] = {}
    for node in conv_nodes(model):
        layer = node.input[1].removesuffix(".weight").removeprefix("network.")
        times[layer] = times.get(layer, 0) + 1
        node.name = layer if times[layer] == 1 else f"{layer} ({times[layer]})"


def _rename_axes(model: Any, axes: dict[str, tuple[str | None, ...]]) -> None:
    """Readable names for the free axes of the inputs; of outputs those that are no whole axis of an input lose theirs."""
    old: dict[str, str] = {}
    for value in model.graph.input:
        for dimension, name in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if name is not None and dimension.dim_param:
                old[dimension.dim_param] = name
                dimension.dim_param = name
    for value in model.graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = old.get(dimension.dim_param, "anchors")
    del model.graph.value_info[:]  # intermediate shapes in the old names; runtimes infer them


def write_network(model: Any, path: Path) -> None:
    """The network without metadata: what :func:`seal` closes."""
    del model.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def seal(path: Path, manifest: Manifest) -> Manifest:
    """Put the manifest behind the network. Protocol buffers may be put together from parts, so it is simply appended.

    Returns:
        The manifest as written, with size and digest of the network.
    """
    onnx = need("onnx", extra=EXTRA, why="writing ONNX")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest = manifest.model_copy(update={"network_bytes": len(content), "network_sha256": digest})
    text, checksum = sealed(manifest)
    tail = onnx.ModelProto()
    for key, value in ((KEY, text), (SEAL_KEY, checksum)):
        tail.metadata_props.add(key=key, value=value)
    with path.open("ab") as file:
        file.write(tail.SerializeToString())
    return manifest


class OnnxRuntime:
    """ONNX Runtime over one file; safe to call from several threads.

    Args:
        model: path of a file, or its content.
        device: ``cpu``, or a CUDA device by number.

    Raises:
        WeightsError: if it is no whole ONNX file.
        InputError: for a device that this installation of ONNX Runtime does not serve.
        MissingExtraError: if ``onnxruntime`` is not installed.
    """

    def __init__(self, model: Path | bytes, *, device: torch.device = CPU) -> None:
        path = model if isinstance(model, Path) else "the network"
        runtime = need("onnxruntime", extra=EXTRA, why=f"running {path}")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
        if provider is None:
            raise InputError(f"{path} cannot run on {device}; use --device cpu or cuda")
        missing = f"this onnxruntime has no CUDA, so {path} cannot run on {device}; install onnxruntime-gpu or use --device cpu"
        if provider not in runtime.get_available_providers():
            raise InputError(missing)
        wanted: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
        options = runtime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = runtime.InferenceSession(str(model) if isinstance(model, Path) else model, options, providers=[wanted])
        except Exception as error:  # its exceptions have no common base
            raise WeightsError(f"cannot read ONNX file {path}: {_reason(error)}; export it anew") from None
        if provider not in self.session.get_providers():  # listed, but its libraries could not be loaded
            raise InputError(missing)
        self.path = path
        self.inputs = tuple(value.name for value in self.session.get_inputs())
        self.outputs = tuple(value.name for value in self.session.get_outputs())

    def __call__(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        """Outputs in the order of the file.

        Raises:
            InputError: for a size that the file or the memory cannot take.
        """
        feeds = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in zip(self.inputs, inputs, strict=True)}
        try:
            return tuple(self.session.run(None, feeds))
        except Exception as error:
            shape = tuple(inputs[0].shape)
            raise InputError(f"{self.path} cannot run an input of {shape}: {_reason(error)}; use other sizes or export anew") from None


def read_manifest(path: Path, runtime: OnnxRuntime) -> Manifest:
    """What :func:`seal` wrote, after a look at whether file and words are still the same.

    Raises:
        WeightsError: if the metadata is missing or anything was changed.
    """
    metadata = runtime.session.get_modelmeta().custom_metadata_map
    manifest = opened(metadata.get(KEY), metadata.get(SEAL_KEY), where=path)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(manifest.network_bytes)).hexdigest()
    require_network(manifest, digest, where=path)
    return manifest


def conv_nodes(model: Any) -> list[Any]:
    """Every convolution in the order of the graph; :func:`make_onnx` calls them as the model's layers."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
