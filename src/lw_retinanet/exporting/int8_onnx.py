"""int8 for ONNX, by ONNX Runtime's static quantisation into QuantizeLinear and DequantizeLinear pairs."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.onnx_file import EXTRA, conv_nodes

# What stands between the convolutions. In between, values would go to float and back.
_QUANTISED = ("Conv", "Relu", "Add", "MaxPool", "Resize")


def quantise_onnx(
    model: Any,
    calibration: Calibration,
    path: Path,
    *,
    keep: Sequence[str] = (),
    ranges: Path | None = None,
    symmetric: bool = False,
) -> Any:
    """Weights to int8 with a scale for each output channel, activations to uint8 with one a tensor. What comes behind the predictions
    (decoding, NMS) stays in float.

    Args:
        model: ``onnx.ModelProto``; not changed.
        calibration: pictures that the ranges of the activations are taken from.
        path: of the file to write.
        keep: convolutions (:func:`~lw_retinanet.exporting.onnx_file.conv_nodes`) that stay as they are.
        ranges: where measured ranges are kept and, if they are there, read: they do not depend on ``keep``.
        symmetric: activations to int8 around zero and biases in float, the form that TensorRT takes. What comes from a ReLU then uses half
            of the numbers.

    Returns:
        The quantised ``onnx.ModelProto``.

    Raises:
        MissingExtraError: if ``onnx`` or ``onnxruntime`` is not installed.
        ExportError: if the quantisation fails.
    """
    onnx = need("onnx", extra=EXTRA, why="--precision int8")
    quantization = need("onnxruntime.quantization", extra=EXTRA, why="--precision int8")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        with quiet():
            quantization.quantize_static(
                copied,
                str(path),
                _reader(quantization, calibration, [value.name for value in model.graph.input]),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=list(_QUANTISED),
                nodes_to_exclude=[*keep, *_behind_predictions(model)],
                per_channel=True,
                activation_type=quantization.QuantType.QInt8 if symmetric else quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
                calibration_cache_path=str(ranges) if ranges else None,
                extra_options={"CalibMovingAverage": True, "ActivationSymmetric": symmetric, "QuantizeBias": not symmetric},
            )
            return onnx.load(str(path))
    except (RuntimeError, ValueError, TypeError) as error:
        raise ExportError(f"ONNX Runtime cannot quantise the network ({str(error).splitlines()[0][:200]})") from error


def layer_names(model: Any) -> list[str]:
    """Convolutions in the order in which they run."""
    return [node.name for node in conv_nodes(model)]


def tapped(model: Any, layers: Sequence[str]) -> Any:
    """A copy that gives the outputs of these convolutions instead of its own."""
    onnx = need("onnx", extra=EXTRA, why="comparing layers")
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    outputs = {node.name: node.output[0] for node in conv_nodes(model)}
    del copied.graph.output[:]
    for layer in layers:
        copied.graph.output.append(onnx.helper.make_tensor_value_info(outputs[layer], onnx.TensorProto.FLOAT, None))
    return copied


def _behind_predictions(model: Any) -> list[str]:
    """Nodes that no convolution follows: arithmetic on boxes and scores."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    waiting = [node for node in model.graph.node if node.op_type == "Conv"]
    before = {node.name for node in waiting}
    while waiting:
        for name in waiting.pop().input:
            node = made_by.get(name)
            if node is not None and node.name not in before:
                before.add(node.name)
                waiting.append(node)
    return [node.name for node in model.graph.node if node.name not in before]


def _reader(quantization: Any, calibration: Calibration, names: Sequence[str]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        """ONNX Runtime looks at the class."""

        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, Any]] = calibration.inputs(names)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.inputs, None)

    return Reader()
