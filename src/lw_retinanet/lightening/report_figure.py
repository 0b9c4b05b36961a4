"""The figure of a lightening report: AP after each stage, and the losses of the fit."""

import io

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lw_retinanet.lightening.report import LighteningReport

_FULL, _LIGHT, _SMALL = "#7f7f7f", "#1f77b4", "#ff7f0e"


def stages_figure(report: LighteningReport) -> bytes:
    """Draw AP and APs by stage with the interval of the difference to the full head, and the losses of the fit; MACs if there is neither.

    Returns:
        The bytes of a PNG file.
    """
    panels = [*([_accuracy] if report.rows[0].metrics else []), *([_losses] if report.curve else [])] or [_macs]
    figure = Figure(figsize=(4.6 * len(panels) + 0.8, 3.8), layout="constrained", dpi=130)
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        panel(axes, report)
    before, after = (f"{row.macs / 1e9:.2f}" for row in (report.rows[0], report.rows[-1]))
    figure.suptitle(f"{report.source}: {before} -> {after} GMACs ({report.to})", parse_math=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _accuracy(axes: Axes, report: LighteningReport) -> None:
    names = [row.name for row in report.rows]
    values = [100 * row.metrics["AP"] for row in report.rows]
    small = [100 * row.metrics["APs"] for row in report.rows]
    axes.bar(names, values, color=[_FULL, *[_LIGHT] * (len(names) - 1)], width=0.62)
    full = values[0]
    for number, row in enumerate(report.rows):
        if row.low is not None and row.high is not None:
            low, high = full + 100 * row.low, full + 100 * row.high
            axes.plot([number, number], [low, high], color="black", linewidth=1.6, solid_capstyle="butt")
        top = max(values[number], full + 100 * (row.high or 0.0))
        axes.annotate(f"{values[number]:.1f}", (number, top), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=9)
    if min(small) >= 0:
        axes.plot(names, small, color=_SMALL, marker="o", markersize=4, label="APs")
        axes.legend(frameon=False, fontsize=9)
    axes.axhline(full, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_ylabel("AP in points; lines: 95 % of the difference to the full head", fontsize=8)
    axes.set_ylim(0, 1.18 * max(*values, *small, 0.01))  # an AP of 0 has no range
    _plain(axes)


def _losses(axes: Axes, report: LighteningReport) -> None:
    for level, curve in report.curve.items():
        for key, colour, label in (("cls", _LIGHT, "class"), ("bbox", _SMALL, "box")):
            if any(curve[key]):
                axes.plot(curve["step"], curve[key], color=colour, label=f"{level} {label}")
    axes.set_xlabel("step of the fit", fontsize=9)
    axes.set_ylabel("distillation loss", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)


def _macs(axes: Axes, report: LighteningReport) -> None:
    axes.bar([row.name for row in report.rows], [row.macs / 1e9 for row in report.rows], color=[_FULL, *[_LIGHT] * (len(report.rows) - 1)])
    axes.set_ylabel("GMACs")
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5)
