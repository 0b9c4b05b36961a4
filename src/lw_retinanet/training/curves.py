"""The figure of a run: losses, learning rate and AP over its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lw_retinanet.errors import InputError
from lw_retinanet.page_figure import LIGHT, PageFigure, drawing_style, new_figure, settle
from lw_retinanet.training.run_folder import read_log

_PARTS = (  # key, name, colour, dashes
    ("loss", "total", "blue", "solid"),
    ("classification", "classification", "red", (0, (5, 1.5))),
    ("bbox_regression", "box", "green", (0, (1, 1))),
    ("distillation", "teacher", "purple", (0, (5, 1.5, 1, 1.5))),
)


def save_curves(log_file: Path, folder: Path, *, title: str) -> None:
    """Write :func:`curves_figure` of a run's log as ``curves.png``.

    Args:
        log_file: Log of a run that has done at least one step.
        folder: Where the image goes.
        title: Title above the figure.

    Raises:
        InputError: if no step was logged.
    """
    figure = curves_figure(read_log(log_file), title=title)
    if figure is None:
        raise InputError(f"{log_file}: no step is logged; train for at least one step")
    figure.save_png(folder)


def curves_figure(entries: Sequence[Mapping[str, Any]], *, title: str | None = None) -> PageFigure | None:
    """Draw smoothed losses, AP where it was measured, and the learning rate over the steps; None if no step was logged.

    Args:
        entries: What :func:`~lw_retinanet.training.run_folder.read_log` gives.
        title: Line above the curves, for a figure that stands alone.
    """
    from matplotlib.ticker import LogLocator

    steps = [entry for entry in entries if all(_is_number(entry.get(key)) for key in ("loss", "classification", "bbox_regression", "rate"))]
    scored = [entry for entry in entries if _is_number(entry.get("AP"))]
    if not steps:
        return None
    parts = [part for part in _PARTS if part[0] in steps[0]]  # a teacher only where there is one
    with drawing_style():
        heights = {"loss": 3.0, **({"AP": 2.0} if scored else {}), "rate": 1.2}
        figure, places = new_figure(0.7 + sum(heights.values()), rows=len(heights), height_ratios=list(heights.values()))
        axes = dict(zip(heights, places, strict=True))
        for key, label, role, dashes in parts:
            numbers, values = _smoothed(steps, key)
            axes["loss"].plot(numbers, values, color=LIGHT[role], linestyle=dashes, label=label, linewidth=1.6)
        axes["loss"].set_yscale("log")
        axes["loss"].yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes["loss"].yaxis.set_major_formatter("{x:g}")
        axes["loss"].yaxis.set_minor_formatter("")
        axes["loss"].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
        if scored:
            style: dict[str, Any] = {"color": LIGHT["ink"], "marker": "o", "markersize": 4, "linewidth": 1.4}
            axes["AP"].plot([entry["step"] for entry in scored], [entry["AP"] for entry in scored], **style)
            axes["AP"].set_ylim(0, 1.12 * max(0.01, *(entry["AP"] for entry in scored)))
        axes["rate"].plot([entry["step"] for entry in steps], [entry["rate"] for entry in steps], color=LIGHT["soft"], linewidth=1.4)
        axes["rate"].set_ylim(bottom=0)
        for name, one in axes.items():
            one.set_ylabel({"AP": "AP on val", "rate": "rate"}.get(name, name))
            one.grid()
        places[-1].set_xlabel("step")
        if title:
            figure.suptitle(title, fontsize=11)
        settle(figure)
    last = f"; AP {scored[-1]['AP']:.3f} at step {scored[-1]['step']:,}" if scored else ""
    return PageFigure(
        name="curves",
        title="Losses, AP and learning rate",
        caption="Losses are means over a fiftieth of the run, on a logarithmic axis. AP (0 to 1) is that of the weights that are kept.",
        alt=f"Loss {steps[0]['loss']:.3g} at step {steps[0]['step']:,}, {steps[-1]['loss']:.3g} at step {steps[-1]['step']:,}{last}",
        figure=figure,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _smoothed(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Steps, and means of the last values over about a fiftieth of the run."""
    steps = np.array([entry["step"] for entry in entries])
    values = np.array([entry.get(key, np.nan) for entry in entries], dtype=float)
    window = max(1, len(values) // 50)
    means = np.convolve(values, np.ones(window) / window, mode="valid")
    return steps[window - 1 :], means
