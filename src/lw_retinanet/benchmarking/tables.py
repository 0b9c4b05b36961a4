"""The report of a measurement as text: tables for a terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from lw_retinanet.benchmarking.stages import STAGES
from lw_retinanet.tables import aligned

_ROLES = {"shipped": "vs torchvision as shipped", "best": "vs its best", "first": "vs the first", "alike": "vs the first model, run alike"}
Rows = list[list[str]]


def lines(result: Mapping[str, Any]) -> list[str]:
    """The whole report for people; ``result`` is what :func:`~lw_retinanet.benchmarking.report.report` returns."""
    machine, settings = result["machine"], result["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if name in ("torch", "torchvision"))
    text = [
        f"{result['what']}, {settings['batch_size']} a call, {settings['rounds']} rounds in turns; {result['pictures']}",
        f"{machine['processor']} ({machine['device']}), {machine['threads']} threads; {packages}, lw-retinanet {machine['lw_retinanet']}",
        "",
        *aligned(latency_rows(result)),
    ]
    stages = stage_rows(result)
    if stages:
        text += ["", "milliseconds by stage (medians)", *aligned(stages)]
    if result["parity_words"]:
        text += ["", *result["parity_words"]]
    if result["remarks"]:
        text += ["", *result["remarks"]]
    return text


def markdown(result: Mapping[str, Any], *, stages: bool = False) -> list[str]:
    """One table in Markdown with a line about the machine below it: the table of times, or that of stages."""
    rows = stage_rows(result) if stages else latency_rows(result)
    machine, settings = result["machine"], result["settings"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    table = [f"| {' | '.join(row)} |" for row in rows]
    load = "unknown" if machine["load_before"] is None else f"{machine['load_before']:.1f}"
    commit = f" at {machine['commit']}" if machine.get("commit") else ""
    each = "the next image" if settings["batch_size"] == 1 else f"the next {settings['batch_size']} images"
    below = (
        f"{settings['rounds']} rounds, in each {each}, {machine['threads']} threads, {machine['processor']}{_abilities(machine)}, "
        f"{machine['device']}, "
        f"load before {load}; {result['pictures']}; lw-retinanet {machine['lw_retinanet']}{commit}, {packages}."
    )
    return [table[0], f"|{' --- |' * len(rows[0])}", *table[1:], "", below, *result["remarks"]]


def _abilities(machine: Mapping[str, Any]) -> str:
    """Instruction sets and what bf16 is worth. Results of version 0.1.0 have neither."""
    if "amx" not in machine:
        return ""
    caps = [f"{name}={value}" for name, value in machine["caps"].items()]
    verdicts = [
        f"bf16 {'pays' if times['pays'] else 'does not pay'} for {work}: {times['bf16_ms']:.1f} against {times['fp32_ms']:.1f} ms"
        for work, times in machine["bf16_pays"].items()
    ]
    parts = [machine["instructions"], "AMX" if machine["amx"] else "no AMX", *caps, *(verdicts or ["no bf16"])]
    return f" ({'; '.join(parts)})"


def latency_rows(result: Mapping[str, Any]) -> Rows:
    """A header, and a row for each contender: what it is, its size, its time with the interval, and its ratios."""
    contenders = result["contenders"]
    roles = [role for role in _ROLES if any(each["role"] == role for row in contenders for each in row["times_as_fast"])]
    has_accuracy = any(row["accuracy"] is not None for row in contenders)
    header = ["", "input", "GMACs", "Mparams", "ms (95 %)", *(_ROLES[role] for role in roles), *(["AP"] if has_accuracy else [])]
    rows = [header]
    for row in contenders:
        times = row["latency_ms"]
        ratios = {each["role"]: f"{each['ratio']:.2f}x ({each['low']:.2f} to {each['high']:.2f})" for each in row["times_as_fast"]}
        cells = [
            row["name"],
            " x ".join(map(str, row["input_hw"])),
            "-" if row["macs"] is None else _digits(row["macs"] / 1e9),
            "-" if row["params"] is None else f"{row['params'] / 1e6:.1f}",
            f"{_digits(times['median'])} ({_digits(times['low'])} to {_digits(times['high'])})",
            *(ratios.get(role, "") for role in roles),
        ]
        if has_accuracy:
            cells.append("" if row["accuracy"] is None else f"{100 * row['accuracy']:.1f}")
        rows.append(cells)
    return rows


def stage_rows(result: Mapping[str, Any]) -> Rows:
    """A header, and a row for each contender whose stages were seen; no rows if there are none.

    The columns are the milliseconds of each stage, their sum, and the time of the whole without a clock inside, on the same images.
    """
    seen = [row for row in result["contenders"] if row["stages"] is not None]
    if not seen:
        return []
    names = [name for name in STAGES if any(name in row["stages"]["milliseconds"] for row in seen)]
    rows = [["", *names, "sum", "whole"]]
    for row in seen:
        stages = row["stages"]
        cells = [_digits(stages["milliseconds"][name]) if name in stages["milliseconds"] else "" for name in names]
        rows.append([row["name"], *cells, _digits(stages["sum"]), _digits(stages["whole"])])
    return rows


def filled(text: str, name: str, table: Sequence[str]) -> str:
    """Replace the text between ``<!-- table: NAME -->`` and ``<!-- /table -->`` in a document.

    Raises:
        KeyError: If there is no such place.
    """
    begin, end = f"<!-- table: {name} -->", "<!-- /table -->"
    head, found, rest = text.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise KeyError(name)
    return "\n".join([f"{head}{begin}", *table, f"{end}{tail}"])


def _digits(value: float) -> str:
    """The value with three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
