"""The page of a shipment: what it cost and saved, what was tried, and how to do it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lw_retinanet import __version__
from lw_retinanet.jobs.shipment import Shipment


def page(shipment: Shipment, folder: Path, steps: Mapping[str, Mapping[str, Any]], notes: Sequence[str] = ()) -> str:
    """The page as Markdown, with the figures that the steps have left in ``folder``."""
    cost = shipment.original_cost
    lines = [f"# {shipment.title}, lightened" + (" and shipped" if shipment.shipped else ""), "", shipment.verdict(), ""]
    lines += [*_markdown(shipment.table()), ""]
    lines += [
        f"GMACs for one image of {cost.size_hw[0]} x {cost.size_hw[1]} pixels, {cost.num_classes:,} classes; AP (0..1) on the "
        f"{shipment.images:,} images of `val`; the interval comes from drawing these images again, the same ones for both detectors. "
        "Milliseconds from an encoded image to boxes, one image at a time, all in turns; medians.",
        "",
        *_machine(shipment),
        "## What was tried",
        "",
        f"The fastest form that loses at most {shipment.max_drop:g} points of AP is shipped.",
        "",
        *_markdown(shipment.tried_table()),
        "",
        *([" ".join(notes), ""] if notes else []),
    ]
    lines += _figures(shipment, folder)
    lines += ["## The commands of every step", "", "```sh"]
    lines += [f"{step['command']}  # {step['seconds']:.0f} s" for step in steps.values()]
    lines += ["```", f"lw_retinanet {__version__}; the same numbers as JSON, with what every step was made from: ship.json.", ""]
    return "\n".join(lines)


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    header, *body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body)]


def _machine(shipment: Shipment) -> list[str]:
    if shipment.benchmark is None:
        return []
    machine = shipment.benchmark["machine"]
    amx = "with AMX" if machine["amx"] else "without AMX"
    load = "unknown" if machine["load_before"] is None else f"{machine['load_before']:.1f}"
    where = f"Measured on {machine['processor']} ({amx}), {machine['threads']} threads, {machine['device']}; load before: {load}."
    return [" ".join([where, *shipment.benchmark["remarks"]]), ""]


def _figures(shipment: Shipment, folder: Path) -> list[str]:
    shipped = shipment.shipped
    figures = {
        "How the light head was made": ("AP after each stage of lightening", "light-report/stages.png"),
        "Milliseconds": ("milliseconds of all that was timed", "benchmark/benchmark.png"),
        "Images before": ("detections of the original", "original/pictures/detections.jpg"),
        "The same images after": ("detections of what is shipped", f"{shipped.folder if shipped else None}/pictures/detections.jpg"),
    }
    lines = []
    for title, (words, file) in figures.items():
        if (folder / file).is_file():
            lines += [f"## {title}", "", f"![{words}]({file})", ""]
    return lines
