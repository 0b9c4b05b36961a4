"""The figures of a lightening report: AP after each stage, and the losses of the fit; MACs if there is neither."""

from typing import TYPE_CHECKING

from lw_retinanet.lightening.report import LighteningReport
from lw_retinanet.page_figure import LIGHT, SERIES, PageFigure, drawing_style, new_figure, settle

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def report_figures(report: LighteningReport) -> list[PageFigure]:
    """The figures that the report has numbers for, in the order of the page. The first one is called ``stages``."""
    with drawing_style():
        drawn = [_accuracy(report)] if report.rows[0].metrics else [] if report.curve else [_macs(report)]
        return [*drawn, _losses(report)] if report.curve else drawn


def _accuracy(report: LighteningReport) -> PageFigure:
    figure, [axes] = new_figure(3.6)
    names = [row.name for row in report.rows]
    values = [100 * row.metrics["AP"] for row in report.rows]
    small = [100 * row.metrics["APs"] for row in report.rows]
    _bars(axes, names, values)
    full = values[0]
    for number, row in enumerate(report.rows):
        if row.low is not None and row.high is not None:
            axes.plot([number, number], [full + 100 * row.low, full + 100 * row.high], color=LIGHT["ink"], linewidth=1.6)
        top = max(values[number], small[number], values[number] if row.high is None else full + 100 * row.high)
        axes.annotate(f"{values[number]:.1f}", (number, top), xytext=(0, 5), textcoords="offset points", ha="center")
    if min(small) >= 0:
        axes.plot(names, small, color=LIGHT["red"], marker="s", markersize=4, label="APs")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1))
    axes.axhline(full, color=LIGHT["soft"], linewidth=0.8, linestyle=":")
    axes.set_ylabel("AP, points")
    axes.set_ylim(0, 1.18 * max(*values, *small, 0.01))  # an AP of 0 has no range
    settle(figure)
    return PageFigure(
        name="stages",
        title="AP after each stage",
        caption="Lines on the bars are 95 % intervals of the difference to the full head, paired over images. APs: small objects.",
        alt="; ".join(f"{name}: AP {value:.1f}" for name, value in zip(names, values, strict=True)),
        figure=figure,
    )


def _losses(report: LighteningReport) -> PageFigure:
    figure, [axes] = new_figure(3.2)
    lines = [
        (f"{level} {label}", curve["step"], curve[key])
        for level, curve in report.curve.items()
        for key, label in (("cls", "class"), ("bbox", "box"))
        if any(curve[key])
    ]
    for place, (label, steps, values) in enumerate(lines):
        role, marker = SERIES[place % len(SERIES)]
        axes.plot(steps, values, color=LIGHT[role], marker=marker, markersize=4, markevery=0.12, linewidth=1.4, label=label)
    axes.set(xlabel="step of the fit", ylabel="distillation loss")
    axes.set_ylim(bottom=0)
    axes.grid()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    settle(figure)
    return PageFigure(
        name="fit" if report.rows[0].metrics else "stages",
        title="The fit",
        caption="Losses against the outputs of the full head, without labels.",
        alt="; ".join(f"{label}: {values[0]:.3g} at first, {values[-1]:.3g} at last" for label, _, values in lines),
        figure=figure,
    )


def _macs(report: LighteningReport) -> PageFigure:
    figure, [axes] = new_figure(3.2)
    _bars(axes, [row.name for row in report.rows], [row.macs / 1e9 for row in report.rows])
    axes.set_ylabel("GMACs")
    settle(figure)
    return PageFigure(
        name="stages",
        title="MACs after each stage",
        caption=f"Multiply-accumulates for one image of {report.size_hw[0]} x {report.size_hw[1]} pixels.",
        alt="; ".join(f"{row.name}: {row.macs / 1e9:.2f} GMACs" for row in report.rows),
        figure=figure,
    )


def _bars(axes: "Axes", names: list[str], values: list[float]) -> None:
    axes.bar(names, values, color=[LIGHT["backbone"], *[LIGHT["blue"]] * (len(names) - 1)], width=0.62)
