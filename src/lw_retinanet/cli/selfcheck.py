"""``lw-retinanet selfcheck``."""

import typer

from lw_retinanet.cli.console import print_json, say, with_bar


def selfcheck_command(
    quick: bool = typer.Option(False, "--quick", help="Fewer cases: about a minute in place of five."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Try again what must hold on every machine: a table of what was tried, right and wrong. Exit code 1 if anything is wrong."""
    from lw_retinanet.jobs.selfcheck import run_selfcheck

    found = run_selfcheck(quick=quick, progress=with_bar)
    if json:
        print_json(found.as_dict())
    else:
        say("\n".join(found.lines()))
    if not found.is_right:
        raise typer.Exit(1)
