"""int8 until the gate is passed: all convolutions first, then the predictions left alone, then the worst layers too."""

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.errors import ExportError
from lw_retinanet.exporting.backend import Backend
from lw_retinanet.exporting.calibration import Calibration
from lw_retinanet.exporting.gate import Accuracy, Gate
from lw_retinanet.exporting.layer_errors import LayerError, layer_errors
from lw_retinanet.exporting.manifest import Manifest
from lw_retinanet.exporting.runtimes import exported_detector

NUM_PICTURES = 4  # for the table of layers: errors are means over 10^5 cells and more each
WORST_SHARE = 0.1  # of the layers, in the last attempt
NUM_NAMED = 5
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One quantisation.

    Args:
        what: was kept in higher precision, for people.
        kept: these layers.
        network: quantised.
        accuracy: of it.
        errors: of its layers, the worst first.
    """

    what: str
    kept: tuple[str, ...]
    network: Any
    accuracy: Accuracy
    errors: tuple[LayerError, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"kept": self.what, "num_kept": len(self.kept), "accuracy": self.accuracy.as_dict()}


def quantise(
    network: Any, backend: Backend, calibration: Calibration, gate: Gate, manifest: Manifest, *, allow_drop: bool
) -> tuple[Attempt, list[Attempt]]:
    """Quantise, measure, and give way layer by layer while the gate refuses.

    Args:
        network: in fp32.
        backend: that made it.
        calibration: pictures for the ranges.
        gate: that has scored the fp32 network.
        manifest: of the file to come, for the detector that is measured.
        allow_drop: take the first attempt, whatever it costs.

    Returns:
        What passed, or was allowed to, and all attempts in order.

    Raises:
        ExportError: if none passes.
    """
    attempts: list[Attempt] = []
    with tempfile.TemporaryDirectory() as scratch:
        for what, kept in _plans(backend.layers(network), attempts):
            log.info("int8: calibration on %d pictures, %s", len(calibration), what)
            quantised = backend.quantise(network, calibration, Path(scratch), kept)
            accuracy = gate.measure(exported_detector(backend.run(quantised, "int8"), manifest, name="int8"))
            errors = _errors(network, quantised, backend, calibration, kept)
            attempts.append(Attempt(what=what, kept=kept, network=quantised, accuracy=accuracy, errors=tuple(errors)))
            log.info("int8, %s: %s", what, accuracy.line())
            if accuracy.passes or allow_drop:
                return attempts[-1], attempts
    best = max(attempts, key=lambda attempt: attempt.accuracy.after)
    raise ExportError(
        f"int8 loses more AP than it may, nothing was written: {best.accuracy.line()} ({best.what}, the best of {len(attempts)} attempts); "
        f"worst layers: {', '.join(worst_names(attempts[0].errors))}; give more or other --calibrate pictures, raise --max-drop, "
        "or take it as it is with --allow-drop"
    )


def worst_names(errors: Sequence[LayerError]) -> list[str]:
    """Layers with the most noise, and how much."""
    return [f"{row.layer} ({row.signal_to_noise:.1f} dB)" for row in errors if not row.is_kept][:NUM_NAMED]


def _plans(layers: Sequence[str], attempts: Sequence[Attempt]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What to leave alone, one after the other; the last looks at what came before."""
    yield "all convolutions quantised", ()
    predictions = tuple(layer for layer in layers if "predict" in layer)
    yield "prediction convolutions not quantised", predictions
    others = [row.layer for row in attempts[0].errors if row.layer not in predictions]
    worst = others[: max(1, round(WORST_SHARE * len(layers)))]
    yield f"prediction convolutions and the {len(worst)} worst layers not quantised", (*predictions, *worst)


def _errors(network: Any, quantised: Any, backend: Backend, calibration: Calibration, kept: Sequence[str]) -> list[LayerError]:
    layers = backend.layers(network)
    before, after = (backend.tapped_run(each, layers) for each in (network, quantised))
    return layer_errors(before, after, calibration.inputs(backend.inputs(network), count=NUM_PICTURES), layers, kept=kept)
