"""The report of a measurement: one object of plain values, from which tables and the figure are made, and its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_retinanet.benchmarking.chart import save_chart
from lw_retinanet.benchmarking.parity import Parity
from lw_retinanet.benchmarking.stages import in_order
from lw_retinanet.benchmarking.tables import markdown, stage_rows
from lw_retinanet.benchmarking.timing import Measured
from lw_retinanet.counting.rounds import ratio_interval, summary
from lw_retinanet.files import write_text

STAGE_TOLERANCE = 0.1  # largest difference between the sum of the stages and the whole, as a share of the whole
_STAGE_FLOOR_MS = 1.0  # below this, the steps of the clock are visible
_ROUNDED = ("bf16", "int8")


def report(
    measured: Sequence[Measured],
    *,
    machine: Mapping[str, Any],
    settings: Mapping[str, Any],
    images: str,
    parities: Sequence[Parity],
    remarks: Sequence[str],
    shipped: str | None = None,
) -> dict[str, Any]:
    """Put the result of a measurement into one object for JSON.

    The command ``benchmark`` prints this object as JSON. For every contender it holds what the contender is, ``latency_ms`` of a call
    (``median`` with the ``low`` and ``high`` of its 95 % interval, ``p10``, ``p90``), ``images_per_second``, ``stages``, and
    ``times_as_fast``: a list of ``than`` (the other contender), ``ratio`` with ``low`` and ``high``, and ``macs_ratio`` (the other's MACs
    divided by its own).

    Args:
        measured: The contenders with their times, at least one.
        machine: :func:`~lw_retinanet.benchmarking.machine.machine` before the measurement.
        settings: The settings as plain values.
        images: Where the images come from.
        parities: Comparisons of answers, all passed.
        remarks: Sentences for the reader.
        shipped: Name of torchvision's RetinaNet as shipped, if it took part.
    """
    remarks = list(dict.fromkeys(remarks))
    rows = []
    for one in measured:
        latency = summary(one.times)
        stages = _stages(one) if one.stages else None
        if stages is not None and not stages["adds_up"]:
            remarks.append(
                f"The stages of {one.contender.name} come to {stages['sum']:.1f} ms, the whole to {one.staged_whole:.1f} ms: "
                "something disturbed one of the two; measure again on an idle machine."
            )
        row = {**one.contender.as_dict(), "latency_ms": latency, "images_per_second": 1e3 * settings["batch_size"] / latency["median"]}
        rows.append(
            {
                **row,
                "stages": stages,
                "times_as_fast": [_ratio(one, other, role) for role, other in _rivals(one, measured, shipped).items()],
            }
        )
    return {
        "what": "encoded images to boxes",
        "machine": dict(machine),
        "settings": dict(settings),
        "pictures": images,
        "parity": [parity.as_dict() for parity in parities],
        "parity_words": [parity.line() for parity in parities],
        "contenders": rows,
        "remarks": remarks,
    }


def write_report_files(folder: Path, result: dict[str, Any]) -> None:
    """Write ``benchmark.json``, ``benchmark.md`` and ``benchmark.png``; ``result`` is what :func:`report` returns."""
    tables = markdown(result)
    if stage_rows(result):
        tables += ["", *markdown(result, stages=True)]
    write_text(folder / "benchmark.md", "\n".join(tables) + "\n")
    save_chart(result, folder / "benchmark.png")
    write_text(folder / "benchmark.json", json.dumps(result, indent=1) + "\n")


def _stages(measured: Measured) -> dict[str, Any]:
    """The stages, their sum, and whether the sum is the time of the whole."""
    total, whole = sum(measured.stages.values()), measured.staged_whole
    return {
        "milliseconds": in_order(measured.stages),
        "sum": total,
        "whole": whole,
        "difference": total - whole,
        "adds_up": abs(total - whole) <= max(STAGE_TOLERANCE * whole, _STAGE_FLOOR_MS),
    }


def _rivals(one: Measured, measured: Sequence[Measured], shipped: str | None) -> dict[str, Measured]:
    """The contenders that this one is compared with, by their role."""
    alike = next(each for each in measured if _way(each) == _way(one))
    like = {"alike": alike} if one.contender.family == "ours" and alike is not one else {}
    if shipped is None:
        first = measured[0]
        return {} if one is first else {"first": first, **({} if alike is first else like)}
    if one.contender.family == "torchvision":
        return {}
    theirs = [each for each in measured if each.contender.family == "torchvision"]
    # What computes in fp32 is compared with fp32, what rounds with the fastest of all.
    fair = [each for each in theirs if one.contender.precision in _ROUNDED or each.contender.precision == "fp32"]
    as_shipped = next(each for each in theirs if each.contender.name == shipped)
    return {"shipped": as_shipped, "best": min(fair, key=lambda each: summary(each.times)["median"]), **like}


def _way(measured: Measured) -> tuple[str, ...]:
    """How a contender is run, whatever its model."""
    one = measured.contender
    return one.family, one.runtime, one.precision, one.how


def _ratio(one: Measured, other: Measured, role: str) -> dict[str, Any]:
    macs, others = one.contender.macs, other.contender.macs
    return {
        "role": role,
        "than": other.contender.name,
        **ratio_interval(other.times, one.times).as_dict("ratio"),
        "macs_ratio": others / macs if macs and others else None,
    }
