"""Where int8 hurts: the noise that it puts on each convolution's output."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lw_retinanet.files import write_text

Run = Callable[[Mapping[str, NDArray[Any]]], Sequence[NDArray[Any]]]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """One convolution.

    Args:
        layer: its name in the model; a number behind it where it runs on several levels.
        signal_to_noise: 10 log10 of the energy of its output in fp32 over that of the difference, decibels; all noise of earlier layers
            is in it. Infinite where nothing differs.
        is_kept: it was left out of the quantisation.
    """

    layer: str
    signal_to_noise: float
    is_kept: bool

    def as_dict(self) -> dict[str, Any]:
        finite = math.isfinite(self.signal_to_noise)
        return {"layer": self.layer, "signal_to_noise_db": round(self.signal_to_noise, 2) if finite else None, "is_kept": self.is_kept}


def layer_errors(
    reference: Run, quantised: Run, inputs: Iterable[Mapping[str, NDArray[Any]]], layers: Sequence[str], *, kept: Sequence[str]
) -> list[LayerError]:
    """Compare two networks layer by layer, the worst first.

    Args:
        reference: inputs -> outputs of each of ``layers``, in fp32.
        quantised: the same in int8.
        inputs: some pictures.
        layers: names.
        kept: those that were not quantised.
    """
    signal, noise = np.zeros(len(layers)), np.zeros(len(layers))
    for feeds in inputs:
        for place, (wanted, found) in enumerate(zip(reference(feeds), quantised(feeds), strict=True)):
            signal[place] += np.square(wanted, dtype=np.float64).sum()
            noise[place] += np.square(wanted.astype(np.float64) - found).sum()
    kept_layers = set(kept)
    rows = [
        LayerError(layer=layer, signal_to_noise=_decibels(signal[place], noise[place]), is_kept=layer in kept_layers)
        for place, layer in enumerate(layers)
    ]
    return sorted(rows, key=lambda row: row.signal_to_noise)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def write_table(rows: Sequence[LayerError], path: Path) -> None:
    """CSV: ``layer,signal_to_noise_db,is_kept``, the worst first; nothing in the middle column where there is no noise."""
    lines = ["layer,signal_to_noise_db,is_kept"]
    for row in rows:
        decibels = f"{row.signal_to_noise:.2f}" if math.isfinite(row.signal_to_noise) else ""
        lines.append(f"{row.layer},{decibels},{str(row.is_kept).lower()}")
    write_text(path, "\n".join(lines) + "\n")
