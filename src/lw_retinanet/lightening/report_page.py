"""The report of lightening as files: JSON, a figure, and an HTML page that holds both."""

import base64
import html
import json
from pathlib import Path

from lw_retinanet import __version__
from lw_retinanet.files import write_bytes, write_text
from lw_retinanet.lightening.report import LighteningReport
from lw_retinanet.lightening.report_figure import stages_figure

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
td { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; border-radius: 6px; margin: 1rem 0; }
p { max-width: 46rem; }
"""


def write_report(report: LighteningReport, folder: Path) -> None:
    """Write ``report.json``, ``stages.png`` and ``report.html``, which needs no other file."""
    write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
    figure = stages_figure(report)
    write_bytes(folder / "stages.png", figure)
    write_text(folder / "report.html", _page(report, figure))


def _page(report: LighteningReport, figure: bytes) -> str:
    header, *rows = report.table()
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = html.escape(f"{report.source} lightened to {report.to}")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report.notes())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<img alt="AP after each stage and the curve of the fit" src="data:image/png;base64,{base64.b64encode(figure).decode()}">'
        f"{notes}<p>lw_retinanet {__version__}; the same numbers as JSON: report.json.</p></body></html>\n"
    )
