"""The parts of a report: one HTML file for light and dark, wide and narrow screens, without scripts, that loads nothing."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lw_retinanet.page_figure import DARK, LIGHT, PageFigure, css_variables


class Html(str):
    """Text that is HTML already. Every function here escapes all other text."""

    __slots__ = ()


@dataclass(frozen=True)
class Shaded:
    """A cell of a table whose background says how large its number is, beside the number itself.

    Args:
        text: What the cell says.
        share: 0 (no shade) to 1.
    """

    text: str
    share: float


# The policy makes browsers load nothing, even if a text contained HTML.
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">"
    "<title>TITLE</title><style>STYLE</style></head>"
)
_STYLE = f"""
:root {{ color-scheme: light dark; {css_variables(LIGHT)} --raised: #f3f5f7; }}
@media (prefers-color-scheme: dark) {{ :root {{ {css_variables(DARK)} --raised: #20252b; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 82rem; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: .5rem 0 1rem; }}
h2 {{ font-size: 1.2rem; margin: 2rem 0 .5rem; }}
h3 {{ font-size: 1rem; margin: 1.5rem 0 .25rem; }}
p, li, dl {{ max-width: 46rem; }}
.answer {{ font-size: 1.15rem; font-weight: 600; border-left: 4px solid var(--blue); padding-left: .8rem; }}
.findings > li {{ margin: .6rem 0; padding-left: .3rem; }}
nav {{ margin: 1.2rem 0; line-height: 2; }}
nav a {{ margin-right: .9rem; white-space: nowrap; }}
.pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2.5rem; align-items: start; }}
figure {{ margin: 0; max-width: 40rem; }}
a {{ color: inherit; }}
figure h2, figure h3 {{ margin-top: 1rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
img {{ display: block; max-width: 100%; height: auto; border-radius: 4px; }}
.images {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); gap: 1rem; }}
.images.pairs {{ grid-template-columns: repeat(auto-fill, minmax(min(100%, 36rem), 1fr)); }}
.images figure {{ max-width: none; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: .4rem; align-items: start; }}
.pair img {{ width: 100%; }}
@media (max-width: 30rem) {{ .pair {{ grid-template-columns: 1fr; }} }}
figcaption, .soft {{ color: var(--soft); font-size: .9rem; }}
.wide {{ overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; width: fit-content; max-width: 100%; }}
.wide:focus-visible, pre:focus-visible {{ outline: 2px solid var(--blue); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }}
thead th {{ vertical-align: bottom; color: var(--soft); font-weight: 600; }}
tbody th {{ position: sticky; left: 0; background: var(--paper); text-align: left; max-width: 11rem;
  white-space: normal; }}
thead th:first-child {{ position: sticky; left: 0; background: var(--paper); text-align: left; }}
tr.first > * {{ border-top: 2px solid var(--soft); }}
td.shaded {{ background: color-mix(in srgb, var(--blue) calc(var(--share) * 45%), transparent); }}
.more {{ color: var(--green); font-weight: 600; }}
.less {{ color: var(--red); font-weight: 600; }}
pre {{ background: var(--raised); border-radius: 6px; padding: .6rem .8rem; overflow-x: auto; user-select: all; font-size: .85rem; }}
summary {{ cursor: pointer; margin: .6rem 0; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0 0 .4rem; }}
@media (prefers-color-scheme: light) {{ .less {{ color: #b34700; }} .more {{ color: #00734f; }} }}
"""


def document(title: str, top: Iterable[Html], parts: Iterable[Html]) -> str:
    """The whole file.

    Args:
        title: Heading of the page.
        top: What stands below the heading, before everything else.
        parts: The sections.
    """
    head = _HEAD.replace("TITLE", escape(title)).replace("STYLE", _STYLE)
    header = f"<header><h1>{escape(title)}</h1>{''.join(top)}</header>"
    return f"{head}<body>\n{header}\n<main>\n" + "\n".join(parts) + "\n</main>\n</body></html>\n"


def answer(sentences: Sequence[str]) -> Html:
    """What the page says in short: the first sentence large, the others as a list. Nothing without sentences."""
    if not sentences:
        return Html()
    return Html(f'<p class="answer">{escape(sentences[0])}</p>{bullets(sentences[1:])}')


def bullets(items: Sequence[str], *, kind: str = "") -> Html:
    """A list; nothing without items.

    Args:
        kind: Class of the list; ``findings`` numbers the items.
    """
    if not items:
        return Html()
    tag = "ol" if kind else "ul"
    opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return Html(opening + "".join(f"<li>{text(item)}</li>" for item in items) + f"</{tag}>")


def text(value: str) -> Html:
    """Text as HTML; HTML as it is."""
    return value if isinstance(value, Html) else Html(escape(value))


def strong(value: str) -> Html:
    """Text that stands out."""
    return Html(f"<strong>{text(value)}</strong>")


def joined(*parts: str) -> Html:
    """Texts and HTML, one after another."""
    return Html("".join(map(text, parts)))


def paragraph(value: str, *, is_soft: bool = False) -> Html:
    """One paragraph; a soft one is smaller and grey."""
    return Html(('<p class="soft">' if is_soft else "<p>") + f"{text(value)}</p>")


def section(name: str, title: str, *parts: str) -> Html:
    """A part of the page under a heading, which links find as ``#name``."""
    return Html(f'<section><h2 id="{escape(name)}">{escape(title)}</h2>' + "".join(map(text, parts)) + "</section>")


def subheading(title: str) -> Html:
    """A heading inside a section."""
    return Html(f"<h3>{escape(title)}</h3>")


def contents(titles: Mapping[str, str]) -> Html:
    """Links to sections, by the name of the section."""
    links = "".join(f'<a href="#{escape(name)}">{escape(title)}</a> ' for name, title in titles.items())
    return Html(f'<nav aria-label="Contents">{links}</nav>')


def figures(drawn: Iterable[PageFigure], *, level: int = 2) -> Html:
    """Figures with their titles and captions, side by side where there is room.

    Args:
        level: Of the headings: 2 where figures stand on their own, 3 inside a section.
    """
    parts = (
        f"<figure><h{level}>{escape(one.title)}</h{level}>{one.svg()}<figcaption>{escape(one.caption)}</figcaption></figure>"
        for one in drawn
    )
    return Html('<div class="pictures">' + "".join(parts) + "</div>")


def table(name: str, header: Sequence[str], rows: Iterable[Sequence[str | Shaded]], *, first: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways in its own box, by keyboard too. The first cell of a row is its heading.

    Args:
        name: The id of what says what the table is: of the section's heading.
        first: Numbers of the rows that begin a new group.
    """
    begins = set(first)
    body = "".join(
        ('<tr class="first">' if number in begins else "<tr>")
        + f'<th scope="row">{text(_said(cells[0]))}</th>'
        + "".join(map(_cell, cells[1:]))
        + "</tr>"
        for number, cells in enumerate(rows)
    )
    columns = "".join(f'<th scope="col">{text(cell)}</th>' for cell in header)
    return Html(
        f'<div class="wide" role="region" aria-labelledby="{escape(name)}" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _said(cell: str | Shaded) -> str:
    return cell.text if isinstance(cell, Shaded) else cell


def _cell(cell: str | Shaded) -> str:
    if isinstance(cell, Shaded):
        return f'<td class="shaded" style="--share: {cell.share:.3f}">{text(cell.text)}</td>'
    return f"<td>{text(cell)}</td>"


def definitions(entries: Mapping[str, str]) -> Html:
    """Names and what they stand for. Values of several lines are shown as they are."""
    items = ((name, Html(f'<pre tabindex="0">{escape(value)}</pre>') if "\n" in value else text(value)) for name, value in entries.items())
    return Html("<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in items) + "</dl>")


def preformatted(lines: Sequence[str]) -> Html:
    """Lines of text as they are."""
    return Html('<pre tabindex="0">' + escape("\n".join(lines)) + "</pre>")


def command(line: str, *, label: str) -> Html:
    """A command to copy; ``label`` says what it does."""
    return Html(f'<pre tabindex="0" aria-label="{escape(label)}"><code>{escape(line)}</code></pre>')


def link(name: str, words: str) -> Html:
    """A link to a section."""
    return Html(f'<a href="#{escape(name)}">{escape(words)}</a>')


def folded(title: str, content: Html) -> Html:
    """Content that is shown after a click on its title."""
    return Html(f"<details><summary>{escape(title)}</summary>{content}</details>")


def image(content: bytes, alt: str, *, kind: str = "jpeg") -> Html:
    """An image that is inside the page."""
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">')


def captioned(caption: str, *images: Html) -> Html:
    """One image, or two side by side, with a caption."""
    content = images[0] if len(images) == 1 else f'<div class="pair">{"".join(images)}</div>'
    return Html(f"<figure>{content}<figcaption>{text(caption)}</figcaption></figure>")


def gallery(entries: Sequence[Html], *, are_pairs: bool = False) -> Html:
    """Captioned images in a grid."""
    return Html(('<div class="images pairs">' if are_pairs else '<div class="images">') + "".join(entries) + "</div>")
