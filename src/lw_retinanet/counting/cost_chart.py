"""A figure of where the arithmetic goes: a bar for each block, with the head's bars split by branch and layer."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lw_retinanet.counting.profile import Profile
from lw_retinanet.drawing import save_figure
from lw_retinanet.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with colour blindness can tell apart. A branch has one hue, its prediction a lighter tone.
_COLOURS = {
    "backbone": "#8A8A8A",
    "pyramid": "#C4C4C4",
    "tower": "#009E73",
    "cls_tower": "#0072B2",
    "cls_predict": "#56B4E9",
    "bbox_tower": "#D55E00",
    "bbox_predict": "#E69F00",
    "second": "#CC79A7",
}
_LABELS = {
    "backbone": "backbone (C)",
    "pyramid": "pyramid (P)",
    "tower": "head: tower of both branches",
    "cls_tower": "head: class tower",
    "cls_predict": "head: class prediction",
    "bbox_tower": "head: box tower",
    "bbox_predict": "head: box prediction",
    "second": "heads of the second stage",
}


def save_cost_chart(profiles: Sequence[Profile], path: Path) -> None:
    """Write :func:`cost_figure` to ``path``; for errors see :func:`~lw_retinanet.drawing.save_figure`."""
    save_figure(lambda: cost_figure(profiles), path)


def cost_figure(profiles: Sequence[Profile]) -> "Figure":
    """Draw one profile, or several side by side on one scale.

    Raises:
        ConfigError: If there is no profile.
    """
    if not profiles:
        raise ConfigError("a cost chart needs at least one profile")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    most = max(cost.macs for profile in profiles for cost in profile.blocks.values()) / 1e9
    figure = Figure(figsize=(1.6 + 4.6 * len(profiles), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(profiles), sharey=True, squeeze=False)[0]
    for axes, profile in zip(panels, profiles, strict=True):
        _draw(axes, profile, most)
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    labels = [label for label in _LABELS.values() if label in shown]
    columns = 3 if len(profiles) == 1 else 6
    figure.legend([shown[label] for label in labels], labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    return figure


def _draw(axes: "Axes", profile: Profile, most: float) -> None:
    blocks = [block for block, cost in profile.blocks.items() if cost.macs or block != "other"]
    places = range(len(blocks))
    totals = [profile.blocks[block].macs / 1e9 for block in blocks]
    left = [0.0] * len(blocks)
    for key, colour in _COLOURS.items():
        widths = [_giga(profile, block, key) for block in blocks]
        if not any(widths):
            continue
        axes.barh(places, widths, left=left, color=colour, edgecolor="white", linewidth=0.5, height=0.78, label=_LABELS[key])
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, block, total in zip(places, blocks, totals, strict=True):
        share = profile.share(profile.blocks[block])
        text = f"{total:.2f}  ({share:.1%})" if total >= 0.01 else f"{total:.1g}  ({share:.1%})"
        axes.annotate(text, (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color="0.2")
    gain = f", {profile.original_macs / profile.macs:.2f}x fewer than retinanet" if profile.macs < profile.original_macs else ""
    axes.set_title(
        f"{profile.name}: {profile.macs / 1e9:.4g} GMACs{gain}\n{profile.setting}, {profile.params / 1e6:.1f} M parameters",
        loc="left",
        fontsize=10.5,
        parse_math=False,
    )
    axes.set(
        xlim=(0, most * 1.28),
        yticks=list(places),
        yticklabels=[block.replace("_", " ") for block in blocks],
        ylim=(len(blocks) - 0.5, -0.5),
    )
    axes.set_xlabel(f"GMACs an image, and share of the model ({profile.layers} only)", fontsize=9)
    axes.grid(axis="x", color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    for place, (above, below) in enumerate(pairwise(blocks)):
        if _kind(above) != _kind(below):
            axes.axhline(place + 0.5, color="0.8", linewidth=0.8)


def _giga(profile: Profile, block: str, key: str) -> float:
    """GMACs of a block that are drawn in the colour ``key``."""
    cost = profile.blocks[block]
    if _kind(block) == "D":
        return cost.parts[key].macs / 1e9 if key in cost.parts else 0.0
    return cost.macs / 1e9 if {"backbone": "C", "pyramid": "P", "second": "roi"}.get(key) == _kind(block) else 0.0


def _kind(block: str) -> str:
    """``C``, ``P``, ``D``, or ``roi`` for the heads after a proposal network."""
    return block[0] if block[1:].isdigit() else "roi"
