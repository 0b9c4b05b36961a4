"""``lw-retinanet train``."""

import os
from json import dumps
from pathlib import Path

import typer

from lw_retinanet.cli.console import names, print_json, say, with_bar
from lw_retinanet.errors import ConfigError
from lw_retinanet.heads import presets_in_words


def train_command(
    data: Path | None = typer.Argument(
        None, help="Data set with a train and preferably a val split; with --resume, the run knows its own."
    ),
    model: str | None = typer.Option(
        None, help=f"Model file, run folder or torchvision:NAME to start from, or preset: {presets_in_words()} [default: lw-v3]."
    ),
    config: Path | None = typer.Option(None, help="YAML file with settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, for example train.epochs=12; may be repeated."),
    classes: str | None = typer.Option(
        None, help="Names of the only classes to learn, separated by commas; sets data.classes [default: all]."
    ),
    out: Path | None = typer.Option(None, help="New run folder [default: runs/MODEL-DATA-NUMBER]."),
    resume: Path | None = typer.Option(None, help="Run folder to continue."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check the data, print length, cost and memory of the run, and write nothing."),
    processes: int | None = typer.Option(
        None, min=1, max=4096, help="With --dry-run: processes (GPUs) to plan for [default: torchrun's, or 1]."
    ),
    measure: bool = typer.Option(False, "--measure", help="With --dry-run: time a few steps here, in memory."),
    json: bool = typer.Option(False, "--json", help="With --dry-run: print one JSON object."),
) -> None:
    """Train on your own images, evaluate on val, and leave model, metrics, curves and figures in one run folder."""
    from lw_retinanet.jobs.run_request import checked_request

    _check_options(dry_run, resume, {"--processes": processes is not None, "--measure": measure, "--json": json})
    chosen = [f"data.classes={dumps(names(classes))}"] if classes else []
    request = checked_request(data, model=model, config=config, settings=[*settings, *chosen], out=out, resume=resume)
    if dry_run:
        from lw_retinanet.devices import choose_device
        from lw_retinanet.jobs.dry_run import plan_training

        count = processes or int(os.environ.get("WORLD_SIZE", "1"))
        plan = plan_training(
            request.config, request.source, out=request.out, processes=count, device=choose_device(device), measure=measure
        )
        if os.environ.get("RANK", "0") != "0":  # under torchrun one answer is enough
            return
        if json:
            print_json(plan.as_dict())
        else:
            say("\n".join([*plan.lines(), "dry run: nothing was written"]))
        return
    from lw_retinanet.evaluation.report import class_table, summary_table
    from lw_retinanet.jobs.train import run_training

    run = run_training(**vars(request), device=device, progress=with_bar)
    if run.metrics:
        say(f"{summary_table(run.metrics)}\n\n{class_table(run.metrics)}\n")
    if run.is_main:
        say(f"run folder: {run.folder} (model.safetensors, metrics.json, log.jsonl, pictures/)")


def _check_options(dry_run: bool, resume: Path | None, planning: dict[str, bool]) -> None:
    if not dry_run and any(planning.values()):
        names = ", ".join(name for name, is_given in planning.items() if is_given)
        raise ConfigError(f"{names} goes with --dry-run only; add that or leave it out")
    if dry_run and resume:
        raise ConfigError("--dry-run plans a new run; to plan an earlier one again, pass --config RUN/config.yaml in place of --resume")
