"""The two forms that a network is exported to, behind one set of verbs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from lw_retinanet.exporting import int8_onnx, int8_openvino, onnx_file, openvino_file
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.layer_errors import Run
from lw_retinanet.exporting.manifest import ExportPrecision, Kind, Manifest
from lw_retinanet.exporting.runtimes import Runtime


@dataclass(frozen=True, kw_only=True)
class Backend:
    """How one form is made and run. A *network* is what ``make`` gives: ``onnx.ModelProto`` or ``openvino.Model``.

    Args:
        suffix: of the file.
        make: graph module -> network.
        write: network, path and whether weights are halved -> a file without manifest.
        seal: path and manifest -> the manifest as it is in the file now.
        open: path -> what runs the file, given its precision.
        run: network -> what runs it, given its precision, without a file.
        quantise: network, calibration, scratch folder, layers to keep -> network.
        inputs: names of a network's inputs.
        layers: names of a network's convolutions.
        tap: network and layers -> a network that gives their outputs.
        quantiser: package that ``quantise`` needs.
    """

    suffix: str
    make: Callable[[nn.Module], Any]
    write: Callable[[Any, Path, bool], None]
    seal: Callable[[Path, Manifest], Manifest]
    open: Callable[[Path, ExportPrecision], Runtime]
    run: Callable[[Any, ExportPrecision], Runtime]
    quantise: Callable[[Any, Calibration, Path, Sequence[str]], Any]
    inputs: Callable[[Any], tuple[str, ...]]
    layers: Callable[[Any], list[str]]
    tap: Callable[[Any, Sequence[str]], Any]
    quantiser: str

    def tapped_run(self, network: Any, layers: Sequence[str]) -> Run:
        """Inputs by name -> the outputs of these layers, with no rounding but the network's own."""
        runtime = self.run(self.tap(network, layers), "fp32")

        def run(feeds: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
            return runtime(*(torch.from_numpy(feeds[name]) for name in runtime.inputs))

        return run


def _quantise_onnx(network: Any, calibration: Calibration, scratch: Path, keep: Sequence[str], *, symmetric: bool = False) -> Any:
    path, ranges = scratch / "int8.onnx", scratch / "ranges.json"
    return int8_onnx.quantise_onnx(network, calibration, path, keep=keep, ranges=ranges, symmetric=symmetric)


BACKENDS: Mapping[Kind, Backend] = {
    "onnx": Backend(
        suffix=".onnx",
        make=onnx_file.make_onnx,
        write=lambda network, path, _: onnx_file.write_network(network, path),
        seal=onnx_file.seal,
        open=lambda path, _: onnx_file.OnnxRuntime(path),
        run=lambda network, _: onnx_file.OnnxRuntime(network.SerializeToString()),
        quantise=_quantise_onnx,
        inputs=lambda network: tuple(value.name for value in network.graph.input),
        layers=int8_onnx.layer_names,
        tap=int8_onnx.tapped,
        quantiser="onnxruntime.quantization",
    ),
    "openvino": Backend(
        suffix=".xml",
        make=openvino_file.make_openvino,
        write=lambda network, path, half: openvino_file.write_network(network, path, half_weights=half),
        seal=openvino_file.seal,
        open=lambda path, precision: openvino_file.OpenVinoRuntime(path, precision=precision),
        run=lambda network, precision: openvino_file.OpenVinoRuntime(network, precision=precision),
        quantise=lambda network, calibration, _, keep: int8_openvino.quantise_openvino(network, calibration, keep=keep),
        inputs=lambda network: tuple(port.get_any_name() for port in network.inputs),
        layers=int8_openvino.layer_names,
        tap=int8_openvino.tapped,
        quantiser="nncf",
    ),
}


def backend_of(kind: Kind, *, symmetric: bool = False) -> Backend:
    """The backend of a form.

    Args:
        kind: of file.
        symmetric: int8 for ONNX around zero; see :func:`~lw_retinanet.exporting.int8_onnx.quantise_onnx`.
    """
    backend = BACKENDS[kind]
    return replace(backend, quantise=partial(_quantise_onnx, symmetric=True)) if symmetric and kind == "onnx" else backend
