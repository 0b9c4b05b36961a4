import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from lw_retinanet.errors import OutputError
from lw_retinanet.tradeoff.report import Facts, write_report
from lw_retinanet.tradeoff.rows import ExperimentRow

VOID = {"meta", "br", "hr", "img", "input", "link"}
FACTS = Facts(data="aquarium & co", images=190, draws=1000, latency="two cores, fp32", more={"Date": "2020-01-02", "File": "a: 1\nb: <2>"})


class Page(HTMLParser):
    """Checks that tags match, and keeps what a test asks for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def text(table: list[ExperimentRow], tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    verdict = ["It depends <on> the head.", "lw-v3 beats it.", "bbox-v1 does not."]
    write_report(path, table, title="Heads & sizes", facts=FACTS, verdict=verdict, how=["Recipe <b>x</b>."])
    assert path.stat().st_size < 1_000_000
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_page_needs_nothing_from_outside(text: str, page: Page) -> None:
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "image"} == set()
    targets = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("href", "src", "xlink:href", "style")]
    assert not [value for value in targets if value and re.search(r"//|^\w+:(?!\s)", value)]
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert {value[1:] for value in targets if value and value.startswith("#")} <= set(ids)


def test_the_verdict_comes_first(text: str, page: Page) -> None:
    assert page.texts["h1"] == ["Heads & sizes"]
    assert text.index("It depends") < text.index("<svg") < text.index("<table") < text.index('id="rows"')
    assert page.texts["li"] == ["lw-v3 beats it.", "bbox-v1 does not."]


def test_texts_are_not_taken_for_html(text: str, page: Page) -> None:
    assert "It depends <on> the head." in page.texts["p"]
    assert "Recipe <b>x</b>." in page.texts["p"]
    assert any("Some CPU <2 cores>" in said for said in page.texts["p"])
    assert "<on>" not in text
    assert "<2" not in text


def test_every_row_can_be_repeated(page: Page, table: list[ExperimentRow]) -> None:
    assert page.texts["code"] == [row.command for row in table]


def test_every_row_says_how_it_was_made(page: Page) -> None:
    said = next(text for text in page.texts["p"] if text.startswith("AP 15.20"))
    for part in (
        "on 190 images is the mean of 3 runs (AP by seed 0: 14.95, 1: 15.20, 2: 15.45)",
        "1,000 draws",
        "Regime head: backbone and pyramid are those of a trained detector",
        "9,360,000,000 MACs at 320 x 416 pixels",
    ):
        assert part in said
    assert "Made with lw_retinanet 1.2.3; torch 2.10.0; processor Some CPU <2 cores>." in page.texts["p"]
    assert "two cores, fp32" in page.texts["dd"]


def test_the_table_by_hand(text: str, table: list[ExperimentRow]) -> None:
    lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", text)]
    header, first, paper = lines[0], lines[1], lines[5]
    assert len(lines) == 1 + len(table)
    assert {len(line) for line in lines} == {len(header)}
    row = dict(zip(header, paper, strict=True))
    assert re.sub("<.*?>", "", row["variant"]) == "bbox-v1, init paper"
    assert (row["GMACs"], row["times fewer"], row["D3 of GMACs"], row["AP (95 %)"]) == ("9.36", "1.25", "43.3%", "15.20 (13.2 to 17.2)")
    assert (row["APm"], row["APl"], row["ms (10 % to 90 %)"]) == ("33.3", "-", "80.5 (79.5 to 83.5)")
    assert row["AP - scaling line at equal MACs (95 %)"] == '<span class="less">-1.10 (-1.90 to -0.40)</span>'
    assert dict(zip(header, first, strict=True))["AP - baseline (95 %)"] == "baseline"
    assert dict(zip(header, lines[7], strict=True))["ms (10 % to 90 %)"] == "not measured"


def test_it_can_be_read_aloud_on_a_phone_and_at_night(text: str, page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    svgs = page.all("svg")
    assert len(svgs) == 4
    ids = {attributes.get("id") for _, attributes in page.tags}
    for svg in svgs:
        assert svg["role"] == "img"
        assert "width" not in svg  # grows and shrinks with the page
        assert set((svg["aria-labelledby"] or "").split()) <= ids
    assert all("scope" in cell for cell in page.all("th"))
    # The wide table and the commands scroll inside their own boxes, by keyboard too.
    assert '<div class="wide" role="region" aria-labelledby="table" tabindex="0"><table>' in text
    assert all(box.get("tabindex") == "0" for box in page.all("pre"))
    style = text[text.index("<style>") : text.index("</style>")]
    assert style.count("{") == style.count("}")
    used = set(re.findall(r"var\((--[\w]+)\)", text)) - {"--share"}  # which cells set themselves
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for part in (light, dark):
        assert used <= set(re.findall(r"(--\w+):", part))


def test_one_row_makes_a_report(make_row: Callable[..., ExperimentRow], tmp_path: Path) -> None:
    row = make_row(line="blocks", role="light", variant="lw-v3", latency_ms=None, seeds=(4,), aps=(0.1725,), made_with={})
    write_report(tmp_path / "report.html", [row], title="One", facts=FACTS, verdict=[])
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "Latency was not measured." in page.texts["p"]
    assert any("is of one run (seed 4: 17.25)" in said for said in page.texts["p"])


def test_a_place_that_cannot_be_written(table: list[ExperimentRow], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "file" / "report.html", table[:1], title="x", facts=FACTS, verdict=[])
