"""The report of lightening as files: JSON, figures, and an HTML page that holds everything."""

import json
from pathlib import Path

from lw_retinanet import __version__
from lw_retinanet.files import write_text
from lw_retinanet.lightening.report import LighteningReport
from lw_retinanet.lightening.report_figure import report_figures
from lw_retinanet.page import answer, document, figures, paragraph, section, table


def write_report(report: LighteningReport, folder: Path) -> None:
    """Write ``report.json``, ``stages.png``, with a fit ``fit.png``, and ``report.html``, which needs no other file."""
    write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
    drawn = report_figures(report)
    for figure in drawn:
        figure.save_png(folder)
    first, *notes = report.notes()
    header, *rows = report.table()
    parts = [
        section("table", "Stages", table("table", header, rows), *map(paragraph, notes)),
        figures(drawn),
        paragraph(f"lw_retinanet {__version__}; the same numbers as JSON: report.json.", is_soft=True),
    ]
    write_text(folder / "report.html", document(f"{report.source} lightened to {report.to}", [answer([first])], parts))
