"""A figure as a PNG file, or as SVG that takes its colours from the page around it."""

import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lw_retinanet.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 5.8  # inches, so that letters are 9 pixels high on a phone

SERIES = (("blue", "o"), ("red", "s"), ("green", "D"), ("purple", "^"))
"""Colour and marker of each line of a figure: it can be read without colours, too."""

LIGHT: Mapping[str, str] = {
    "ink": "#1f2328",
    "soft": "#59636e",
    "rule": "#d8dce0",
    "paper": "#ffffff",
    # The colours of Okabe and Ito, which any kind of colour vision tells apart, some a little darker for white paper.
    "blue": "#0072b2",
    "red": "#d55e00",
    "green": "#008a64",
    "purple": "#a8487f",
    "backbone": "#8a8f96",
    "pyramid": "#c4c8cd",
}
"""Colours by role, on white."""

DARK: Mapping[str, str] = {
    "ink": "#e6e8eb",
    "soft": "#a3abb4",
    "rule": "#3a4048",
    "paper": "#16191d",
    "blue": "#56b4e9",
    "red": "#f28c3a",
    "green": "#2fc79a",
    "purple": "#e29ac4",
    "backbone": "#7d848c",
    "pyramid": "#535a62",
}
"""The same roles on a dark page."""


@dataclass(frozen=True, kw_only=True)
class PageFigure:
    """A figure with the words that belong to it.

    Args:
        name: Name of its file, without the ending.
        title: Heading above it.
        caption: Text below it that says how to read it.
        alt: Text that says what it shows to people who cannot see it.
        figure: Figure in the colours of ``LIGHT`` alone.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: "Figure"

    def save_png(self, folder: Path) -> Path:
        """Write ``NAME.png`` on white, 150 dpi, and return its path.

        Raises:
            OutputError: if the place cannot be written.
        """
        content = io.BytesIO()
        with _any_letters():
            self.figure.savefig(content, format="png", dpi=150, facecolor=LIGHT["paper"])
        path = folder / f"{self.name}.png"
        write_bytes(path, content.getvalue())
        return path

    def svg(self) -> str:
        """An ``<svg>`` element for a page that defines the colours as CSS variables, see :func:`css_variables`.

        It takes the width of its surroundings and loads nothing. Its identifiers differ from those of other figures on the page.
        """
        from matplotlib import rc_context

        stream = io.StringIO()
        # Text stays text, and the same figure gives the same ids.
        with _any_letters(), rc_context({"svg.fonttype": "none", "svg.hashsalt": self.name}):
            self.figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
        text = re.sub(r"<metadata>.*?</metadata>", "", stream.getvalue(), flags=re.DOTALL)
        text = text[text.index("<svg") :]
        text = re.sub(r' (?:xmlns:xlink|version)="[^"]*"', "", text, count=2).replace("xlink:href", "href")
        text = re.sub(r'\bid="', f'id="{self.name}-', text)
        text = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", text)
        for role, colour in LIGHT.items():
            text = text.replace(colour, f"var(--{role})")
        viewbox = re.search(r'viewBox="[^"]*"', text)
        assert viewbox
        name, alt = f"{self.name}-title", f"{self.name}-desc"
        opening = (
            f'<svg xmlns="http://www.w3.org/2000/svg" {viewbox[0]} role="img" aria-labelledby="{name} {alt}">'
            f'<title id="{name}">{html.escape(self.title)}</title><desc id="{alt}">{html.escape(self.alt)}</desc>'
        )
        return opening + text[text.index(">") + 1 :].strip()


def css_variables(colours: Mapping[str, str]) -> str:
    """Colours by role as the definitions of CSS variables."""
    return " ".join(f"--{role}: {colour};" for role, colour in colours.items())


@contextmanager
def drawing_style() -> Iterator[None]:
    """A context in which figures are made in the colours of ``LIGHT``."""
    from matplotlib import rc_context

    ink, soft, rule = LIGHT["ink"], LIGHT["soft"], LIGHT["rule"]
    style = rc_context(
        {
            "text.color": ink,
            "axes.labelcolor": ink,
            "axes.edgecolor": soft,
            "axes.facecolor": "none",
            "axes.titlecolor": ink,
            "xtick.color": soft,
            "ytick.color": soft,
            "xtick.labelcolor": ink,
            "ytick.labelcolor": ink,
            "grid.color": rule,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9.5,
            "axes.labelsize": 9.5,
            "legend.fontsize": 9.5,
            "legend.frameon": False,
            "text.parse_math": False,  # names may contain dollars
        }
    )
    with style, _any_letters():
        yield


@contextmanager
def _any_letters() -> Iterator[None]:
    """No warning for letters that the font lacks: it draws a box instead."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def new_figure(height: float, *, rows: int = 1, height_ratios: Sequence[float] = (1.0,)) -> "tuple[Figure, list[Axes]]":
    """An empty figure of the page's width with plots one above the other. Make it inside :func:`drawing_style`.

    Args:
        height: In inches.
        rows: Number of plots, which share the horizontal axis.
        height_ratios: One for each plot.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.07))
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, 1, sharex=True, squeeze=False, height_ratios=height_ratios)[:, 0])


def settle(figure: "Figure") -> None:
    """Lay out once and for all, since each further drawing would move things a little."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
