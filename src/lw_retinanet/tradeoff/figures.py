"""The figures of a trade-off: the answer, AP against MACs (the paper's Fig. 6), AP against latency, shares of the blocks (Fig. 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lw_retinanet.errors import ConfigError
from lw_retinanet.page_figure import LIGHT, SERIES, PageFigure, drawing_style, new_figure, settle
from lw_retinanet.tradeoff.label_places import Box, place_labels
from lw_retinanet.tradeoff.rows import ExperimentRow, baseline_row, light_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from numpy.typing import NDArray

_PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "backbone (C)": ("backbone", ("C1", "C2", "C3", "C4", "C5")),
    "pyramid (P)": ("pyramid", ("P3", "P4", "P5", "P6", "P7")),
    "D3": ("red", ("D3",)),
    "D4 to D7": ("blue", ("D4", "D5", "D6", "D7")),
}
_SIDE_BY_SIDE = 5.0  # points between bars that are moved apart
_MARKER = 5.5  # points
_BARS = "Bars are 95 % intervals of the difference to the baseline, paired over images and seeds."


def save_figures(rows: Sequence[ExperimentRow], folder: Path) -> list[Path]:
    """Write :func:`make_figures` as PNG files, and return their paths.

    Raises:
        ConfigError: if there is no row.
        OutputError: if the place cannot be written.
    """
    return [figure.save_png(folder) for figure in make_figures(rows)]


def make_figures(rows: Sequence[ExperimentRow]) -> list[PageFigure]:
    """All figures that the rows have numbers for, in the order of the report.

    Raises:
        ConfigError: if there is no row.
    """
    if not rows:
        raise ConfigError("a trade-off needs at least one row to draw; run the experiment first")
    # A head that was trained badly on purpose would push all others into a corner.
    compared = [row for row in rows if row.role != "other"]
    with drawing_style():
        drawn = [_answer(rows), _accuracy(compared) if compared else None, _latency(compared), _shares(rows)]
    return [figure for figure in drawn if figure]


def _answer(rows: Sequence[ExperimentRow]) -> PageFigure | None:
    compared = [(row, row.against_scaling) for row in light_rows(rows) if row.against_scaling]
    if not compared:
        return None
    compared.sort(key=lambda pair: pair[1].difference, reverse=True)
    figure, [axes] = new_figure(0.95 + 0.3 * len(compared))
    for place, (_, interval) in enumerate(compared):
        role, marker = ("green", "^") if interval.low > 0 else ("red", "v") if interval.high < 0 else ("soft", "o")
        axes.plot([100 * interval.low, 100 * interval.high], [place, place], color=LIGHT[role], linewidth=2.2, solid_capstyle="butt")
        axes.plot([100 * interval.difference], [place], marker=marker, color=LIGHT[role], markersize=7)
        said = f"{100 * interval.difference:+.1f}  ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
        axes.annotate(said, (1.02, place), xycoords=("axes fraction", "data"), va="center")
    axes.axvline(0, color=LIGHT["soft"], linewidth=1)
    axes.set_yticks(range(len(compared)), [_wrapped(row.name) for row, _ in compared])
    axes.set_ylim(len(compared) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("AP points above (right) or below shrinking the image")
    settle(figure)
    alt = "; ".join(f"{row.name}: {100 * i.difference:+.2f} points, {100 * i.low:+.2f} to {100 * i.high:+.2f}" for row, i in compared)
    return PageFigure(
        name="answer",
        title="A light head against a smaller image, at equal MACs",
        caption="Difference of AP to the scaling line at the row's own MACs, with its 95 % interval, paired over images and seeds. "
        "Triangles: the interval lies on one side of zero.",
        alt=alt,
        figure=figure,
    )


def _accuracy(rows: Sequence[ExperimentRow]) -> PageFigure:
    figure = _scatter(rows, [Point(row=row, x=row.macs / 1e9) for row in rows], "GMACs for one image")
    return PageFigure(
        name="accuracy",
        title="AP against GMACs",
        caption=f"The solid line shrinks the image, the other points lighten the head. {_BARS} The ring is the baseline, whose AP is the "
        "dotted line. Points of nearly the same cost stand side by side.",
        alt="; ".join(f"{row.name}: AP {100 * row.ap.value:.1f} at {row.macs / 1e9:.4g} GMACs" for row in rows),
        figure=figure,
    )


def _latency(rows: Sequence[ExperimentRow]) -> PageFigure | None:
    places = [Point(row=row, x=row.latency_ms.median, span=row.latency_ms[1:]) for row in rows if row.latency_ms]
    if not places:
        return None
    missing = [row.name for row in rows if not row.latency_ms]
    return PageFigure(
        name="latency",
        title="AP against measured latency",
        caption=f"Milliseconds of the network alone for one image: median, and from the 10th to the 90th percentile across. {_BARS}"
        + (f" Not measured: {'; '.join(missing)}." if missing else ""),
        alt="; ".join(f"{place.row.name}: AP {100 * place.row.ap.value:.1f} in {place.x:.4g} ms" for place in places),
        figure=_scatter(rows, places, "milliseconds for one image"),
    )


def _shares(rows: Sequence[ExperimentRow]) -> PageFigure:
    bars: dict[tuple[str, int, int], ExperimentRow] = {}
    for row in rows:
        bars.setdefault((row.preset, row.scale, row.macs), row)  # the same network has one bar, however it was trained
    figure, [axes] = new_figure(1.2 + 0.27 * len(bars))
    left = np.zeros(len(bars))
    for label, (role, blocks) in _PARTS.items():
        widths = np.array([sum(row.blocks[block].macs for block in blocks if block in row.blocks) / 1e9 for row in bars.values()])
        axes.barh(range(len(bars)), widths, left=left, height=0.74, color=LIGHT[role], label=label)
        left += widths
    told = [f"{row.macs / 1e9:.3g}   D3 {_share(row):.0%}" for row in bars.values()]
    for place, text in enumerate(told):
        axes.annotate(text, (left[place], place), xytext=(4, 0), textcoords="offset points", va="center")
    names = [row.preset if [other[:2] for other in bars].count(key[:2]) == 1 else row.variant for key, row in bars.items()]
    labels = [_wrapped(f"{name} @ {row.scale}") for name, row in zip(names, bars.values(), strict=True)]
    axes.set_yticks(range(len(bars)), labels)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 1.34 * left.max())
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("GMACs for one image, and D3's share")
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.2)
    settle(figure)
    return PageFigure(
        name="shares",
        title="Where the arithmetic goes",
        caption="Multiply-accumulates of the blocks, all by one counter. D3 is the head as applied to P3, the finest map.",
        alt="; ".join(f"{label}: {text} of the GMACs".replace("\n", " ") for label, text in zip(labels, told, strict=True)),
        figure=figure,
    )


def _share(row: ExperimentRow) -> float:
    return row.blocks["D3"].macs / row.macs if "D3" in row.blocks else 0.0


def _wrapped(name: str) -> str:
    """A long name on two lines, broken at a comma or before its size."""
    if len(name) <= 22:
        return name
    head, comma, tail = name.partition(", ")
    return f"{head},\n{tail}" if comma else name.replace(" @ ", "\n@ ")


@dataclass(frozen=True, kw_only=True)
class Point:
    """The place of a row in a figure.

    Args:
        row: The row; its AP is the height.
        x: Place on the horizontal axis.
        span: Lower and upper end of a horizontal bar, if it has one.
    """

    row: ExperimentRow
    x: float
    span: tuple[float, ...] = ()


def _scatter(rows: Sequence[ExperimentRow], places: Sequence[Point], xlabel: str) -> "Figure":
    """Draw AP in points over ``x``, with bars, lines and names."""
    from matplotlib.transforms import ScaledTranslation

    figure, [axes] = new_figure(4.9)
    baseline = baseline_row(rows)
    lines = list(dict.fromkeys(row.line for row in rows))
    if baseline:
        axes.axhline(100 * baseline.ap.value, color=LIGHT["soft"], linewidth=0.9, linestyle=":")
    ends = [end for place in places for end in _ends(place.row)]
    across = [end for place in places for end in (place.x, *place.span)]
    axes.set_ylim(*_widened(min(ends), max(ends)))
    axes.set_xlim(*_widened(min(across), max(across)))
    axes.set(xlabel=xlabel, ylabel="AP, points")
    axes.grid()
    axes.set_axisbelow(True)
    handles = [_handle(line, number, rows) for number, line in enumerate(lines)]
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4)
    settle(figure)  # names are placed in points of the page, so nothing may move any more
    shifts = _side_by_side([_on_page(axes, place.x, 0)[0] for place in places])
    marks: list[Box] = _pieces([_on_page(axes, x, 100 * baseline.ap.value) for x in axes.get_xlim()]) if baseline else []
    for number, line in enumerate(lines):
        for path in _paths([place for place in places if place.row.line == line]):
            role, style = SERIES[number % len(SERIES)][0], "-" if path[0].row.is_on_scaling_line else "--"
            xs, ys = [place.x for place in path], [100 * place.row.ap.value for place in path]
            axes.plot(xs, ys, color=LIGHT[role], linewidth=1.6 if style == "-" else 1.0, linestyle=style, zorder=2)
            marks += _pieces([_on_page(axes, x, y) for x, y in zip(xs, ys, strict=True)])
    anchors = []
    for place, shift in zip(places, shifts, strict=True):
        moved = axes.transData + ScaledTranslation(shift / 72, 0, figure.dpi_scale_trans)
        role, marker = SERIES[lines.index(place.row.line) % len(SERIES)]
        value, (low, high) = 100 * place.row.ap.value, _ends(place.row)
        axes.plot([place.x, place.x], [low, high], color=LIGHT[role], linewidth=1.2, transform=moved, zorder=3)
        if place.span:
            axes.plot(place.span, [value, value], color=LIGHT[role], linewidth=1.2, transform=moved, zorder=3)
        face = LIGHT["paper"] if place.row is baseline else LIGHT[role]
        (point,) = axes.plot([place.x], [value], color=LIGHT[role], marker=marker, markeredgewidth=1.4, transform=moved, zorder=4)
        point.set(markersize=_MARKER + 2 * (place.row is baseline), markeredgecolor=LIGHT[role], markerfacecolor=face)
        x, y = _on_page(axes, place.x, value)
        anchors.append((x + shift, y))
        marks.append((x + shift - 1, _on_page(axes, 0, low)[1], x + shift + 1, _on_page(axes, 0, high)[1]))
        marks += (
            [(_on_page(axes, place.span[0], 0)[0] + shift, y - 1, _on_page(axes, place.span[1], 0)[0] + shift, y + 1)] if place.span else []
        )
    _write_names(axes, [_label(place.row, rows) for place in places], np.array(anchors), marks)
    return figure


def _write_names(axes: "Axes", names: Sequence[str], anchors: "NDArray[np.float64]", marks: list[Box]) -> None:
    """Write names beside their points, with a thin line if a name is not next to its point; all lengths in points of the page."""
    scale = 72 / axes.figure.dpi
    texts = [axes.text(0, 0, name, fontsize=8.5) for name in names]
    sizes = np.array([(text.get_window_extent().width * scale, text.get_window_extent().height * scale) for text in texts])
    for text in texts:
        text.remove()
    frame = axes.get_window_extent()
    box = (frame.x0 * scale, frame.y0 * scale, frame.x1 * scale, frame.y1 * scale)
    corners = place_labels(anchors, sizes, box, radius=_MARKER / 2 + 2, marks=marks)
    for name, anchor, size, corner in zip(names, anchors, sizes, corners, strict=True):
        end = np.clip(anchor, corner, corner + size)
        is_far = np.linalg.norm(end - anchor) > _MARKER + 4
        leader = {"arrowstyle": "-", "color": LIGHT["soft"], "linewidth": 0.7, "shrinkA": 0, "shrinkB": _MARKER / 2 + 1}
        axes.annotate(
            name,
            xy=(float(anchor[0]), float(anchor[1])),
            xycoords="figure points",
            xytext=(float(corner[0]), float(corner[1])),
            textcoords="figure points",
            fontsize=8.5,
            va="bottom",
            arrowprops={**leader, "relpos": tuple((end - corner) / size)} if is_far else None,
            zorder=5,
        ).set_in_layout(False)


def _handle(line: str, number: int, rows: Sequence[ExperimentRow]) -> "Line2D":
    from matplotlib.lines import Line2D

    role, marker = SERIES[number % len(SERIES)]
    handle = Line2D([], [], color=LIGHT[role], marker=marker, markersize=_MARKER, label=line)
    if not any(row.is_on_scaling_line for row in rows if row.line == line):
        handle.set_linestyle("none")
    return handle


def _label(row: ExperimentRow, rows: Sequence[ExperimentRow]) -> str:
    """The size for the scaling line. For other rows the head, with its size if that is not the largest."""
    if row.is_on_scaling_line:
        return f"{row.scale} px{' (baseline)' if row.role == 'baseline' else ''}"
    return row.variant if row.scale == max(other.scale for other in rows) else f"{row.variant}, {row.scale} px"


def _ends(row: ExperimentRow) -> tuple[float, float]:
    """Ends of the bar in points of AP: the interval of the paired difference, placed around the AP of the row. The baseline has none."""
    shift, value = row.against_baseline, 100 * row.ap.value
    if shift is None:
        return value, value
    return value + 100 * (shift.low - shift.difference), value + 100 * (shift.high - shift.difference)


def _paths(places: Sequence[Point]) -> list[list[Point]]:
    """Points to join: the whole line if its rows differ in cost, otherwise the sizes of each variant."""
    path = sorted(places, key=lambda place: place.row.macs)
    if all(more.row.macs > 1.01 * fewer.row.macs for fewer, more in pairwise(path)):
        return [path]
    variants = dict.fromkeys(place.row.variant for place in path)
    return [[place for place in path if place.row.variant == variant] for variant in variants]


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.09 * (high - low) or 0.5
    return low - margin, high + margin


def _on_page(axes: "Axes", x: float, y: float) -> tuple[float, float]:
    """A place of the data in points of the page."""
    scale = 72 / axes.figure.dpi
    across, up = axes.transData.transform((x, y))
    return float(across) * scale, float(up) * scale


def _side_by_side(xs: Sequence[float]) -> list[float]:
    """How far to move each bar, so that bars at nearly the same place stand side by side around their middle."""
    shifts = [0.0] * len(xs)
    group: list[int] = []
    for number in [*sorted(range(len(xs)), key=lambda number: xs[number]), None]:
        if group and (number is None or xs[number] - xs[group[-1]] > _SIDE_BY_SIDE):
            middle = (xs[group[0]] + xs[group[-1]]) / 2
            for place, member in enumerate(group):
                shifts[member] = middle + (place - (len(group) - 1) / 2) * _SIDE_BY_SIDE - xs[member] if len(group) > 1 else 0.0
            group = []
        if number is not None:
            group.append(number)
    return shifts


def _pieces(path: Sequence[tuple[float, float]]) -> list[Box]:
    """Small boxes along a path, which names should not cover."""
    boxes = []
    for start, end in pairwise(path):
        for share in np.linspace(0, 1, 1 + int(np.hypot(end[0] - start[0], end[1] - start[1]) // 6)):
            x, y = (1 - share) * start[0] + share * end[0], (1 - share) * start[1] + share * end[1]
            boxes.append((x - 1, y - 1, x + 1, y + 1))
    return boxes
