"""int8 until the gate is passed: first with all convolutions, then without the predictions, then without the worst layers too."""

import logging
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.gate import Accuracy, Gate
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.exporting.opening import exported_detector
from lw_retinanet.exporting.target import ExportedRuntime
from lw_retinanet.files import write_text

NUM_IMAGES = 4  # for the errors of layers, which are means over 10^5 cells and more in each image
WORST_SHARE = 0.1  # of the layers, in the last attempt
NUM_NAMED = 5
log = logging.getLogger(__name__)

LayerRun = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]
"""Values of a network's inputs, by name -> outputs of its layers."""


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """The noise that int8 adds to the output of one convolution.

    Args:
        layer: Its name in the model; with a number behind it if it runs on several levels.
        signal_to_noise: 10 log10 of the energy of its fp32 output over that of the difference, decibels. It includes the noise of all
            earlier layers. Infinite where nothing differs.
        is_kept: Whether it was left out of the quantisation.
    """

    layer: str
    signal_to_noise: float
    is_kept: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        finite = math.isfinite(self.signal_to_noise)
        return {"layer": self.layer, "signal_to_noise_db": round(self.signal_to_noise, 2) if finite else None, "is_kept": self.is_kept}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One quantisation.

    Args:
        what: Which layers were kept in higher precision, for people.
        kept: These layers.
        network: The int8 network.
        accuracy: What it costs.
        errors: Errors of its layers, the worst first.
    """

    what: str
    kept: tuple[str, ...]
    network: Any
    accuracy: Accuracy
    errors: tuple[LayerError, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"kept": self.what, "num_kept": len(self.kept), "accuracy": self.accuracy.as_dict()}


def quantise_through_gate(
    network: Any,
    target: type[ExportedRuntime],
    calibration: Calibration,
    gate: Gate,
    manifest: Manifest,
    *,
    allow_drop: bool,
    symmetric: bool = False,
) -> list[Attempt]:
    """Quantise and measure, keeping more and more layers in higher precision until the gate is passed.

    Args:
        network: The fp32 network.
        target: The target that made it.
        calibration: Images for the ranges.
        gate: The gate, which has scored the fp32 network.
        manifest: Of the file to be written.
        allow_drop: Take the first attempt, whatever it costs.
        symmetric: See :meth:`ExportedRuntime.quantise`.

    Returns:
        All attempts in order. The last one passed, or was allowed to.

    Raises:
        ExportError: If none passes.
    """
    attempts: list[Attempt] = []
    layers = target.layers(network)
    with tempfile.TemporaryDirectory() as scratch:
        for what, kept in _plans(layers, attempts):
            log.info("int8: calibration on %d images, %s", len(calibration), what)
            quantised = target.quantise(network, calibration, keep=kept, scratch=Path(scratch), symmetric=symmetric)
            runtime = target(quantised, manifest, precision="int8")
            accuracy = gate.measure(exported_detector(runtime, name="int8"))
            reference, rounded = (_layer_run(target(target.tapped(each, layers), manifest)) for each in (network, quantised))
            errors = layer_errors(reference, rounded, calibration.inputs(runtime.inputs, count=NUM_IMAGES), layers, kept=kept)
            attempts.append(Attempt(what=what, kept=kept, network=quantised, accuracy=accuracy, errors=tuple(errors)))
            log.info("int8, %s: %s", what, accuracy.line())
            if accuracy.passes or allow_drop:
                return attempts
    best = max(attempts, key=lambda attempt: attempt.accuracy.after)
    raise ExportError(
        f"int8 loses more AP than it may, nothing was written: {best.accuracy.line()} ({best.what}, the best of {len(attempts)} attempts); "
        f"worst layers: {', '.join(worst_names(attempts[0].errors))}; give more or other calibration images, allow a larger drop "
        "(max_drop), or accept any drop (allow_drop)"
    )


def worst_names(errors: Sequence[LayerError]) -> list[str]:
    """Layers with the most noise, and how much."""
    return [f"{row.layer} ({row.signal_to_noise:.1f} dB)" for row in errors if not row.is_kept][:NUM_NAMED]


def _plans(layers: Sequence[str], attempts: Sequence[Attempt]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Which layers to keep, one set after the other; the last one depends on the errors of the first attempt."""
    yield "all convolutions quantised", ()
    predictions = tuple(layer for layer in layers if "predict" in layer)
    yield "prediction convolutions not quantised", predictions
    others = [row.layer for row in attempts[0].errors if row.layer not in predictions]
    worst = others[: max(1, round(WORST_SHARE * len(layers)))]
    yield f"prediction convolutions and the {len(worst)} worst layers not quantised", (*predictions, *worst)


def _layer_run(runtime: ExportedRuntime) -> LayerRun:
    return lambda feeds: runtime.run(*(torch.from_numpy(feeds[name]) for name in runtime.inputs))


def layer_errors(
    reference: LayerRun, quantised: LayerRun, inputs: Iterable[Mapping[str, NDArray[Any]]], layers: Sequence[str], *, kept: Sequence[str]
) -> list[LayerError]:
    """Compare two networks layer by layer, the worst first.

    Args:
        reference: The fp32 network.
        quantised: The int8 network.
        inputs: Values of the inputs, for a few images.
        layers: Names of the layers.
        kept: Those that were not quantised.
    """
    signal, noise = np.zeros(len(layers)), np.zeros(len(layers))
    for feeds in inputs:
        for place, (wanted, found) in enumerate(zip(reference(feeds), quantised(feeds), strict=True)):
            signal[place] += np.square(wanted, dtype=np.float64).sum()
            noise[place] += np.square(wanted.astype(np.float64) - found).sum()
    rows = [
        LayerError(layer=layer, signal_to_noise=_decibels(signal[place], noise[place]), is_kept=layer in kept)
        for place, layer in enumerate(layers)
    ]
    return sorted(rows, key=lambda row: row.signal_to_noise)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def write_layer_errors(rows: Sequence[LayerError], path: Path) -> None:
    """CSV: ``layer,signal_to_noise_db,is_kept``, the worst first; the middle column is empty where there is no noise."""
    lines = ["layer,signal_to_noise_db,is_kept"]
    for row in rows:
        decibels = f"{row.signal_to_noise:.2f}" if math.isfinite(row.signal_to_noise) else ""
        lines.append(f"{row.layer},{decibels},{str(row.is_kept).lower()}")
    write_text(path, "\n".join(lines) + "\n")
