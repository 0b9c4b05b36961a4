"""ONNX: the graph with its manifest behind it, run by ONNX Runtime, in int8 by its static quantisation."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lw_retinanet.devices import Precision, known_device
from lw_retinanet.errors import ExportError, InputError, WeightsError, first_line
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.graph import IMAGES, SIZES, ExportGraph, trace
from lw_retinanet.exporting.manifest import KEY, SEAL_KEY, ExportPrecision, Manifest, opened, require_network, sealed
from lw_retinanet.exporting.target import CalibrationInputs, ExportedRuntime

OPSET = 18
_CPU = torch.device("cpu")
# The operators between convolutions. If they stayed in float, values would be converted to float and back.
_QUANTISED = ("Conv", "Relu", "Add", "MaxPool", "Resize")


class OnnxRuntime(ExportedRuntime):
    """ONNX Runtime; safe to call from several threads. Its networks are ``onnx.ModelProto``.

    Args:
        network: Path of a file, or a network.
        manifest: Of the file; None reads it from there.
        precision: ``fp32`` or ``int8``.
        device: The CPU, or a CUDA device.

    Raises:
        WeightsError: If the file is damaged, not from this program, or altered.
        InputError: For a device that this installation of ONNX Runtime does not serve.
        MissingExtraError: If ``onnxruntime`` is not installed.
    """

    kind = "onnx"
    suffix = ".onnx"
    extra = "onnx"
    features = frozenset({"int8", "symmetric", "end_to_end"})
    quantiser = "onnxruntime.quantization"

    def __init__(
        self, network: Any, manifest: Manifest | None = None, *, precision: ExportPrecision = "fp32", device: torch.device = _CPU
    ) -> None:
        self.path = network if isinstance(network, Path) else "the network"
        self.session = _session(str(network) if isinstance(network, Path) else network.SerializeToString(), self.path, device)
        if manifest is None:
            assert isinstance(network, Path)
            manifest = _read_manifest(network, self.session)
        super().__init__(network, manifest, precision=precision)
        self.inputs = tuple(value.name for value in self.session.get_inputs())

    def run(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        """See :class:`ExportedRuntime`."""
        feeds = {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in zip(self.inputs, inputs, strict=True)}
        try:
            return tuple(self.session.run(None, feeds))
        except Exception as error:
            shape = tuple(inputs[0].shape)
            raise InputError(f"{self.path} cannot run an input of {shape}: {_reason(error)}; use other sizes or export anew") from None

    @classmethod
    def make(cls, graph: ExportGraph) -> Any:
        """See :class:`ExportedRuntime`."""
        for package in ("onnx", "onnxscript"):
            need(package, extra=cls.extra, why="writing ONNX")
        program = trace(graph)
        try:
            with quiet(), torch.no_grad():
                made = torch.onnx.export(
                    program,
                    dynamo=True,
                    opset_version=OPSET,
                    verbose=False,
                    input_names=list(graph.inputs),
                    output_names=list(graph.outputs),
                )
                assert made is not None
                model = made.model_proto
        except torch.onnx.errors.OnnxExporterError as error:
            raise ExportError(f"the network has an operation that ONNX lacks ({first_line(error)[:200]})") from error
        _name_convolutions(model)
        _rename_axes(model, {IMAGES: ("batch", None, "height", "width"), SIZES: ("batch", None)})
        return model

    @classmethod
    def quantise(
        cls, network: Any, calibration: CalibrationInputs, *, keep: Sequence[str] = (), scratch: Path, symmetric: bool = False
    ) -> Any:
        """Into QuantizeLinear and DequantizeLinear pairs; decoding and NMS stay in float. See :class:`ExportedRuntime`.

        ``symmetric`` gives activations in int8 around zero and biases in float, the form that TensorRT takes. What comes from a ReLU then
        uses only half of the numbers.
        """
        onnx = need("onnx", extra=cls.extra, why="int8")
        quantization = need(cls.quantiser, extra=cls.extra, why="int8")
        path = scratch / "int8.onnx"
        try:
            with quiet():
                quantization.quantize_static(
                    _copied(network),
                    str(path),
                    _reader(quantization, calibration, [value.name for value in network.graph.input]),
                    quant_format=quantization.QuantFormat.QDQ,
                    op_types_to_quantize=list(_QUANTISED),
                    nodes_to_exclude=[*keep, *_behind_predictions(network)],
                    per_channel=True,
                    activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
                    weight_type=quantization.QuantType.QInt8,
                    calibrate_method=quantization.CalibrationMethod.MinMax,
                    calibration_cache_path=str(scratch / "ranges.json"),  # ranges do not depend on what is kept
                    extra_options={"CalibMovingAverage": True, "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
                )
                return onnx.load(str(path))
        except (RuntimeError, ValueError, TypeError) as error:
            raise ExportError(f"ONNX Runtime cannot quantise the network ({first_line(error)[:200]})") from error

    @classmethod
    def layers(cls, network: Any) -> list[str]:
        """See :class:`ExportedRuntime`."""
        return [node.name for node in _convolutions(network)]

    @classmethod
    def tapped(cls, network: Any, layers: Sequence[str]) -> Any:
        """See :class:`ExportedRuntime`."""
        onnx = need("onnx", extra=cls.extra, why="comparing layers")
        copied = _copied(network)
        outputs = {node.name: node.output[0] for node in _convolutions(network)}
        del copied.graph.output[:]
        for layer in layers:
            copied.graph.output.append(onnx.helper.make_tensor_value_info(outputs[layer], onnx.TensorProto.FLOAT, None))
        return copied

    @classmethod
    def write(cls, network: Any, path: Path, *, half_weights: bool = False) -> None:
        """See :class:`ExportedRuntime`."""
        del network.metadata_props[:]
        path.write_bytes(network.SerializeToString())

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Manifest:
        """Append the manifest, since protocol buffers may be put together from parts. See :class:`ExportedRuntime`."""
        onnx = need("onnx", extra=cls.extra, why="writing ONNX")
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

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        """See :class:`ExportedRuntime`."""
        if precision in ("bf16", "fp16"):
            raise InputError(f"{path} computes in the precision that it was exported in; use fp32, or for bf16 on a CPU export to OpenVINO")
        return cls(path, device=_CPU if device == "auto" else known_device(device))


def _session(model: str | bytes, path: Path | str, device: torch.device) -> Any:
    runtime = need("onnxruntime", extra=OnnxRuntime.extra, why=f"running {path}")
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    if provider is None:
        raise InputError(f"{path} cannot run on {device}; use the device cpu or cuda")
    missing = f"this onnxruntime has no CUDA, so {path} cannot run on {device}; install onnxruntime-gpu or use the device cpu"
    if provider not in runtime.get_available_providers():
        raise InputError(missing)
    wanted: Any = (provider, {"device_id": device.index or 0}) if device.type == "cuda" else provider
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = runtime.InferenceSession(model, options, providers=[wanted])
    except Exception as error:  # its exceptions have no common base
        raise WeightsError(f"cannot read ONNX file {path}: {_reason(error)}; export it anew") from None
    if provider not in session.get_providers():  # listed, but its libraries could not be loaded
        raise InputError(missing)
    return session


def _read_manifest(path: Path, session: Any) -> Manifest:
    metadata = session.get_modelmeta().custom_metadata_map
    manifest = opened(metadata.get(KEY), metadata.get(SEAL_KEY), where=path)
    with path.open("rb") as file:
        digest = hashlib.sha256(file.read(manifest.network_bytes)).hexdigest()
    require_network(manifest, digest, where=path)
    return manifest


def _convolutions(model: Any) -> list[Any]:
    """Every convolution in the order of the graph."""
    return [node for node in model.graph.node if node.op_type == "Conv"]


def _name_convolutions(model: Any) -> None:
    """Give each convolution the name of its layer, which that of its weights tells; one that runs on several levels gets a number."""
    times: dict[str, int] = {}
    for node in _convolutions(model):
        layer = node.input[1].removesuffix(".weight").removeprefix("network.")
        times[layer] = times.get(layer, 0) + 1
        node.name = layer if times[layer] == 1 else f"{layer} ({times[layer]})"


def _rename_axes(model: Any, axes: dict[str, tuple[str | None, ...]]) -> None:
    """Give the dynamic axes readable names; an axis of an output that is no axis of an input is called ``anchors``."""
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
    del model.graph.value_info[:]  # intermediate shapes use the old names; runtimes infer them


def _copied(model: Any) -> Any:
    copied = type(model)()
    copied.CopyFrom(model)
    return copied


def _behind_predictions(model: Any) -> list[str]:
    """Nodes that no convolution follows: arithmetic on boxes and scores."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    waiting = _convolutions(model)
    before = {node.name for node in waiting}
    while waiting:
        for name in waiting.pop().input:
            node = made_by.get(name)
            if node is not None and node.name not in before:
                before.add(node.name)
                waiting.append(node)
    return [node.name for node in model.graph.node if node.name not in before]


def _reader(quantization: Any, calibration: CalibrationInputs, names: Sequence[str]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        """ONNX Runtime checks for this base class."""

        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, Any]] = calibration.inputs(names)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    return Reader()


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
