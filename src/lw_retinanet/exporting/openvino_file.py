"""OpenVINO IR: writing the pair of files with the manifest in the XML, and running it."""

import hashlib
import html
import re
import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lw_retinanet.devices import uses_bf16
from lw_retinanet.errors import ExportError, InputError, OutputError, WeightsError
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.manifest import KEY, ExportPrecision, Manifest, opened, require_network, sealed
from lw_retinanet.exporting.signal_stack import signal_stack_kept
from lw_retinanet.exporting.tracing import trace

EXTRA = "openvino"
MAX_COMPILED = 8
_MANIFEST, _SEAL = "@lw_retinanet manifest@", "@lw_retinanet seal@"
_WRITTEN = re.compile(r'<manifest value="([^"]*)"\s*/>\s*<seal value="([^"]*)"\s*/>')


def make_openvino(graph: nn.Module) -> Any:
    """A graph module as ``openvino.Model``: dynamic batch, height and width; convolutions are called as the model's layers.

    Raises:
        MissingExtraError: if ``openvino`` is not installed.
        ExportError: if an operation cannot be converted.
    """
    openvino = need("openvino", extra=EXTRA, why="writing OpenVINO IR")
    program = trace(graph)
    try:
        with quiet():
            model = openvino.convert_model(program)
    except Exception as error:  # the converter's exceptions have no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ExportError(f"OpenVINO cannot convert the network ({reason[:200]})") from error
    for port, name in zip(model.outputs, graph.outputs, strict=True):  # type: ignore[arg-type]
        port.get_tensor().set_names({name})
    for port, name in zip(model.inputs, graph.inputs, strict=True):  # type: ignore[arg-type]
        port.get_tensor().set_names({name})
    _name_convolutions(model, graph)
    return model


def _name_convolutions(model: Any, graph: nn.Module) -> None:
    """Convolutions are found by their weights; one that runs on several levels gets a number."""
    layers = {
        module.weight.detach().numpy().tobytes(): name.removeprefix("network.")
        for name, module in graph.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    times: dict[str, int] = {}
    for operation in conv_operations(model):
        weights = operation.input_value(1).get_node()
        layer = layers.get(weights.data.tobytes()) if weights.get_type_name() == "Constant" else None
        if layer is not None:
            times[layer] = times.get(layer, 0) + 1
            operation.set_friendly_name(layer if times[layer] == 1 else f"{layer} ({times[layer]})")


def conv_operations(model: Any) -> list[Any]:
    """Every convolution, in the order in which they were traced."""
    found = [op for op in model.get_ordered_ops() if op.get_type_name() in ("Convolution", "GroupConvolution")]
    return sorted(found, key=_traced_number)


def _traced_number(operation: Any) -> int:
    # The converter calls them convolution, convolution_1, ..; a name of ours comes later and keeps the order it is in.
    number = re.match(r"convolution(?:_(\d+))?/", operation.get_friendly_name())
    return int(number[1] or 0) if number else 0


def write_network(model: Any, path: Path, *, half_weights: bool = False) -> None:
    """The XML with places for manifest and seal, and the weights beside it, ``.bin``.

    Raises:
        OutputError: if they cannot be written.
    """
    openvino = need("openvino", extra=EXTRA, why="writing OpenVINO IR")
    model.set_rt_info(_MANIFEST, [KEY, "manifest"])
    model.set_rt_info(_SEAL, [KEY, "seal"])
    try:
        with quiet():
            openvino.save_model(model, str(path), compress_to_fp16=half_weights)
    except RuntimeError as error:
        raise OutputError(f"{path.parent} cannot be written to ({_reason(error)}); check the folder and the free space") from error


def seal(path: Path, manifest: Manifest) -> Manifest:
    """Fill the manifest into the XML; returns it as written, with size and digest of the network."""
    text = path.read_text(encoding="utf-8")
    content, weights = text.encode(), path.with_suffix(".bin")
    digest = _digest(content, weights)
    manifest = manifest.model_copy(update={"network_bytes": len(content) + weights.stat().st_size, "network_sha256": digest})
    words, checksum = sealed(manifest)
    path.write_text(text.replace(_MANIFEST, html.escape(words)).replace(_SEAL, checksum), encoding="utf-8")
    return manifest


def read_manifest(path: Path) -> Manifest:
    """What :func:`seal` wrote, after a look at whether both files and the words are still the same.

    Raises:
        WeightsError: if a file or the metadata is missing, or anything was changed.
    """
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


class OpenVinoRuntime:
    """OpenVINO on the CPU; safe to call from several threads.

    A network is compiled for each of the first shapes of input that come, since OpenVINO is faster when it knows the shape; for what comes
    after those it is compiled once more, for any.

    Args:
        model: path of the XML, or an ``openvino.Model``.
        precision: ``bf16`` lets it compute so where the processor can; ``int8`` does that for what is not quantised where this is faster.
        max_compiled: shapes that get a network of their own; 0 for one network for all.

    Raises:
        WeightsError: if the files cannot be read.
        MissingExtraError: if ``openvino`` is not installed.
    """

    def __init__(self, model: Any, *, precision: ExportPrecision = "fp32", max_compiled: int = MAX_COMPILED) -> None:
        openvino = need("openvino", extra=EXTRA, why=f"running {model}" if isinstance(model, Path) else "running OpenVINO")
        self.path = model if isinstance(model, Path) else None
        self._core = openvino.Core()
        if isinstance(model, Path):
            try:
                model = self._core.read_model(str(model))
            except Exception as error:
                raise WeightsError(f"cannot read OpenVINO file {self.path}: {_reason(error)}; export it anew") from None
        self.model = model
        is_bf16 = precision == "bf16" or (precision == "int8" and uses_bf16("auto", torch.device("cpu")))
        self.precision: Literal["fp32", "bf16"] = "bf16" if is_bf16 else "fp32"  # of what is not quantised
        # Said in any case: on processors with bf16 OpenVINO would take it by itself.
        self._settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if is_bf16 else "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "NUM_STREAMS": 1,
        }
        self._max_compiled = max_compiled
        self._compiled: dict[tuple[int, ...] | None, Any] = {}
        self._lock = threading.Lock()
        self._requests = threading.local()
        self.inputs = tuple(port.get_any_name() for port in model.inputs)
        self.outputs = tuple(port.get_any_name() for port in model.outputs)

    def __call__(self, *inputs: Tensor) -> tuple[NDArray[Any], ...]:
        """Outputs in the order of the file.

        Raises:
            InputError: for a size that the file or the memory cannot take.
        """
        shape = tuple(inputs[0].shape)
        feeds = [np.ascontiguousarray(value.cpu().numpy()) for value in inputs]
        try:
            request = self._request(shape)
            request.infer(feeds, share_inputs=True)
            return tuple(np.array(request.get_output_tensor(place).data) for place in range(len(self.outputs)))
        except Exception as error:
            raise InputError(
                f"{self.path or 'the network'} cannot run an input of {shape}: {_reason(error)}; use other sizes or export anew"
            ) from None

    def _request(self, shape: tuple[int, ...]) -> Any:
        """Of this thread, for this shape or, where that has no network of its own, for any."""
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


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join((lines[-1] if lines else type(error).__name__).split())[:200]
