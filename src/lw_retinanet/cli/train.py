"""``lw-retinanet train``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.config import Config, ModelConfig


def train_command(
    data: Path | None = typer.Argument(None, help="Data set with a train and, better, a val split; with --resume, the run knows its own."),
    model: str | None = typer.Option(None, help="Preset, or model file or run folder to go on from [default: lw-v3]."),
    config: Path | None = typer.Option(None, help="YAML file with settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, for example train.epochs=12; may be repeated."),
    out: Path | None = typer.Option(None, help="New run folder [default: runs/MODEL-DATA-NUMBER]."),
    resume: Path | None = typer.Option(None, help="Run folder to go on with."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check the data, print what the run will come to, and write nothing."),
    processes: int | None = typer.Option(
        None, min=1, max=4096, help="With --dry-run: processes (GPUs) to plan for [default: torchrun's, or 1]."
    ),
    measure: bool = typer.Option(False, "--measure", help="With --dry-run: time a few steps here, in memory."),
    json_output: bool = typer.Option(False, "--json", help="With --dry-run: print one JSON object."),
) -> None:
    """Train on your own pictures, evaluate on val, and leave model, metrics, curves and pictures in one run folder."""
    from lw_retinanet.cli.console import existing, with_bar
    from lw_retinanet.config import load_config, override, parse_config
    from lw_retinanet.devices import choose_device
    from lw_retinanet.errors import ConfigError, InputError, RunFolderError
    from lw_retinanet.evaluation.tables import class_table, summary_table
    from lw_retinanet.files import output_folder
    from lw_retinanet.jobs.train import run_training

    planning = {"--processes": processes is not None, "--measure": measure, "--json": json_output}
    if not dry_run and any(planning.values()):
        names = ", ".join(name for name, is_given in planning.items() if is_given)
        raise ConfigError(f"{names} goes with --dry-run only; add that or leave it out")
    if dry_run and resume:
        raise ConfigError("--dry-run plans a new run; plan an earlier one anew by --config RUN/config.yaml in place of --resume")
    if resume and (out or config):
        raise ConfigError("--resume goes on with a run as it is; leave out --out and --config")
    if resume and not (resume / "config.yaml").is_file():
        raise RunFolderError(f"{resume} holds no run to go on with (no config.yaml); start one with --out")
    file = resume / "config.yaml" if resume else config
    values = load_config(file) if file else {}
    notes = values.pop("run", None)
    section = values.get("model")
    began = section.get("start") if isinstance(section, dict) else None
    if resume and model and _model_setting(model).startswith("model.start") and model != began:
        raise RunFolderError(f"{resume} did not start from {model}; resume it without --model, or start a new run")
    values = override(values, [*([_model_setting(model)] if model else []), *settings])
    checked = parse_config(values, where=str(file or "settings"))
    noted = notes.get("data") if isinstance(notes, dict) else None
    source = data or (Path(str(noted)) if noted else None)
    if source is None:
        raise InputError("name the data set to train on: lw-retinanet train DATA")
    if not data and not source.exists():
        raise InputError(f"{file} was made with the data set {source}, which does not exist here; name it: lw-retinanet train DATA")
    existing(source, "data set")
    if dry_run:
        if out:
            output_folder(out)
        _print_plan(checked, source, processes=processes, device=device, measure=measure, as_json=json_output)
        return
    folder = resume or output_folder(out or _new_folder(f"{_name(checked.model)}-{source.resolve().stem}"))
    # torchrun names the device of each process itself.
    chosen = None if device == "auto" else choose_device(device)
    outcome = run_training(checked, source, folder, resume=resume is not None, device=chosen, progress=with_bar)
    if outcome.metrics:
        print(summary_table(outcome.metrics))
        print()
        print(class_table(outcome.metrics))
        print()
    if (outcome.folder / "model.safetensors").exists():
        print(f"run folder: {outcome.folder} (model.safetensors, metrics.json, log.jsonl, pictures/)")


def _print_plan(config: "Config", source: Path, *, processes: int | None, device: str, measure: bool, as_json: bool) -> None:
    import os

    from lw_retinanet.cli.console import print_json
    from lw_retinanet.devices import choose_device
    from lw_retinanet.jobs.dry_run import plan_training

    count = processes or int(os.environ.get("WORLD_SIZE", "1"))
    plan = plan_training(config, source, processes=count, device=choose_device(device), measure=measure)
    if os.environ.get("RANK", "0") != "0":  # under torchrun one answer is enough
        return
    if as_json:
        print_json(plan.as_dict())
    else:
        print("\n".join([*plan.lines(), "dry run: nothing was written"]))


def _model_setting(model: str) -> str:
    """What ``--model`` sets: ``model.start`` for a path, ``model.preset`` for a name, mistyped ones included."""
    from lw_retinanet.heads import is_preset

    path = Path(model)
    looks_like_one = path.name != model or path.suffix in (".safetensors", ".pth", ".pt", ".pkl")
    is_path = not is_preset(model) and (looks_like_one or path.exists())
    return f"model.start={json.dumps(model)}" if is_path else f"model.preset={model}"


def _name(model: "ModelConfig") -> str:
    """Of the model, for the run folder: the preset, or the run or file that it goes on from."""
    if model.start is None:
        return model.preset
    start = Path(model.start).resolve()
    return start.name if start.is_dir() else start.parent.name if start.stem == "model" else start.stem


def _new_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
