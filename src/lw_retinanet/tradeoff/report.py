"""The report of a trade-off: one HTML file with the verdict, the figures, the table, and how each number was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.evaluation.paired import Interval
from lw_retinanet.files import write_text
from lw_retinanet.tradeoff.experiment import REGIMES
from lw_retinanet.tradeoff.figures import make_figures
from lw_retinanet.tradeoff.page_figure import DARK, LIGHT, PageFigure, css_variables
from lw_retinanet.tradeoff.rows import ExperimentRow, baseline_row


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the numbers of all rows depend on.

    Args:
        data: Name of the dataset.
        images: Number of validation images that AP was measured on.
        draws: How often the images were drawn for an interval.
        latency: How and where latency was measured; empty if it was not.
        more: Other facts by name, in the order in which they are shown.
    """

    data: str
    images: int
    draws: int
    latency: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


def write_report(
    path: Path, rows: Sequence[ExperimentRow], *, title: str, facts: Facts, verdict: Sequence[str], how: Sequence[str] = ()
) -> None:
    """Write the page: one file of some 200 KB without scripts that loads nothing, for wide and narrow, light and dark screens.

    Args:
        path: HTML file to write.
        rows: All rows.
        title: Heading of the page.
        facts: What the numbers depend on.
        verdict: Sentences of :func:`lw_retinanet.tradeoff.verdict.verdict`.
        how: Further paragraphs, as plain text, on how the numbers were made.

    Raises:
        ConfigError: if there is no row.
        OutputError: if the place cannot be written.
    """
    drawn = make_figures(rows)
    parts = [
        f"<header><h1>{escape(title)}</h1>{_verdict(verdict)}</header>",
        "<main>",
        '<section class="pictures">' + "".join(map(_figure, drawn)) + "</section>",
        *([] if any(figure.name == "latency" for figure in drawn) else ["<p>Latency was not measured.</p>"]),
        _table(rows),
        _method(rows, facts, how),
        '<section><h2 id="rows">Each row, and how to repeat it</h2>' + "".join(_origin(row, rows, facts) for row in rows) + "</section>",
        "</main>",
    ]
    write_text(path, f"{_HEAD.replace('TITLE', escape(title)).replace('STYLE', _STYLE)}<body>\n" + "\n".join(parts) + "\n</body></html>\n")


