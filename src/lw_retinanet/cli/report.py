"""``lw-retinanet report``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say


def report_command(
    run: Path = typer.Argument(help="Run folder that train wrote, finished or not."),
    out: Path | None = typer.Option(None, help="HTML file to write [default: report.html in the run folder]."),
    data: Path | None = typer.Option(None, help="Where the data set of the run is now [default: where it was]."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write one page of a training run: what to do next, curves, AP with intervals, kinds of errors, the best and the worst images."""
    from lw_retinanet.jobs.report import run_report

    report = run_report(run, out, data=data)
    if json:
        print_json(report.as_dict())
    else:
        say("\n".join(report.lines()))
