"""The report of a measurement as a figure: MACs and AP against time, and the stages."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lw_retinanet.benchmarking.stages import STAGES
from lw_retinanet.drawing import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

XOf = Callable[[Mapping[str, Any]], float]
"""The place of a row on the horizontal axis."""
# Okabe and Ito's colours, which any kind of colour vision tells apart.
_FAMILIES = {"ours": ("#0072B2", "this package"), "torchvision": ("#D55E00", "torchvision's RetinaNet"), "peer": ("#8A8A8A", "peers")}
_MARKERS = {"fp32": "o", "bf16": "s", "int8": "D"}
_MARKER_SIZE = 6  # points
_ENDS = (("low", -1), ("high", 1))
_STAGE_COLOURS = {
    "decode": "#C4C4C4",
    "preprocess": "#8A8A8A",
    "network": "#555555",
    "backbone": "#0072B2",
    "FPN": "#56B4E9",
    "D3": "#D55E00",
    "D4": "#E69F00",
    "D5": "#F0C45A",
    "D6": "#F5DD9B",
    "D7": "#FAEFD0",
    "anchors": "#CC79A7",
    "post-processing": "#009E73",
}
assert set(_STAGE_COLOURS) == set(STAGES)
_WIDE = 5.0  # ratio of the largest MACs to the smallest from which a logarithmic axis shows enough numbers
_NAMES = 0.5  # of the width with points, for the names to the right of the last points


def save_chart(result: Mapping[str, Any], path: Path) -> None:
    """Write :func:`figure` to ``path``, completely or not at all; the suffix (.png, .svg, .pdf) decides the format."""
    save_figure(lambda: figure(result), path)


def figure(result: Mapping[str, Any]) -> "Figure":
    """MACs against milliseconds, AP against milliseconds where it is known, and a bar of stages for every contender whose stages were seen.

    Args:
        result: What :func:`~lw_retinanet.benchmarking.report.report` returns.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    staged = [row for row in result["contenders"] if row["stages"] is not None]
    height = max(5.0, 0.42 * len(staged) + 2.2)
    counted = [row for row in result["contenders"] if row["macs"]]
    rated = [row for row in result["contenders"] if row["accuracy"] is not None]
    scatters = [(counted, _gmacs, "GMACs per image"), *([(rated, _points, "AP, points")] if rated else [])]
    made = Figure(figsize=(7.5 * (len(scatters) + bool(staged)), height), layout="constrained")
    FigureCanvasAgg(made)
    panels = made.subplots(1, len(scatters) + bool(staged), squeeze=False)[0]
    for axes, (rows, x_of, words) in zip(panels, scatters, strict=False):
        _scatter(axes, rows, x_of, words)
    if staged:
        _bars(panels[-1], staged)
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    made.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=6 if staged else 3, frameon=False, fontsize=8)
    machine = result["machine"]
    made.suptitle(
        f"{result['what']}: {machine['processor']} ({machine['device']}), {machine['threads']} threads", fontsize=11, parse_math=False
    )
    made.draw_without_rendering()  # this fixes the positions that the names need
    for axes, (rows, x_of, _) in zip(panels, scatters, strict=False):
        _name_points(axes, rows, x_of)
    return made


def _gmacs(row: Mapping[str, Any]) -> float:
    return float(row["macs"] / 1e9)


def _points(row: Mapping[str, Any]) -> float:
    return float(100 * row["accuracy"])


def _scatter(axes: "Axes", rows: list[Mapping[str, Any]], x_of: XOf, words_x: str) -> None:
    for family, (colour, words) in _FAMILIES.items():
        for precision, marker in _MARKERS.items():
            shown = [row for row in rows if row["family"] == family and row["precision"] == precision]
            if not shown:
                continue
            x, y = list(map(x_of, shown)), [row["latency_ms"]["median"] for row in shown]
            spread = [[max(0.0, sign * (row["latency_ms"][end] - row["latency_ms"]["median"])) for row in shown] for end, sign in _ENDS]
            axes.errorbar(x, y, yerr=spread, fmt=marker, color=colour, markersize=_MARKER_SIZE, capsize=2, label=f"{words}, {precision}")
    places = list(map(x_of, rows))
    is_wide = bool(places) and max(places) > _WIDE * min(places)
    axes.set(xscale="log" if is_wide else "linear", yscale="log")
    axes.set(xlabel=words_x, ylabel="milliseconds a call, median and its 95 % interval")
    axes.margins(x=0.1, y=0.1)
    ends = axes.transScale.transform([(end, 1.0) for end in axes.get_xlim()])[:, 0]
    ends[1] += _NAMES * (ends[1] - ends[0])
    axes.set_xlim(*axes.transScale.inverted().transform([(end, 0.0) for end in ends])[:, 0])
    for axis in (axes.xaxis, axes.yaxis) if is_wide else (axes.yaxis,):
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(_plain)
    axes.tick_params(which="both", labelsize=8)
    axes.grid(visible=True, which="both", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name_points(axes: "Axes", rows: list[Mapping[str, Any]], x_of: XOf) -> None:
    """Write names beside their points. A name that would cover another name or a point moves down; a line leads to its point."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    if not rows:
        return
    figure = axes.get_figure(root=True)
    renderer = figure.canvas.get_renderer()  # type: ignore[union-attr]
    points = axes.transData.transform([(x_of(row), row["latency_ms"]["median"]) for row in rows])
    radius = _MARKER_SIZE / 2 * figure.dpi / 72  # type: ignore[union-attr]
    taken = [Bbox.from_bounds(x - radius, y - radius, 2 * radius, 2 * radius) for x, y in points]
    line = {"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
    for row in sorted(rows, key=lambda row: (-row["latency_ms"]["median"], x_of(row))):
        place = (x_of(row), row["latency_ms"]["median"])
        name = axes.annotate(
            row["name"], place, xytext=(9, -2), textcoords="offset points", fontsize=7, parse_math=False, arrowprops=line, in_layout=False
        )
        name.update_positions(renderer)
        while (box := Text.get_window_extent(name)).count_overlaps(taken):  # of the text, without the line
            x, y = name.get_position()
            name.set_position((x, y - 1))
            name.update_positions(renderer)
        taken.append(box)


def _plain(value: float, _: float) -> str:
    """Label only ticks that begin with 1, 2 or 5, since there is no room for all."""
    digits = f"{value:.0e}"[0]
    return f"{value:g}" if digits in "125" else ""


def _bars(axes: "Axes", rows: list[Mapping[str, Any]]) -> None:
    places = range(len(rows))
    left = [0.0] * len(rows)
    for stage in STAGES:
        widths = [row["stages"]["milliseconds"].get(stage, 0.0) for row in rows]
        if any(widths):
            axes.barh(places, widths, left=left, color=_STAGE_COLOURS[stage], edgecolor="white", linewidth=0.4, height=0.75, label=stage)
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set(yticks=list(places), ylim=(len(rows) - 0.5, -0.5), xlabel="milliseconds a call, medians by stage")
    axes.set_yticklabels([row["name"] for row in rows], parse_math=False, fontsize=8)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
