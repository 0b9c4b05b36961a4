"""The figure of a run: losses, learning rate and AP over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lw_retinanet.errors import InputError
from lw_retinanet.files import replacing
from lw_retinanet.training.run_folder import read_log

COLOURS = {"loss": "#0072B2", "classification": "#D55E00", "bbox_regression": "#009E73", "distillation": "#CC79A7"}
LABELS = {"loss": "total", "classification": "classification", "bbox_regression": "box", "distillation": "teacher"}


def save_curves(log_file: Path, path: Path, *, title: str) -> None:
    """Draw smoothed losses and the learning rate over the steps, with AP where it was measured.

    Args:
        log_file: Log of a run that has done at least one step.
        path: Image file to write; its ending decides the format.
        title: Title above the figure.

    Raises:
        InputError: if no step was logged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_log(log_file)
    steps = [entry for entry in entries if all(_is_number(entry.get(key)) for key in ("loss", "classification", "bbox_regression", "rate"))]
    scored = [entry for entry in entries if _is_number(entry.get("AP"))]
    if not steps:
        raise InputError(f"{log_file}: no step is logged; train for at least one step")
    figure = Figure(figsize=(8, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for key, colour in COLOURS.items():
        if key not in steps[0]:
            continue  # without a teacher
        numbers, values = _smoothed(steps, key)
        losses.plot(numbers, values, color=colour, label=LABELS[key], linewidth=1.6)
    if scored:
        right = losses.twinx()
        right.plot([e["step"] for e in scored], [e["AP"] for e in scored], color="#555555", marker="o", label="AP on val")
        right.set_ylabel("AP")
    losses.set_yscale("log")
    losses.set_ylabel("loss")
    losses.set_title(title, fontsize=11)
    losses.legend(frameon=False, ncols=3)
    losses.grid(alpha=0.25, which="both")
    rates.plot([e["step"] for e in steps], [e["rate"] for e in steps], color="#555555", linewidth=1.4)
    rates.set_ylabel("rate")
    rates.set_xlabel("step")
    rates.grid(alpha=0.25)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _smoothed(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps, and means of the last values over about a fiftieth of the run."""
    steps = np.array([entry["step"] for entry in entries])
    values = np.array([entry.get(key, np.nan) for entry in entries], dtype=float)
    window = max(1, len(values) // 50)
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    return steps[window - 1 :], means
