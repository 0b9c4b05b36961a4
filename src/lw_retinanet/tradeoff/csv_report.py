"""The rows of a trade-off as a CSV file: one line a row, units in the column names, numbers not rounded."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lw_retinanet.counting.macs import BLOCKS
from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.files import write_text
from lw_retinanet.tradeoff.rows import ExperimentRow, Latency

_INTERVAL = ("a", "b", "difference", "low", "high")
_ENDS = ("baseline", "scaling_line")
COLUMNS = (
    *("line", "role", "regime", "variant", "preset", "long_side_px", "height_px", "width_px", "macs", "params"),
    *(f"{block}_{what}" for what in ("macs", "params") for block in BLOCKS),
    *(f"latency_{end}_ms" for end in Latency._fields),
    *("seeds", "ap_of_seeds"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high")),
    *(f"against_{other}_{end}" for other in _ENDS for end in _INTERVAL),
    *("seconds_a_run", "command", "made_with"),
)
"""Metrics and differences are in 0..1. Several values in a cell are separated by a space; ``made_with`` is JSON."""


def write_csv(rows: Sequence[ExperimentRow], path: Path) -> None:
    """Write the table. A value that does not exist leaves its cell empty.

    Raises:
        OutputError: if the place cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(map(_cells, rows))
    write_text(path, stream.getvalue())


def _cells(row: ExperimentRow) -> dict[str, Any]:
    cells: dict[str, Any] = {
        "line": row.line,
        "role": row.role,
        "regime": row.regime,
        "variant": row.variant,
        "preset": row.preset,
        "long_side_px": row.scale,
        "height_px": row.size_hw[0],
        "width_px": row.size_hw[1],
        "macs": row.macs,
        "params": row.params,
        "seeds": " ".join(map(str, row.seeds)),
        "ap_of_seeds": " ".join(map(repr, row.aps)),
        "seconds_a_run": row.seconds,
        "command": row.command,
        "made_with": json.dumps(dict(row.made_with), ensure_ascii=False),
    }
    for block, cost in row.blocks.items():
        cells |= {f"{block}_macs": cost.macs, f"{block}_params": cost.params}
    if row.latency_ms:
        cells |= {f"latency_{end}_ms": value for end, value in zip(Latency._fields, row.latency_ms, strict=True)}
    for metric, estimate in row.metrics.items():
        cells |= {metric: estimate.value, f"{metric}_low": estimate.low, f"{metric}_high": estimate.high}
    for other, interval in zip(_ENDS, (row.against_baseline, row.against_scaling), strict=True):
        if interval:
            cells |= {f"against_{other}_{end}": getattr(interval, end) for end in _INTERVAL}
    return cells
