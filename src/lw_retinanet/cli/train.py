"""``lw-retinanet train``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.config import ModelConfig


def train_command(
    data: Path | None = typer.Argument(None, help="Data set with a train and, better, a val split; with --resume, the run knows its own."),
    model: str | None = typer.Option(None, help="Preset, or model file or run folder to go on from [default: lw-v3]."),
    config: Path | None = typer.Option(None, help="YAML file with settings."),
    settings: list[str] = typer.Option([], "--set", help="A setting, for example train.epochs=12; may be repeated."),
    out: Path | None = typer.Option(None, help="New run folder [default: runs/MODEL-DATA-NUMBER]."),
    resume: Path | None = typer.Option(None, help="Run folder to go on with."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
) -> None:
    """Train on your own pictures, evaluate on val, and leave model, metrics, curves and pictures in one run folder."""
    from lw_retinanet.analyze.experiment import run_training
    from lw_retinanet.cli.console import evaluation_bar, existing, output_folder
    from lw_retinanet.config import load_config, override, parse_config
    from lw_retinanet.devices import choose_device
    from lw_retinanet.errors import ConfigError, InputError, RunFolderError
    from lw_retinanet.evaluate.tables import class_table, summary_table

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
    folder = resume or output_folder(out or _new_folder(f"{_name(checked.model)}-{source.resolve().stem}"))
    # torchrun names the device of each process itself.
    chosen = None if device == "auto" else choose_device(device)
    outcome = run_training(checked, source, folder, resume=resume is not None, device=chosen, progress=evaluation_bar)
    if outcome.metrics:
        print(summary_table(outcome.metrics))
        print()
        print(class_table(outcome.metrics))
        print()
    if (outcome.folder / "model.safetensors").exists():
        print(f"run folder: {outcome.folder} (model.safetensors, metrics.json, log.jsonl, pictures/)")


def _model_setting(model: str) -> str:
    """What ``--model`` sets: ``model.start`` for a path, ``model.preset`` for a name, mistyped ones included."""
    from typing import get_args

    from lw_retinanet.config import Preset

    path = Path(model)
    looks_like_one = path.name != model or path.suffix in (".safetensors", ".pth", ".pt", ".pkl")
    is_path = model not in get_args(Preset) and (looks_like_one or path.exists())
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
