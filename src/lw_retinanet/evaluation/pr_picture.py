"""Precision over recall at IoU 0.5 as a picture: a line a class, and their mean."""

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lw_retinanet.errors import ConfigError
from lw_retinanet.evaluation.coco_metrics import RECALL_LEVELS, ClassMetrics, Metrics
from lw_retinanet.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LINES = 12

# Okabe and Ito's colours that any kind of colour vision tells apart, without black (the mean) and yellow (faint on white).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("solid", (0, (4, 1.5)))
_FORMATS = ("png", "pdf", "svg", "jpg")


def save_pr_picture(metrics: Metrics, path: Path, *, title: str | None = None) -> None:
    """Draw the precision-recall curves at IoU 0.5 and write them to ``path`` (150 dpi), whole or not at all.

    Of more than 12 classes those with the most boxes are drawn; the mean is always over all classes that have boxes.

    Raises:
        ConfigError: if the name does not end in .png, .pdf, .svg or .jpg.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in _FORMATS:
        raise ConfigError(f"{path}: a picture's name must end in {', '.join(f'.{known}' for known in _FORMATS)}")
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # names beyond the font: a box is drawn
        pr_figure(metrics, title=title).savefig(picture, format=kind, dpi=150)
    write_bytes(path, picture.getvalue())


def pr_figure(metrics: Metrics, *, title: str | None = None) -> "Figure":
    """The same picture as a matplotlib figure that no ``pyplot`` window manager knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    handles, names = [], []
    scored, drawn = _drawn_classes(metrics)
    for place, label in enumerate(drawn):
        entry = metrics.per_class[label]
        colour, dash = _COLOURS[place % len(_COLOURS)], _DASHES[place // len(_COLOURS)]
        handles += axes.plot(RECALL_LEVELS, metrics.precision50[label], color=colour, linestyle=dash, linewidth=1.3)
        names.append(_legend_line(entry.AP50, entry))
    if scored:
        handles += axes.plot(RECALL_LEVELS, metrics.mean_precision50, color="black", linewidth=3.2, zorder=3)
        names.append(_legend_line(metrics.AP50, None))
        legend = axes.legend(
            handles[-1:] + handles[:-1],
            names[-1:] + names[:-1],
            title="AP50" if len(drawn) == scored else f"AP50 ({len(drawn)} of {scored} classes shown)",
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            frameon=False,
            fontsize=9,
            title_fontsize=9,
            alignment="left",
        )
        legend.get_texts()[0].set_fontweight("bold")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a class may be called "$5"
    else:
        axes.text(0.5, 0.5, "no boxes to find", ha="center", va="center", color="0.4")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", xticks=np.linspace(0, 1, 6), yticks=np.linspace(0, 1, 6))
    axes.set_title(title or "Precision and recall at IoU 0.5", loc="left", fontsize=11, parse_math=False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _drawn_classes(metrics: Metrics) -> tuple[int, list[int]]:
    """How many classes have boxes, and the labels of those to draw, in the data set's order."""
    scored = [label for label, entry in enumerate(metrics.per_class) if entry.AP50 > -1]
    return len(scored), sorted(sorted(scored, key=lambda label: -metrics.per_class[label].boxes)[:MAX_LINES])


def _legend_line(ap50: float, entry: ClassMetrics | None) -> str:
    name = "mean over classes" if entry is None else " ".join(entry.name.split())
    return f"{ap50:.3f}  {name if len(name) <= 28 else name[:27] + '…'}"
