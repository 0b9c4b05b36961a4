"""The rows of a trade-off as a CSV file: one line a row, units in the column names, numbers unrounded."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from lw_retinanet.errors import InputError
from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.evaluation.paired import Estimate, Interval
from lw_retinanet.files import write_text
from lw_retinanet.tradeoff.experiment import Regime
from lw_retinanet.tradeoff.rows import BLOCKS, BlockCost, Latency, Role, Row

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
"""Metrics and differences in 0..1. Several values in a cell have a space between them; ``made_with`` is JSON."""

T = TypeVar("T")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the table; an empty cell is a value that there is not.

    Raises:
        OutputError: if the place cannot be written.
    """
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS)
    writer.writeheader()
    writer.writerows(map(_cells, rows))
    write_text(path, stream.getvalue())


def read_csv(path: Path) -> list[Row]:
    """Read what :func:`write_csv` wrote, equal to what it was given.

    Raises:
        InputError: if the file cannot be read or is none of ours; names line and column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: no column {missing[0]!r}; give a table that `lw-retinanet tradeoff` wrote")
            return [_row(cells, f"{path}, line {reader.line_num}") for cells in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a CSV table ({error}); give a table that `lw-retinanet tradeoff` wrote") from None


def _cells(row: Row) -> dict[str, Any]:
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


def _row(cells: Mapping[str, str | None], where: str) -> Row:
    def get(name: str, kind: Callable[[str], T]) -> T:
        text = cells[name]
        try:
            return kind(text or "")
        except ValueError:
            raise InputError(f"{where}: {name} is {text!r}; give a table that `lw-retinanet tradeoff` wrote") from None

    def several(name: str, kind: Callable[[str], T]) -> tuple[T, ...]:
        return get(name, lambda text: tuple(kind(part) for part in text.split()))

    def interval(other: str) -> Interval | None:
        names = {end: f"against_{other}_{end}" for end in _INTERVAL}
        return Interval(**{end: get(name, float) for end, name in names.items()}) if cells[names["a"]] else None

    def one_of(name: str, known: Sequence[T]) -> T:
        for value in known:
            if value == cells[name]:
                return value
        raise InputError(f"{where}: {name} is {cells[name]!r}; known are {', '.join(map(str, known))}")

    regimes: Sequence[Regime] = get_args(Regime)
    roles: Sequence[Role] = get_args(Role)
    return Row(
        line=get("line", str),
        role=one_of("role", roles),
        regime=one_of("regime", regimes),
        variant=get("variant", str),
        preset=get("preset", str),
        scale=get("long_side_px", int),
        size_hw=(get("height_px", int), get("width_px", int)),
        macs=get("macs", int),
        params=get("params", int),
        blocks={
            block: BlockCost(macs=get(f"{block}_macs", int), params=get(f"{block}_params", int))
            for block in BLOCKS
            if cells[f"{block}_macs"]
        },
        latency_ms=Latency(*(get(f"latency_{end}_ms", float) for end in Latency._fields)) if cells["latency_median_ms"] else None,
        seeds=several("seeds", int),
        aps=several("ap_of_seeds", float),
        metrics={
            metric: Estimate(value=get(metric, float), low=get(f"{metric}_low", float), high=get(f"{metric}_high", float))
            for metric in METRICS
            if cells[metric]
        },
        against_baseline=interval("baseline"),
        against_scaling=interval("scaling_line"),
        seconds=get("seconds_a_run", float),
        command=get("command", str),
        made_with=get("made_with", json.loads),
    )
