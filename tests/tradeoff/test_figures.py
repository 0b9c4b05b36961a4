import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from PIL import Image

from lw_retinanet.errors import ConfigError
from lw_retinanet.evaluation.paired import Interval
from lw_retinanet.page_figure import DARK, LIGHT, PageFigure
from lw_retinanet.tradeoff.figures import make_figures, save_figures
from lw_retinanet.tradeoff.rows import ExperimentRow


@pytest.fixture(scope="module")
def drawn(table: list[ExperimentRow]) -> dict[str, PageFigure]:
    return {figure.name: figure for figure in make_figures(table)}


def names_in(shown: PageFigure) -> list[Annotation]:
    return [text for text in shown.figure.axes[0].texts if isinstance(text, Annotation)]


def lines_in(shown: PageFigure) -> list[tuple[tuple[float, float], ...]]:
    """Points of all that is drawn as a line or as a marker."""
    return [tuple((float(x), float(y)) for x, y in np.asarray(line.get_xydata())) for line in shown.figure.axes[0].lines]


def markers_in(shown: PageFigure) -> set[str]:
    return {str(line.get_marker()) for line in shown.figure.axes[0].lines if len(np.asarray(line.get_xydata())) == 1}


@pytest.mark.parametrize("name", ["accuracy", "latency"])
def test_names_overlap_neither_each_other_nor_the_edge(drawn: dict[str, PageFigure], name: str) -> None:
    figure = drawn[name].figure
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in names_in(drawn[name])]  # without the line to its point
    # A small edge, since the letters' size depends a little on the resolution.
    assert not [pair for pair in combinations(boxes, 2) if pair[0].padded(-0.5).overlaps(pair[1].padded(-0.5))]
    assert all(figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for box in boxes)


def test_every_row_is_named_once(drawn: dict[str, PageFigure], table: list[ExperimentRow]) -> None:
    names = [text.get_text() for text in names_in(drawn["accuracy"])]
    assert names[:5] == ["416 px (baseline)", "352 px", "320 px", "256 px", "bbox-v1, init paper"]
    assert len(names) == len(table)


def test_points_and_bars_are_the_numbers(drawn: dict[str, PageFigure], table: list[ExperimentRow]) -> None:
    lines = lines_in(drawn["accuracy"])
    for row in table:
        gmacs, ap = row.macs / 1e9, 100 * row.ap.value
        assert ((gmacs, ap),) in lines
        if shift := row.against_baseline:
            bar = next(line for line in lines if len(line) == 2 and line[0][0] == line[1][0] == gmacs)
            assert bar[1][1] - bar[0][1] == pytest.approx(100 * (shift.high - shift.low))
    scaling = tuple((row.macs / 1e9, 100 * row.ap.value) for row in sorted(table[:4], key=lambda row: row.macs))
    assert scaling in lines


def test_the_shares_add_up_to_the_network(drawn: dict[str, PageFigure], table: list[ExperimentRow]) -> None:
    axes = drawn["shares"].figure.axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    ends: dict[int, float] = {}
    for bar in bars:
        place = round(bar.get_y() + bar.get_height() / 2)
        ends[place] = max(ends.get(place, 0), bar.get_x() + bar.get_width())
    # Twelve rows, of which two are one network.
    assert len(ends) == len(table) - 1
    assert ends[0] == pytest.approx(table[0].macs / 1e9)
    first = [bar for bar in bars if round(bar.get_y() + bar.get_height() / 2) == 0]
    assert [round(bar.get_width(), 3) for bar in first] == [2.55, 0.62, 6.4, 2.14]  # C, P, D3, D4 to D7 as given
    assert "D3 55%" in drawn["shares"].alt


def test_the_answer_has_the_compared_rows_by_difference(drawn: dict[str, PageFigure]) -> None:
    labels = [label.get_text() for label in drawn["answer"].figure.axes[0].get_yticklabels()]
    assert labels[0] == "lw-narrow @ 416"
    assert labels[-1] == "bbox-v1,\ninit paper @ 416"
    assert len(labels) == 7  # not the one outside the measured range
    assert markers_in(drawn["answer"]) == {"^", "o", "v"}


def test_what_was_not_measured_is_said(drawn: dict[str, PageFigure], table: list[ExperimentRow]) -> None:
    assert "Not measured: bbox-v2 @ 416." in drawn["latency"].caption
    without = [replace(row, latency_ms=None) for row in table[:5]]
    assert [figure.name for figure in make_figures(without)] == ["answer", "accuracy", "shares"]


def test_one_row_alone(make_row: Callable[..., ExperimentRow]) -> None:
    # What a newcomer gets who repeats one row: no baseline, no line, nothing to compare with.
    alone = make_row(line="blocks", role="light", variant="lw-v3 $x$ & <y>", preset="lw-v3")
    drawn = make_figures([alone])
    assert [figure.name for figure in drawn] == ["accuracy", "latency", "shares"]
    for figure in drawn:
        ET.fromstring(figure.svg())
    with pytest.raises(ConfigError, match="at least one row"):
        make_figures([])


def test_svg_takes_all_its_colours_from_the_page(drawn: dict[str, PageFigure]) -> None:
    for figure in drawn.values():
        svg = figure.svg()
        root = ET.fromstring(svg)
        assert not re.findall(r"#[0-9a-fA-F]{3,8}\b(?![-\w])", re.sub(r'(?:href="|url\()#[^")]*', "", svg))
        assert "var(--ink)" in svg
        for element in root.iter():  # what says nothing of its colour is black, and unseen in the dark
            if element.tag.endswith("}text"):
                assert "fill: var(--" in element.get("style", "")
        outside = re.findall(r'https?://[^"]*', svg)
        assert outside == ["http://www.w3.org/2000/svg"]
        ids = re.findall(r'\bid="([^"]*)"', svg)
        assert len(set(ids)) == len(ids)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) <= set(ids)


def test_the_same_rows_give_the_same_figure(drawn: dict[str, PageFigure], table: list[ExperimentRow]) -> None:
    again = make_figures(table[:1] + table[1:])
    assert [figure.svg() for figure in again] == [drawn[figure.name].svg() for figure in again]


def test_files(drawn: dict[str, PageFigure], table: list[ExperimentRow], tmp_path: Path) -> None:
    paths = save_figures(table[3:6], tmp_path)
    assert [path.name for path in paths] == ["answer.png", "accuracy.png", "latency.png", "shares.png"]
    with Image.open(paths[1]) as image:
        assert image.width == 870  # 5.8 inches at 150 dpi
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast(colours: dict[str, str]) -> None:
    # WCAG 2: 4.5 for text, 3 for what must be seen in a figure.
    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(role: str) -> float:
        light, dark = sorted((luminance(colours[role]), luminance(colours["paper"])), reverse=True)
        return (light + 0.05) / (dark + 0.05)

    assert min(contrast(role) for role in ("ink", "soft")) >= 4.5
    assert min(contrast(role) for role in ("blue", "red", "green", "purple", "backbone")) >= 3
    assert len(set(colours.values())) == len(colours)  # two roles of one colour could not be told apart in a drawing
    assert set(LIGHT) == set(DARK)


def test_an_interval_that_touches_nothing_is_drawn_for_a_tie(make_row: Callable[..., ExperimentRow]) -> None:
    tie = Interval(a=0.17, b=0.17, difference=0.0, low=0.0, high=0.0)
    rows = [make_row(), make_row(line="blocks", role="light", variant="same", against_scaling=tie, against_baseline=tie)]
    assert markers_in(make_figures(rows)[0]) == {"o"}
