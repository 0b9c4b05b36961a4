"""Metrics for people: the twelve lines of pycocotools, a line for each class, the precision-recall figure, and the files of a folder."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lw_retinanet.drawing import save_figure
from lw_retinanet.evaluation.coco_metrics import AREA_NAMES, RECALL_LEVELS, SUMMARY, ClassMetrics, Metrics
from lw_retinanet.files import write_text
from lw_retinanet.tables import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_LINES = 12
# Okabe and Ito's colours that any kind of colour vision tells apart, without black (the mean) and yellow (faint on white).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_DASHES = ("solid", (0, (4, 1.5)))


def write_metrics(metrics: Metrics, out: Path, *, title: str | None = None) -> None:
    """Write ``metrics.json`` and ``pictures/precision_recall.png`` into a folder."""
    write_text(out / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # the font draws a box instead
        save_figure(lambda: pr_figure(metrics, title=title), out / "pictures" / "precision_recall.png")


def summary_table(metrics: Metrics) -> str:
    """The twelve lines that pycocotools prints, character for character, without a final line break."""
    titles = {"AP": "Average Precision", "AR": "Average Recall"}
    lines = []
    for name, iou, area, limit in SUMMARY:
        kind, ious = name[:2], "0.50:0.95" if iou is None else f"{iou:.2f}"
        lines.append(
            f" {titles[kind]:<18} ({kind}) @[ IoU={ious:<9} | area={AREA_NAMES[area]:>6} | "
            f"maxDets={metrics.max_detections[limit]:>3} ] = {getattr(metrics, name):0.3f}"
        )
    return "\n".join(lines)


def class_table(metrics: Metrics) -> str:
    """One aligned line for each class, in the order of the data set, under a heading. A class without boxes to find shows ``-``."""
    rows: list[tuple[str, ...]] = [("class", "images", "boxes", "AP", "AP50")]
    for entry in metrics.per_class:
        numbers = (f"{value:.3f}" if value > -1 else "-" for value in (entry.AP, entry.AP50))
        rows.append((" ".join(entry.name.split()), f"{entry.images:,}", f"{entry.boxes:,}", *numbers))
    return "\n".join(aligned(rows))


def pr_figure(metrics: Metrics, *, title: str | None = None) -> "Figure":
    """Draw the precision-recall curves at IoU 0.5: a line for each class, and their mean.

    Of more than 12 classes those with the most boxes are drawn. The mean is always over all classes that have boxes.
    """
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
    """Number of classes that have boxes, and the labels of those to draw, in the order of the data set."""
    scored = [label for label, entry in enumerate(metrics.per_class) if entry.AP50 > -1]
    return len(scored), sorted(sorted(scored, key=lambda label: -metrics.per_class[label].boxes)[:_MAX_LINES])


def _legend_line(ap50: float, entry: ClassMetrics | None) -> str:
    name = "mean over classes" if entry is None else " ".join(entry.name.split())
    return f"{ap50:.3f}  {name if len(name) <= 28 else name[:27] + '…'}"
