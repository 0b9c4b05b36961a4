"""``lw-retinanet tradeoff``."""

from pathlib import Path

import typer


def tradeoff_command(
    experiment: Path = typer.Argument(..., help="YAML file: variants, scales, seeds, regime (configs/tradeoff has examples)."),
    out: Path = typer.Option(..., help="Folder for runs and results; with an interrupted experiment's, it goes on."),
    data: Path | None = typer.Option(None, help="Data set [default: the file's]."),
    trunk: Path | None = typer.Option(None, help="Trained model file or run folder to start from [default: the file's]."),
    only: list[str] = typer.Option([], help="Row to run, for example lw-v3@416; may be repeated [default: all]."),
    report_only: bool = typer.Option(False, "--report-only", help="Run nothing; make table, pictures and report of what is finished."),
    latency: bool = typer.Option(True, help="Measure milliseconds of every row, side by side, when all is done."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Which lever to pull: lighter heads against smaller pictures, same recipe, same counter, several seeds, with intervals."""
    from lw_retinanet.cli.console import print_json, with_bar
    from lw_retinanet.devices import choose_device
    from lw_retinanet.files import existing, output_folder
    from lw_retinanet.tradeoff.experiment import open_experiment
    from lw_retinanet.tradeoff.results import write_all
    from lw_retinanet.tradeoff.runner import Bench
    from lw_retinanet.tradeoff.summary import has_latency, measure_rows, summarise

    existing(experiment, "experiment file")
    plan = open_experiment(experiment, data=data, trunk=trunk)
    existing(Path(plan.data), "data set")
    cells = plan.chosen(only)
    output_folder(out)

    bench = Bench(plan, out, device=choose_device(device), progress=with_bar)
    if not report_only:
        bench.run(cells)
        if latency and not has_latency(bench, cells):
            measure_rows(bench, cells)
    paths = [word for name, path in (("--data", data), ("--trunk", trunk)) if path for word in (name, str(path))]
    written = write_all(bench, summarise(bench, command=["lw-retinanet", "tradeoff", str(experiment), *paths]))
    if json:
        print_json(written.as_dict())
    else:
        print("\n".join(written.lines()))
