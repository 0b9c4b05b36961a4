"""``lw-retinanet quickstart``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import say, with_bar


def quickstart_command(
    out: Path = typer.Option(Path("quickstart"), help="New folder for data, models and results."),
    seed: int = typer.Option(0, min=0, help="Seed for data, weights and order."),
) -> None:
    """Train a detector on embedded data, lighten it, and evaluate, predict and count both: one page of results in two minutes."""
    from lw_retinanet.jobs.quickstart import run_quickstart

    result = run_quickstart(out, seed=seed, progress=with_bar)
    say(f"{result.page.read_text(encoding='utf-8')}\n\nresults: {result.page}")
