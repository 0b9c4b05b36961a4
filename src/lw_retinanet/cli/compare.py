"""``lw-retinanet compare``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import names, print_json, say, with_bar


def compare_command(
    detections_a: Path = typer.Argument(
        ..., help="Detections of the first detector: a COCO results file, a run folder, or a folder of predict."
    ),
    detections_b: Path = typer.Argument(..., help="The same of the second detector."),
    data: Path = typer.Option(..., help="Data set that both were run on."),
    split: str | None = typer.Option(None, help="Split of the data set [default: val, if there are splits]."),
    classes: str | None = typer.Option(None, help="Names of the only classes that count, separated by commas [default: all]."),
    draws: int = typer.Option(1000, min=100, max=1_000_000, help="How often the images are drawn anew."),
    seed: int = typer.Option(0, min=0, help="Seed for the draws."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Say how much better B is than A: the difference of AP, with a 95 % interval from drawing the same images for both."""
    from lw_retinanet.jobs.compare import run_comparison

    comparison = run_comparison(
        detections_a, detections_b, data, split=split, classes=names(classes), draws=draws, seed=seed, progress=with_bar
    )
    if json:
        print_json(comparison.as_dict())
    else:
        say("\n".join(comparison.lines()))
