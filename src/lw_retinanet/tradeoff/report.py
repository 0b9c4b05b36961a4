"""The report of a trade-off: one HTML file with the verdict, the figures, the table, and how each number was made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.evaluation.paired import Interval
from lw_retinanet.files import write_text
from lw_retinanet.page import Html, answer, command, definitions, document, figures, joined, paragraph, section, table
from lw_retinanet.tradeoff.experiment import REGIMES
from lw_retinanet.tradeoff.figures import make_figures
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
        figures(drawn),
        *([] if any(figure.name == "latency" for figure in drawn) else [paragraph("Latency was not measured.")]),
        _table(rows),
        _method(rows, facts, how),
        section("rows", "Each row, and how to repeat it", *(_origin(row, rows, facts) for row in rows)),
    ]
    write_text(path, document(title, [answer(verdict)], parts))


_NONE = "-"


def _table(rows: Sequence[ExperimentRow]) -> Html:
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
    for number, row in enumerate(rows, start=1):
        ms, d3 = row.latency_ms, row.blocks.get("D3")
        cells = [
            *(row.line, row.regime, str(row.scale)),
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
        body.append([Html(f'<a href="#row-{number}">{escape(row.variant)}</a>'), *cells])
    begins = [number for number in range(1, len(rows)) if rows[number].line != rows[number - 1].line]
    note = "AP in points (0 to 100). A dash: nothing to find, or not comparable. Scroll sideways for more."
    return section("table", "All rows", table("table", header, body, first=begins), paragraph(note, is_soft=True))


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return _NONE
    said = f"{100 * interval.difference:+.2f} ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    kind = "more" if interval.low > 0 else "less" if interval.high < 0 else ""
    return Html(f'<span class="{kind}">{said}</span>') if kind else said


def _method(rows: Sequence[ExperimentRow], facts: Facts, how: Sequence[str]) -> Html:
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
    return section("how", "How the numbers were made", definitions(shown), *map(paragraph, paragraphs))


def _origin(row: ExperimentRow, rows: Sequence[ExperimentRow], facts: Facts) -> Html:
    number = next(place for place, other in enumerate(rows, start=1) if other is row)
    seeds = ", ".join(f"{seed}: {100 * ap:.2f}" for seed, ap in zip(row.seeds, row.aps, strict=True))
    runs = f"the mean of {len(row.seeds)} runs (AP by seed {seeds})" if len(row.seeds) > 1 else f"of one run (seed {seeds})"
    sentence = (
        f"AP {100 * row.ap.value:.2f} on {facts.images:,} images is {runs}; its interval comes from {facts.draws:,} draws. "
        f"Regime {row.regime}: {REGIMES[row.regime]}. {row.macs:,} MACs at {row.size_hw[0]} x {row.size_hw[1]} pixels (height x width), "
        f"{row.params:,} parameters; a run took {row.seconds:.0f} s."
    )
    made = "; ".join(f"{name} {value}" for name, value in row.made_with.items())
    return joined(
        Html(f'<article><h3 id="row-{number}">{escape(row.name)} ({escape(row.line)})</h3>'),
        paragraph(sentence),
        paragraph(f"Made with {made}.", is_soft=True) if made else "",
        command(row.command, label=f"command that repeats {row.name}"),
        Html("</article>"),
    )
