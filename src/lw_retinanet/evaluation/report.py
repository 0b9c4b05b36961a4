"""Metrics for people: the twelve lines of pycocotools, a line for each class, the precision-recall figure, and the files of a folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lw_retinanet.evaluation.coco_metrics import AREA_NAMES, RECALL_LEVELS, SUMMARY, ClassMetrics, Metrics
from lw_retinanet.files import write_text
from lw_retinanet.page_figure import LIGHT, SERIES, PageFigure, drawing_style, new_figure, settle
from lw_retinanet.tables import aligned

_MAX_LINES = 12
_DASHES = ("solid", (0, (5, 1.5)), (0, (1, 1)))


def write_metrics(metrics: Metrics, out: Path, *, title: str | None = None) -> None:
    """Write ``metrics.json`` and ``pictures/precision_recall.png`` into a folder."""
    write_text(out / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    pr_figure(metrics, title=title).save_png(out / "pictures")


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
    """One aligned line for each class, in the order of the data set, under a heading. A class without boxes to find shows ``-``.

    With recommended thresholds there are also columns for them and their F1, and a line for all classes together.
    """
    rows: list[tuple[str, ...]] = [("class", "images", "boxes", "AP", "AP50")]
    for entry in metrics.per_class:
        numbers = (f"{value:.3f}" if value > -1 else "-" for value in (entry.AP, entry.AP50))
        rows.append((" ".join(entry.name.split()), f"{entry.images:,}", f"{entry.boxes:,}", *numbers))
    best = metrics.best_score
    if best is None:
        return "\n".join(aligned(rows))
    thresholds = [("best score", "F1"), *((_three(one["score"]), _three(one["F1"])) for one in best["per_class"])]
    lines = aligned([(*row, *more) for row, more in zip(rows, thresholds, strict=True)])
    return "\n".join([*lines, f"best score for all classes: {best['score']:.3f}, with an F1 of {best['F1']:.3f} at IoU 0.5"])


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def pr_figure(metrics: Metrics, *, title: str | None = None) -> PageFigure:
    """Draw the precision-recall curves at IoU 0.5: a line for each class, and their mean.

    Of more than 12 classes those with the most boxes are drawn. The mean is always over all classes that have boxes.

    Args:
        title: Line above the curves, for a figure that stands alone.
    """
    scored, drawn = _drawn_classes(metrics)
    with drawing_style():
        figure, [axes] = new_figure(4.2 + 0.2 * ((len(drawn) + 2) // 2))
        handles, names = [], []
        for place, label in enumerate(drawn):
            (role, marker), dash = SERIES[place % len(SERIES)], _DASHES[place // len(SERIES)]
            style: dict[str, Any] = {"color": LIGHT[role], "linestyle": dash, "marker": marker, "markersize": 4, "linewidth": 1.3}
            every = (4 * place % 25, 25)  # markers of different lines at different places
            handles += axes.plot(RECALL_LEVELS, metrics.precision50[label], markevery=every, **style)
            names.append(_legend_line(metrics.per_class[label].AP50, metrics.per_class[label]))
        if scored:
            handles += axes.plot(RECALL_LEVELS, metrics.mean_precision50, color=LIGHT["ink"], linewidth=3.2, zorder=3)
            names.append(_legend_line(metrics.AP50, None))
            heading = "AP50" if len(drawn) == scored else f"AP50 ({len(drawn)} of {scored} classes shown)"
            below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, -0.14), "borderaxespad": 0, "ncols": 2}
            legend = axes.legend(
                handles[-1:] + handles[:-1], names[-1:] + names[:-1], title=heading, title_fontsize=9.5, alignment="left", **below
            )
            legend.get_texts()[0].set_fontweight("bold")
        else:
            axes.text(0.5, 0.5, "no boxes to find", ha="center", va="center", color=LIGHT["soft"])
        ticks = np.linspace(0, 1, 6)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", xticks=ticks, yticks=ticks)
        if title:
            axes.set_title(title, loc="left", fontsize=11)
        axes.grid()
        axes.set_axisbelow(True)
        settle(figure)
    return PageFigure(
        name="precision_recall",
        title="Precision and recall at IoU 0.5",
        caption="A line for each class; the thick one is their mean. The number in front of a name is its AP50.",
        alt="; ".join(names) or "no boxes to find",
        figure=figure,
    )


def _drawn_classes(metrics: Metrics) -> tuple[int, list[int]]:
    """Number of classes that have boxes, and the labels of those to draw, in the order of the data set."""
    scored = [label for label, entry in enumerate(metrics.per_class) if entry.AP50 > -1]
    return len(scored), sorted(sorted(scored, key=lambda label: -metrics.per_class[label].boxes)[:_MAX_LINES])


def _legend_line(ap50: float, entry: ClassMetrics | None) -> str:
    name = "mean over classes" if entry is None else " ".join(entry.name.split())
    return f"{ap50:.3f}  {name if len(name) <= 28 else name[:27] + '…'}"
