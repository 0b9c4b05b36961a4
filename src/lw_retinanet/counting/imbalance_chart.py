"""A figure of the ranking: the MACs of each branch now, and with a plan."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lw_retinanet.counting.imbalance import RankedBranch, Ranking
from lw_retinanet.drawing import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours: dark for the MACs that stay, pale for those that a plan saves.
_NOW = {"cls": "#A9CFE8", "bbox": "#F3C7A5", "rpn": "#A6DCCB"}
_STAYS = {"cls": "#0072B2", "bbox": "#D55E00", "rpn": "#009E73"}
_NAMES = {"cls": "class branch", "bbox": "box branch", "rpn": "both branches"}
_SMALLEST = 0.001  # share of the model; a smaller bar is not visible


def save_imbalance_chart(ranking: Ranking, path: Path, *, name: str, planned: Mapping[str, tuple[str, int]]) -> None:
    """Write :func:`imbalance_figure` to ``path``; for errors see :func:`~lw_retinanet.drawing.save_figure`."""
    save_figure(lambda: imbalance_figure(ranking, name=name, planned=planned), path)


def imbalance_figure(ranking: Ranking, *, name: str, planned: Mapping[str, tuple[str, int]]) -> "Figure":
    """Draw a bar for every branch that has at least a thousandth of the model's MACs or is in the plan, in the order of the ranking.

    Args:
        ranking: Ranking of the model as it is.
        name: Name of the model, for the title.
        planned: The plan: block, and MACs of the branch with this block, by the row's ``place``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    total = ranking.cost.macs
    rows = [row for i, row in enumerate(ranking.rows) if i == 0 or row.share >= _SMALLEST or row.place in planned]
    figure = Figure(figsize=(8.2, 1.9 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, row in enumerate(rows):
        stays = planned[row.place][1] if row.place in planned else row.macs
        axes.barh(place, row.macs / 1e9, color=_NOW[row.branch], height=0.74)
        axes.barh(place, stays / 1e9, color=_STAYS[row.branch], height=0.74)
        axes.annotate(
            _words(row, planned.get(row.place)),
            (row.macs / 1e9, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            color="0.2",
        )
    after = total - sum(row.macs - planned[row.place][1] for row in rows if row.place in planned)
    change = f"{total / 1e9:.4g} to {after / 1e9:.4g} GMACs, {total / after:.2f}x fewer" if planned else f"{total / 1e9:.4g} GMACs"
    axes.set_title(f"{name}\n{change}", loc="left", fontsize=10.5, parse_math=False)
    axes.set(xlim=(0, max(row.macs for row in rows) / 1e9 * 1.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), [row.place for row in rows])
    axes.set_xlabel("GMACs of a branch of the head on one level, and its share of the model as it is", fontsize=9)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    branches = [branch for branch in _NAMES if any(row.branch == branch for row in rows)]
    handles = [Patch(color=_STAYS[branch], label=f"{_NAMES[branch]}{', stays' if planned else ''}") for branch in branches]
    if planned:
        handles += [Patch(color=_NOW[branch], label="is saved") for branch in branches]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _words(row: RankedBranch, planned: tuple[str, int] | None) -> str:
    now = f"{row.macs / 1e9:.3g}  ({row.share:.1%})"
    return now if planned is None else f"{now}, {planned[1] / 1e9:.3g} with {planned[0]}"
