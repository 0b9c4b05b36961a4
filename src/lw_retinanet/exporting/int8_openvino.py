"""int8 for OpenVINO, by NNCF."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.extras import need, quiet
from lw_retinanet.exporting.openvino_file import EXTRA, conv_operations
from lw_retinanet.exporting.signal_stack import signal_stack_kept


class Inputs(Protocol):
    """What ranges are measured on, as :class:`~lw_retinanet.exporting.calibration.Calibration` is: inputs by name, picture by picture."""

    def __len__(self) -> int: ...

    def inputs(self, names: Sequence[str]) -> Iterator[dict[str, NDArray[np.float32]]]: ...


def quantise_openvino(model: Any, calibration: Inputs, *, keep: Sequence[str] = ()) -> Any:
    """Weights to int8 with a scale for each output channel, activations with one a tensor, biases corrected.

    Args:
        model: ``openvino.Model`` of a :class:`~lw_retinanet.exporting.raw_graph.RawGraph`; not changed.
        calibration: pictures that the ranges of the activations are taken from.
        keep: convolutions (:func:`~lw_retinanet.exporting.openvino_file.conv_operations`) that stay as they are.

    Raises:
        MissingExtraError: if ``nncf`` is not installed.
        ExportError: if NNCF fails.
    """
    nncf = need("nncf", extra=EXTRA, why="--precision int8")
    names = tuple(port.get_any_name() for port in model.inputs)
    with quiet(), signal_stack_kept():
        try:
            return nncf.quantize(
                model.clone(),
                nncf.Dataset(_Inputs(calibration, names)),
                subset_size=len(calibration),
                ignored_scope=nncf.IgnoredScope(names=list(keep)) if keep else None,
            )
        except (RuntimeError, ValueError) as error:
            raise ExportError(f"NNCF cannot quantise the network ({str(error).splitlines()[0][:200]})") from error


def layer_names(model: Any) -> list[str]:
    """Convolutions in the order in which they run."""
    return [operation.get_friendly_name() for operation in conv_operations(model)]


def tapped(model: Any, layers: Sequence[str]) -> Any:
    """A copy that gives the outputs of these convolutions instead of its own."""
    openvino = need("openvino", extra=EXTRA, why="comparing layers")
    copied = model.clone()
    found = {operation.get_friendly_name(): operation for operation in conv_operations(copied)}
    return openvino.Model([found[layer].output(0) for layer in layers], copied.get_parameters(), "layers")


class _Inputs:
    """May be gone through several times, as NNCF does."""

    def __init__(self, calibration: Inputs, names: Sequence[str]) -> None:
        self.calibration, self.names = calibration, names

    def __len__(self) -> int:
        return len(self.calibration)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        return self.calibration.inputs(self.names)