_NONE = "-"
# The policy makes browsers load nothing, even if a text of the experiment contained HTML.
_HEAD = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
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
.pictures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2.5rem; align-items: start; }}
figure {{ margin: 0; max-width: 40rem; }}
a {{ color: inherit; }}
figure h2 {{ margin-top: 1rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg text {{ font-family: system-ui, sans-serif !important; }}
figcaption, .soft {{ color: var(--soft); font-size: .9rem; }}
.wide {{ overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; }}
.wide:focus-visible, pre:focus-visible {{ outline: 2px solid var(--blue); }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }}
th, td {{ padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }}
thead th {{ vertical-align: bottom; color: var(--soft); font-weight: 600; }}
tbody th {{ position: sticky; left: 0; background: var(--paper); text-align: left; max-width: 11rem;
  white-space: normal; }}
thead th:first-child {{ position: sticky; left: 0; background: var(--paper); text-align: left; }}
tr.first > * {{ border-top: 2px solid var(--soft); }}
.more {{ color: var(--green); font-weight: 600; }}
.less {{ color: var(--red); font-weight: 600; }}
pre {{ background: var(--raised); border-radius: 6px; padding: .6rem .8rem; overflow-x: auto; user-select: all; font-size: .85rem; }}
dt {{ font-weight: 600; }}
dd {{ margin: 0 0 .4rem; }}
@media (prefers-color-scheme: light) {{ .less {{ color: #b34700; }} .more {{ color: #00734f; }} }}
"""


def _verdict(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    rest = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences[1:])
    return f'<p class="answer">{escape(sentences[0])}</p>' + (f"<ul>{rest}</ul>" if rest else "")


def _figure(figure: PageFigure) -> str:
    return f"<figure><h2>{escape(figure.title)}</h2>{figure.svg()}<figcaption>{escape(figure.caption)}</figcaption></figure>"


def _table(rows: Sequence[ExperimentRow]) -> str:
    baseline = baseline_row(rows)
    header = [
        *("variant", "line", "regime", "long side, px", "GMACs", "times fewer", "M parameters", "D3 of GMACs"),
        *(
            "AP (95 %)",
            *METRICS[1:],
            "AP - baseline (95 %)",
            "AP - scaling line at equal MACs (95 %)",
            "ms (10 % to 90 %)",
            "s a run",
            "runs",
        ),
    ]
    body = []
    for number, row in enumerate(rows):
        ms, d3 = row.latency_ms, row.blocks.get("D3")
        cells = [
            *(escape(row.line), escape(row.regime), str(row.scale)),
            *(
                f"{row.macs / 1e9:.2f}",
                f"{baseline.macs / row.macs:.2f}" if baseline else _NONE,
                f"{row.params / 1e6:.2f}",
                f"{d3.macs / row.macs:.1%}" if d3 else _NONE,
            ),
            f"{100 * row.ap.value:.2f} ({100 * row.ap.low:.1f} to {100 * row.ap.high:.1f})",
            *(f"{100 * row.metrics[name].value:.1f}" if name in row.metrics else _NONE for name in METRICS[1:]),
            "baseline" if row is baseline else _difference(row.against_baseline),
            _difference(row.against_scaling),
            f"{ms.median:.1f} ({ms.low:.1f} to {ms.high:.1f})" if ms else "not measured",
            *(f"{row.seconds:.0f}", str(len(row.seeds))),
        ]
        opening = '<tr class="first">' if number and row.line != rows[number - 1].line else "<tr>"
        name = f'<th scope="row"><a href="#row-{number + 1}">{escape(row.variant)}</a></th>'
        body.append(f"{opening}{name}" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return (
        '<section><h2 id="table">All rows</h2><div class="wide" role="region" aria-labelledby="table" tabindex="0">'
        f"<table><thead><tr>{columns}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        '<p class="soft">AP in points (0 to 100). A dash: nothing to find, or not comparable. Scroll sideways for more.</p></section>'
    )


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return _NONE
    said = f"{100 * interval.difference:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    kind = "more" if interval.low > 0 else "less" if interval.high < 0 else ""
    return f'<span class="{kind}">{said}</span>' if kind else said


def _method(rows: Sequence[ExperimentRow], facts: Facts, how: Sequence[str]) -> str:
    regimes = [regime for regime in REGIMES if any(row.regime == regime for row in rows)]
    shown = {
        "Data": f"{facts.data}, {facts.images:,} validation images",
        "Intervals": f"95 %, from {facts.draws:,} draws of images and runs",
        **({"Latency": facts.latency} if facts.latency else {}),
        **{f"Regime “{regime}”": REGIMES[regime] for regime in regimes},
        **facts.more,
    }
    paragraphs = [
        "AP is COCO's, in points, the mean over the runs of a row. Its interval comes from drawing the images with replacement, and the "
        "runs too. A difference uses the same draws for both sides, so what makes images hard for both does not widen it: two rows whose "
        "own intervals overlap can still differ for certain. Of few runs, an interval is a little too narrow in the part that they add.",
        "At equal MACs means: the scaling line's AP at the row's own MACs, on a straight line between the two measured sizes around it, in "
        "every draw. It is never drawn beyond the measured sizes. AP bends as it grows with cost, so the truth may lie a little above that "
        "line. Of twenty intervals at 95 %, one misses the truth by chance.",
        "MACs are multiply-accumulates of the convolutions for one image of the commonest padded size; FLOPs = 2 x MACs.",
        *how,
    ]
    entries = "".join(f"<dt>{escape(name)}</dt><dd>{_value(value)}</dd>" for name, value in shown.items())
    return (
        f'<section><h2 id="how">How the numbers were made</h2><dl>{entries}</dl>'
        + "".join(f"<p>{escape(p)}</p>" for p in paragraphs)
        + "</section>"
    )


def _value(text: str) -> str:
    return f'<pre tabindex="0">{escape(text)}</pre>' if "\n" in text else escape(text)


def _origin(row: ExperimentRow, rows: Sequence[ExperimentRow], facts: Facts) -> str:
    number = next(place for place, other in enumerate(rows, start=1) if other is row)
    seeds = ", ".join(f"{seed}: {100 * ap:.2f}" for seed, ap in zip(row.seeds, row.aps, strict=True))
    runs = f"the mean of {len(row.seeds)} runs (AP by seed {seeds})" if len(row.seeds) > 1 else f"of one run (seed {seeds})"
    sentence = (
        f"AP {100 * row.ap.value:.2f} on {facts.images:,} images is {runs}; its interval comes from {facts.draws:,} draws. "
        f"Regime {row.regime}: {REGIMES[row.regime]}. {row.macs:,} MACs at {row.size_hw[0]} x {row.size_hw[1]} pixels (height x width), "
        f"{row.params:,} parameters; a run took {row.seconds:.0f} s."
    )
    made = "; ".join(f"{name} {value}" for name, value in row.made_with.items())
    return (
        f'<article><h3 id="row-{number}">{escape(row.name)} ({escape(row.line)})</h3><p>{escape(sentence)}</p>'
        + (f'<p class="soft">Made with {escape(made)}.</p>' if made else "")
        + f'<pre tabindex="0" aria-label="command that repeats {escape(row.name)}"><code>{escape(row.command)}</code></pre></article>'
    )
