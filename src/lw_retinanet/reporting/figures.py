"""The figures of a run's page: AP of classes and sizes with intervals, kinds of errors, and scores against precision."""

from collections.abc import Sequence

import numpy as np

from lw_retinanet.evaluation.coco_metrics import AREA_NAMES
from lw_retinanet.evaluation.diagnosis import Diagnosis
from lw_retinanet.evaluation.paired import Estimate
from lw_retinanet.page_figure import LIGHT, PageFigure, drawing_style, new_figure, settle
from lw_retinanet.reporting.evidence import Scored

_MOST_CLASSES = 30
_LONGEST_NAME = 24


def class_figure(scored: Scored) -> PageFigure | None:
    """AP of each class with its 95 % interval, the lowest below; of more than 30 classes, the 30 lowest. None without an AP."""
    estimates: Sequence[Estimate | None] = scored.classes or [
        Estimate(value=one.AP, low=one.AP, high=one.AP) if one.AP >= 0 else None for one in scored.metrics.per_class
    ]
    known = [(name, one) for name, one in zip(scored.records.class_names, estimates, strict=True) if one]
    if not known:
        return None
    shown = sorted(known, key=lambda pair: -pair[1].value)[-_MOST_CLASSES:]
    with drawing_style():
        figure, [axes] = new_figure(0.9 + 0.28 * len(shown))
        for place, (_, one) in enumerate(shown):
            axes.plot([100 * one.low, 100 * one.high], [place, place], color=LIGHT["blue"], linewidth=2.2, solid_capstyle="butt")
            axes.plot([100 * one.value], [place], marker="o", color=LIGHT["blue"], markersize=7)
            axes.annotate(f"{100 * one.value:.1f}", (1.02, place), xycoords=("axes fraction", "data"), va="center")
        axes.axvline(100 * scored.metrics.AP, color=LIGHT["soft"], linewidth=1, linestyle=":")
        axes.set_yticks(range(len(shown)), [_short(name) for name, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel("AP, points")
        settle(figure)
    lines = " Lines are 95 % intervals from drawing the images again." if scored.classes else ""
    part = f" The {len(shown)} lowest of {len(known)} classes." if len(shown) < len(known) else ""
    return PageFigure(
        name="class_ap",
        title="AP of each class",
        caption=f"The dotted line is the mean.{lines}{part}",
        alt="; ".join(f"{name}: AP {100 * one.value:.1f}, {100 * one.low:.1f} to {100 * one.high:.1f}" for name, one in shown),
        figure=figure,
    )


def size_figure(scored: Scored) -> PageFigure:
    """AP of small, medium and large objects with intervals, and how many are found."""
    values = [getattr(scored.metrics, f"AP{name[0]}") for name in AREA_NAMES[1:]]
    found = [f"{size.found:,} of {size.boxes:,} found" for size in scored.diagnosis.sizes]
    with drawing_style():
        figure, [axes] = new_figure(2.9)
        axes.bar(AREA_NAMES[1:], [100 * max(value, 0) for value in values], color=LIGHT["blue"], width=0.55)
        for place, (name, value, text) in enumerate(zip(AREA_NAMES[1:], values, found, strict=True)):
            one = scored.estimates.get(f"AP{name[0]}")
            if one:
                axes.plot([place, place], [100 * one.low, 100 * one.high], color=LIGHT["ink"], linewidth=1.6)
            top = 100 * max(value, one.high if one else 0, 0)
            said = f"{100 * value:.1f}\n{text}" if value >= 0 else "none"
            axes.annotate(said, (place, top), xytext=(0, 4), textcoords="offset points", ha="center")
        highest = max([one.high for name, one in scored.estimates.items() if name[-1] in "sml"] + [*values, 0.01])
        axes.set_ylim(0, 130 * highest)
        axes.set_ylabel("AP, points")
        settle(figure)
    lines = " Lines are 95 % intervals." if scored.estimates else ""
    return PageFigure(
        name="size_ap",
        title="AP by size",
        caption=f"Small: up to 32 x 32 pixels of the image file; medium: up to 96 x 96.{lines} Found: at the score of the best F1, "
        f"{scored.diagnosis.score:.2f}.",
        alt="; ".join(f"{name}: AP {100 * value:.1f}, {text}" for name, value, text in zip(AREA_NAMES[1:], values, found, strict=True)),
        figure=figure,
    )


def error_figure(diagnosis: Diagnosis) -> PageFigure:
    """What each of TIDE's kinds of errors costs of AP50."""
    kinds = diagnosis.errors
    with drawing_style():
        figure, [axes] = new_figure(2.6)
        axes.barh([kind.name for kind in kinds], [100 * kind.ap_cost for kind in kinds], color=LIGHT["red"], height=0.62)
        most = max(100 * kind.ap_cost for kind in kinds)
        for place, kind in enumerate(kinds):
            text = f"{100 * kind.ap_cost:.1f}   ({kind.number:,})"
            axes.annotate(text, (100 * kind.ap_cost, place), xytext=(4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, 1.3 * max(most, 1))
        axes.set_ylim(len(kinds) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("points of AP50 that it costs, and how often it occurs")
        settle(figure)
    return PageFigure(
        name="errors",
        title="Kinds of errors",
        caption="By TIDE (Bolya et al. 2020): how much higher AP50 would be without errors of this kind; detections of all scores count. "
        "Location: overlap of 0.1 to 0.5 with an object of the class. Background: less with any object.",
        alt="; ".join(f"{kind.name}: {100 * kind.ap_cost:.1f} points, {kind.number:,} times" for kind in kinds),
        figure=figure,
    )


def calibration_figure(diagnosis: Diagnosis) -> PageFigure:
    """The share of right detections over their score, and how many detections there are."""
    full = [one for one in diagnosis.bins if one.number]
    with drawing_style():
        figure, (axes, counts) = new_figure(4.6, rows=2, height_ratios=(3, 1))
        axes.plot([0, 1], [0, 1], color=LIGHT["soft"], linewidth=1, linestyle=":")
        axes.plot([one.score for one in full], [one.precision for one in full], color=LIGHT["blue"], marker="o", linewidth=1.6)
        axes.axvline(diagnosis.score, color=LIGHT["red"], linewidth=1.2, linestyle="--")
        axes.annotate(f"best F1: {diagnosis.score:.2f}", (diagnosis.score, 1.0), xytext=(4, -8), textcoords="offset points")
        axes.set(ylim=(0, 1.02), ylabel="share that is right", xlim=(0, 1))
        axes.grid()
        edges = np.linspace(0, 1, len(diagnosis.bins) + 1)
        counts.bar(edges[:-1] + 0.05, [one.number for one in diagnosis.bins], width=0.09, color=LIGHT["backbone"])
        counts.set_yscale("symlog")
        counts.yaxis.set_major_formatter("{x:,.0f}")
        counts.set(xlabel="score", ylabel="detections")
        settle(figure)
    return PageFigure(
        name="calibration",
        title="Scores and what they are worth",
        caption=f"On the dotted line a score is the chance to be right (IoU 0.5); "
        f"mean distance {100 * diagnosis.calibration_error:.0f} points. "
        "The dashed line is the score of the best F1.",
        alt="; ".join(f"score {one.score:.2f}: {one.precision:.0%} of {one.number:,} right" for one in full) or "no detections",
        figure=figure,
    )


def _short(name: str) -> str:
    line = " ".join(name.split())
    return line if len(line) <= _LONGEST_NAME else line[: _LONGEST_NAME - 1] + "…"
