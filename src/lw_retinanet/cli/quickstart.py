"""``lw-retinanet quickstart``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import say, with_bar


def quickstart_command(
    out: Path = typer.Option(Path("quickstart"), help="New folder for data, models and results."),
    seed: int = typer.Option(0, min=0, help="Seed for data, weights and order."),
) -> None:
    """Train, evaluate, predict and count, full and light head side by side, on embedded data: one page of results in a few minutes."""
    from lw_retinanet.jobs.quickstart import run_quickstart

    result = run_quickstart(out, seed=seed, progress=with_bar)
    say(f"{result.page.read_text(encoding='utf-8')}\n\nresults: {result.page}")
