"""``lw-retinanet tradeoff``."""

import shlex
from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say, with_bar
from lw_retinanet.files import existing, output_folder


def tradeoff_command(
    experiment: Path = typer.Argument(..., help="YAML file: variants, scales, seeds, regime (configs/tradeoff has examples)."),
    out: Path = typer.Option(..., help="Folder for runs and results; an interrupted experiment in it is continued."),
    data: Path | None = typer.Option(None, help="Data set [default: the file's]."),
    trunk: list[Path] = typer.Option(
        [], help="Trained model file or run folder to start from; repeated for several folds or seeds [default: the file's]."
    ),
    backbone_weights: str | None = typer.Option(
        None, help="Backbone weights for what is trained from them, as for model.backbone_weights [default: the file's]."
    ),
    only: list[str] = typer.Option([], help="Row to run, for example lw-v3@416; may be repeated [default: all]."),
    report_only: bool = typer.Option(False, "--report-only", help="Run nothing; make table, figures and report from the finished runs."),
    latency: bool = typer.Option(True, help="Measure milliseconds of every row, side by side, when all is done."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Compare lighter heads with smaller images: same recipe, same counter, several seeds, with intervals."""
    from lw_retinanet.devices import choose_device
    from lw_retinanet.tradeoff.experiment import open_experiment
    from lw_retinanet.tradeoff.results import write_all
    from lw_retinanet.tradeoff.runner import Runner
    from lw_retinanet.tradeoff.summary import has_latency, measure_rows, summarise

    existing(experiment, "experiment file")
    plan = open_experiment(experiment, data=data, trunk=trunk, backbone_weights=backbone_weights)
    existing(Path(plan.data), "data set")
    cells = plan.chosen(only)
    output_folder(out)
    runner = Runner(plan, out, device=choose_device(device), progress=with_bar, report_only=report_only)
    if not report_only:
        runner.run(cells)
        if latency and not has_latency(runner, cells):
            measure_rows(runner, cells)
    given = [("--data", data), *(("--trunk", one) for one in trunk), ("--backbone-weights", backbone_weights)]
    paths = [word for name, path in given if path is not None for word in (name, str(path))]
    words = ["lw-retinanet", "tradeoff", str(experiment), *paths, "--out", "again", "--only"]
    written = write_all(runner, summarise(runner, command=lambda row: shlex.join([*words, row])))
    if json:
        print_json(written.as_dict())
    else:
        say("\n".join(written.lines()))
