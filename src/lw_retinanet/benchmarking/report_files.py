"""The files of a benchmark: numbers, tables and chart."""

import json
from pathlib import Path
from typing import Any

from lw_retinanet.benchmarking.chart import save_chart
from lw_retinanet.benchmarking.tables import markdown, stage_rows
from lw_retinanet.files import write_text


def write_report_files(folder: Path, result: dict[str, Any]) -> None:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``; ``result`` is the JSON of the report."""
    tables = markdown(result)
    if stage_rows(result):
        tables += ["", *markdown(result, stages=True)]
    write_text(folder / "benchmark.md", "\n".join(tables) + "\n")
    save_chart(result, folder / "benchmark.png")
    write_text(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")
