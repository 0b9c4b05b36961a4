"""OpenVINO IR: a pair of files with the manifest in the XML, run by OpenVINO, in int8 by NNCF."""

import hashlib
import html
import re
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.detection.precision import choose_precision
from lw_retinanet.devices import Precision
from lw_retinanet.errors import ExportError, InputError, OutputError, WeightsError, first_line
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.graph import ExportGraph, trace
from lw_retinanet.exporting.manifest import KEY, ExportPrecision, Manifest, opened, require_network, sealed
from lw_retinanet.exporting.signal_stack import signal_stack_kept
from lw_retinanet.exporting.target import CalibrationInputs, ExportedRuntime

MAX_COMPILED = 8
_MANIFEST, _SEAL = "@lw_retinanet manifest@", "@lw_retinanet seal@"
_WRITTEN = re.compile(r'<manifest value="([^"]*)"\s*/>\s*<seal value="([^"]*)"\s*/>')


class OpenVinoRuntime(ExportedRuntime):
    """OpenVINO on the CPU; safe to call from several threads. Its networks are ``openvino.Model``.

    A network is compiled for each of the first input shapes, since OpenVINO is faster when it knows the shape. All later shapes share one
    that is compiled for any shape.

    Args:
        network: Path of the XML, or a network.
        manifest: Of the file; None reads it from there.
        precision: ``bf16`` lets it compute so where the processor can; ``int8`` does that for what is not quantised, where it is faster.
        max_compiled: Shapes that get a network of their own.

    Raises:
        WeightsError: If a file is missing or damaged, not from this program, or altered.
        MissingExtraError: If ``openvino`` is not installed.
    """

    kind = "openvino"
    suffix = ".xml"
    weights_suffix = ".bin"
    extra = "openvino"
    features = frozenset({"bf16", "int8", "half_weights"})
    quantiser = "nncf"

    def __init__(
        self,
        network: Any,
        manifest: Manifest | None = None,
        *,
        precision: ExportPrecision = "fp32",
        max_compiled: int = MAX_COMPILED,
    ) -> None:
        path = network if isinstance(network, Path) else None
        openvino = need("openvino", extra=self.extra, why=f"running {path}" if path else "running OpenVINO")
        if manifest is None:
            assert path is not None
            manifest = _read_manifest(path)
        is_bf16 = choose_precision("auto" if precision == "int8" else precision, torch.device("cpu"), "inference") == "bf16"
        super().__init__(network, manifest, precision="bf16" if is_bf16 else "fp32")
        self.path = path
        self._core = openvino.Core()
        if path:
            try:
                network = self._core.read_model(str(path))
            except Exception as error:
                raise WeightsError(f"cannot read OpenVINO file {path}: {_reason(error)}; export it anew") from None
        self.model = network
        # The precision is always set: on processors with bf16, OpenVINO would choose it by itself.
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self._max_compiled = 0 if _crashes_for_one_shape(network) else max_compiled
        self._compiled: dict[tuple[int, ...] | None, Any] = {}
        self._lock = threading.Lock()
        self._requests = threading.local()
        self.inputs = tuple(port.get_any_name() for port in network.inputs)

    def run(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        """See :class:`ExportedRuntime`."""
        shape = tuple(inputs[0].shape)
        feeds = [np.ascontiguousarray(value.cpu().numpy()) for value in inputs]
        try:
            request = self._request(shape)
            request.infer(feeds, share_inputs=True)
            return tuple(np.array(request.get_output_tensor(place).data) for place in range(len(self.model.outputs)))
        except Exception as error:
            raise InputError(
                f"{self.path or 'the network'} cannot run an input of {shape}: {_reason(error)}; use other sizes or export anew"
            ) from None

    def _request(self, shape: tuple[int, ...]) -> Any:
        """This thread's request for this shape, or for any shape where it has no network of its own."""
        requests: dict[tuple[int, ...] | None, Any] = self._requests.__dict__.setdefault("by_shape", {})
        if shape in requests:
            return requests[shape]
        with self._lock:
            known = shape if shape in self._compiled or len(self._compiled) < self._max_compiled else None
            if known not in self._compiled:
                self._compiled[known] = self._compile(known)
            compiled = self._compiled[known]
        if known not in requests:  # a request holds on to its tensors, so shapes without a network share one
            requests[known] = compiled.create_infer_request()
        return requests[known]

    def _compile(self, shape: tuple[int, ...] | None) -> Any:
        model = self.model
        if shape is not None:
            model = model.clone()
            model.reshape({model.inputs[0]: list(shape)})
        with signal_stack_kept():
            return self._core.compile_model(model, "CPU", self._settings)

    @classmethod
    def make(cls, graph: ExportGraph) -> Any:
        """See :class:`ExportedRuntime`."""
        openvino = need("openvino", extra=cls.extra, why="writing OpenVINO IR")
        program = trace(graph)
        try:
            with quiet():
                model = openvino.convert_model(program)
        except Exception as error:  # the converter's exceptions have no common base
            reason = first_line(error)
            raise ExportError(f"OpenVINO cannot convert the network ({reason[:200]})") from error
        for ports, names in ((model.outputs, graph.outputs), (model.inputs, graph.inputs)):
            for port, name in zip(ports, names, strict=True):
                port.get_tensor().set_names({name})
        _name_convolutions(model, graph)
        return model

    @classmethod
    def quantise(
        cls, network: Any, calibration: CalibrationInputs, *, keep: Sequence[str] = (), scratch: Path | None = None, symmetric: bool = False
    ) -> Any:
        """With corrected biases. See :class:`ExportedRuntime`."""
        nncf = need(cls.quantiser, extra=cls.extra, why="int8")
        names = tuple(port.get_any_name() for port in network.inputs)
        with quiet(), signal_stack_kept():
            try:
                return nncf.quantize(
                    network.clone(),
                    nncf.Dataset(_Repeatable(calibration, names)),
                    subset_size=len(calibration),
                    ignored_scope=nncf.IgnoredScope(names=list(keep)) if keep else None,
                )
            except (RuntimeError, ValueError) as error:
                raise ExportError(f"NNCF cannot quantise the network ({first_line(error)[:200]})") from error

    @classmethod
    def layers(cls, network: Any) -> list[str]:
        """See :class:`ExportedRuntime`."""
        return [operation.get_friendly_name() for operation in _convolutions(network)]

    @classmethod
    def tapped(cls, network: Any, layers: Sequence[str]) -> Any:
        """See :class:`ExportedRuntime`."""
        openvino = need("openvino", extra=cls.extra, why="comparing layers")
        copied = network.clone()
        found = {operation.get_friendly_name(): operation for operation in _convolutions(copied)}
        return openvino.Model([found[layer].output(0) for layer in layers], copied.get_parameters(), "layers")

    @classmethod
    def write(cls, network: Any, path: Path, *, half_weights: bool = False) -> None:
        """The XML, with places for manifest and seal, and the weights beside it. See :class:`ExportedRuntime`."""
        openvino = need("openvino", extra=cls.extra, why="writing OpenVINO IR")
        network.set_rt_info(_MANIFEST, [KEY, "manifest"])
        network.set_rt_info(_SEAL, [KEY, "seal"])
        try:
            with quiet():
                openvino.save_model(network, str(path), compress_to_fp16=half_weights)
        except RuntimeError as error:
            raise OutputError(f"{path.parent} cannot be written to ({_reason(error)}); check the folder and the free space") from error

    @classmethod
    def seal(cls, path: Path, manifest: Manifest) -> Manifest:
        """Fill the manifest into the XML. See :class:`ExportedRuntime`."""
        text = path.read_text(encoding="utf-8")
        content, weights = text.encode(), path.with_suffix(".bin")
        digest = _digest(content, weights)
        manifest = manifest.model_copy(update={"network_bytes": len(content) + weights.stat().st_size, "network_sha256": digest})
        words, checksum = sealed(manifest)
        path.write_text(text.replace(_MANIFEST, html.escape(words)).replace(_SEAL, checksum), encoding="utf-8")
        return manifest

    @classmethod
    def open(cls, path: Path, *, device: str = "auto", precision: Precision = "fp32") -> Self:
        """``auto`` precision is bf16 where that is faster, and a file in int8 has its own. See :class:`ExportedRuntime`."""
        if device not in ("auto", "cpu"):
            raise InputError(f"{path} runs on the CPU only; use the device cpu, or export to ONNX for {device}")
        manifest = _read_manifest(path)
        if manifest.precision == "int8":
            return cls(path, manifest, precision="int8")
        wanted: Precision = "bf16" if "bf16" in (precision, manifest.precision) else precision
        is_bf16 = choose_precision(wanted, torch.device("cpu"), "inference") == "bf16"
        return cls(path, manifest, precision="bf16" if is_bf16 else "fp32")


def _crashes_for_one_shape(network: Any) -> bool:
    """Whether a group norm's output is added to something.

    Compiling such a network for one shape ends the process with a segmentation fault (OpenVINO 2026.4); for any shape it works.
    """
    norms = (operation for operation in network.get_ops() if operation.get_type_name() == "GroupNormalization")
    return any(port.get_node().get_type_name() == "Add" for norm in norms for port in norm.output(0).get_target_inputs())


def _read_manifest(path: Path) -> Manifest:
    weights = path.with_suffix(".bin")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise WeightsError(f"cannot read OpenVINO file {path}: {reason}; export it anew") from None
    if not weights.is_file():
        raise WeightsError(f"{path} has no weights beside it ({weights.name}); copy both files")
    found = _WRITTEN.search(text)
    manifest = opened(html.unescape(found[1]) if found else None, found[2] if found else None, where=path)
    assert found
    bare = text[: found.start(1)] + _MANIFEST + text[found.end(1) : found.start(2)] + _SEAL + text[found.end(2) :]
    require_network(manifest, _digest(bare.encode(), weights), where=path)
    return manifest


def _digest(content: bytes, weights: Path) -> str:
    with weights.open("rb") as file:
        both = hashlib.sha256(content)
        while block := file.read(1 << 24):
            both.update(block)
    return both.hexdigest()


def _convolutions(model: Any) -> list[Any]:
    """Every convolution, in the order in which they were traced."""
    found = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]
    return sorted(found, key=_traced_number)


