"""The results of an experiment: table, figures, report, and a few lines for the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.evaluation.paired import Interval
from lw_retinanet.tables import aligned
from lw_retinanet.tradeoff.csv_report import write_csv
from lw_retinanet.tradeoff.figures import save_figures
from lw_retinanet.tradeoff.report import write_report
from lw_retinanet.tradeoff.rows import ExperimentRow
from lw_retinanet.tradeoff.runner import Runner
from lw_retinanet.tradeoff.summary import Summary, facts
from lw_retinanet.tradeoff.verdict import verdict

TABLE_FILE = "table.csv"
REPORT_FILE = "report.html"
_JSON = (
    *("line", "regime", "variant", "scale", "size_hw", "macs", "params", "latency_ms", "seeds", "aps", "metrics"),
    *("against_baseline", "against_scaling", "command"),
)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What was written, and what it says.

    Args:
        rows: Rows of the table.
        verdict: Sentences of the verdict.
        files: Table, report and figures.
    """

    rows: Sequence[ExperimentRow]
    verdict: Sequence[str]
    files: Sequence[Path]

    def as_dict(self) -> dict[str, Any]:
        """Plain values: rows, verdict, and paths of the files."""
        return {
            "rows": [_row_dict(row) for row in self.rows],
            "verdict": list(self.verdict),
            "files": [str(file) for file in self.files],
        }

    def lines(self) -> list[str]:
        """A table for people with AP in points (0..100), the verdict, and the path of the report."""
        header = ("", "GMACs", "AP", "95 % interval", "at equal GMACs", "against the baseline", "runs")
        table = aligned([header, *(_cells(row) for row in self.rows)])
        return [*table, "", *self.verdict, "", f"report: {next(file for file in self.files if file.name == REPORT_FILE)}"]


def write_all(runner: Runner, summary: Summary) -> Results:
    """Write ``table.csv``, ``report.html`` and the figures into the folder of the experiment.

    Raises:
        OutputError: if the place cannot be written.
    """
    rows = list(summary.rows)
    said = verdict(rows, images=runner.held_out.num_images, initialisation=summary.initialisation, pairs=summary.pairs)
    table, page = runner.out / TABLE_FILE, runner.out / REPORT_FILE
    write_csv(rows, table)
    figures = save_figures(rows, runner.out)
    write_report(page, rows, title=f"Trade-off: {runner.experiment.name}", facts=facts(runner), verdict=said)
    return Results(rows=rows, verdict=said, files=[table, page, *figures])


def _row_dict(row: ExperimentRow) -> dict[str, Any]:
    plain = {name: getattr(row, name) for name in _JSON}
    return plain | {
        "latency_ms": row.latency_ms.median if row.latency_ms else None,
        "metrics": {name: vars(estimate) for name, estimate in row.metrics.items()},
        "against_baseline": vars(row.against_baseline) if row.against_baseline else None,
        "against_scaling": vars(row.against_scaling) if row.against_scaling else None,
    }


def _cells(row: ExperimentRow) -> tuple[str, ...]:
    interval = f"{100 * row.ap.low:.2f} .. {100 * row.ap.high:.2f}"
    shifts = (_shift(row.against_scaling), _shift(row.against_baseline))
    return (row.name, f"{row.macs / 1e9:.2f}", f"{100 * row.ap.value:.2f}", interval, *shifts, str(len(row.seeds)))


def _shift(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.difference:+.2f} ({100 * interval.low:+.2f} .. {100 * interval.high:+.2f})"
