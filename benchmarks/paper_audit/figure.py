"""The paper's two lines, against the costs that it prints and against those of one counter."""

from pathlib import Path
from typing import TYPE_CHECKING

from lw_retinanet.files import replacing

from .printed import titled
from .readings import STANDARD, Reading
from .scaling_line import advantages, light_points, scaling_line

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's blue and vermilion, which any kind of colour vision tells apart.
_SCALING, _LIGHT = "#0072B2", "#D55E00"


def facts() -> str:
    """The plotted numbers in words, stored in the figure, so that a test can check that it is up to date."""
    parts = []
    for name, reading in (("printed", None), ("counted", STANDARD)):
        points = [*scaling_line(reading), *light_points(reading).values()]
        parts.append(f"{name}: " + ", ".join(f"{gmacs:.2f} {ap}" for gmacs, ap in points))
    return "; ".join(parts)


def save_figure(path: Path) -> None:
    """Draw and write the PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _draw(left, None, "costs as the paper prints them")
    _draw(right, STANDARD, "costs by one counter")
    left.set_ylabel("AP on test-dev, as the paper prints it")
    left.legend(frameon=False, loc="lower right", fontsize=9)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None, "Description": facts()})


def _draw(axes: "Axes", reading: Reading | None, title: str) -> None:
    scaling, light = scaling_line(reading), light_points(reading)
    lines = ((scaling, _SCALING, "o", "smaller image"), ([scaling[0], *light.values()], _LIGHT, "s", "lighter D3"))
    for points, colour, marker, label in lines:
        # Both AP are printed to a tenth, so each may be off by half of that.
        costs, aps = zip(*points, strict=True)
        axes.errorbar(costs, aps, yerr=0.05, label=label, color=colour, marker=marker, markersize=5, capsize=2, linewidth=1.2)
    for scale, point in zip((800, 700, 600), scaling, strict=True):
        axes.annotate(str(scale), point, xytext=(7, -13), textcoords="offset points", color=_SCALING, fontsize=8.5)
    for name, point in light.items():
        below = advantages(reading)[name] < 0  # the label keeps clear of the other line
        place, side = ((9, -11), "left") if below else ((-7, 6), "right")
        axes.annotate(titled(name), point, xytext=place, textcoords="offset points", ha=side, color=_LIGHT, fontsize=8.5)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("GFLOPs of the paper" if reading is None else "GMACs at 800 x 800, stride in the 1x1")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