def _traced_number(operation: Any) -> int:
    # The converter calls them convolution, convolution_1, ..; once they have our names, sorting keeps their order.
    number = re.match(r"convolution(?:_(\d+))?/", operation.get_friendly_name())
    return int(number[1] or 0) if number else 0


def _name_convolutions(model: Any, graph: nn.Module) -> None:
    """Give each convolution the name of the layer that has its weights; one that runs on several levels gets a number."""
    layers = {
        module.weight.detach().numpy().tobytes(): name.removeprefix("network.")
        for name, module in graph.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    times: dict[str, int] = {}
    for operation in _convolutions(model):
        weights = operation.input_value(1).get_node()
        layer = layers.get(weights.data.tobytes()) if weights.get_type_name() == "Constant" else None
        if layer is not None:
            times[layer] = times.get(layer, 0) + 1
            operation.set_friendly_name(layer if times[layer] == 1 else f"{layer} ({times[layer]})")


class _Repeatable:
    """Calibration inputs that can be iterated over several times, as NNCF does."""

    def __init__(self, calibration: CalibrationInputs, names: Sequence[str]) -> None:
        self.calibration, self.names = calibration, names

    def __len__(self) -> int:
        return len(self.calibration)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return self.calibration.inputs(self.names)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[-1] if lines else type(error).__name__).split())[:200]
