"""Turn what a caller says about a training run into checked settings, a data set and a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lw_retinanet.config import Config, ModelConfig, load_config, load_run_config, override, parse_config
from lw_retinanet.errors import ConfigError, InputError, RunFolderError
from lw_retinanet.files import existing, output_folder
from lw_retinanet.heads import is_preset
from lw_retinanet.weights.foreign.torchvision import DOWNLOAD, is_named

MODEL_SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """A training run that can start; the fields are parameters of :func:`lw_retinanet.jobs.train.run_training`."""

    config: Config
    source: Path
    out: Path
    resume: bool


def checked_request(
    data: Path | None,
    *,
    model: str | None = None,
    config: Path | Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    train: Mapping[str, Any] | None = None,
    out: Path | None = None,
    resume: Path | None = None,
) -> RunRequest:
    """Check what a caller says about a run.

    Args:
        data, model, config, out, resume: As for :func:`lw_retinanet.train`.
        settings: Texts such as ``train.epochs=12``, which override ``config``.
        train: Settings of the section ``train``, which override both.

    Raises:
        ConfigError: for settings that are unknown, out of range or contradictory.
        InputError: if the data set is missing.
        RunFolderError: if there is no run to resume, or it started from another model.
        OutputError: if the folder cannot be written to.
    """
    if resume and (out or config):
        raise ConfigError("resume continues a run as it is; leave out the new run folder and the settings file")
    if resume and not (resume / "config.yaml").is_file():
        raise RunFolderError(f"{resume} holds no run to continue (no config.yaml); start a new run")
    file = resume / "config.yaml" if resume else config if isinstance(config, Path) else None
    values, notes = _values(config, file, is_resumed=resume is not None)
    if resume and model and _names_file(model) and model != _start_of(values):
        raise RunFolderError(f"{resume} did not start from {model}; resume it without naming a model, or start a new run")
    texts = [*([_model_setting(model)] if model else []), *settings]
    values = override(values, texts)
    if train:
        values["train"] = {**values.get("train", {}), **train}
    checked = parse_config(values, where=str(file or "settings"))
    source = _data_set(data, notes, file)
    if out:
        output_folder(out)
    folder = resume or out or _new_folder(f"{_model_name(checked.model)}-{source.resolve().stem}")
    return RunRequest(config=checked, source=source, out=folder, resume=resume is not None)


def _values(config: Path | Mapping[str, Any] | None, file: Path | None, *, is_resumed: bool) -> tuple[dict[str, Any], object]:
    """The settings that the caller names, and the notes of an earlier run that stand among them."""
    if file and is_resumed:
        return load_run_config(file)
    values = load_config(file) if file else dict(config) if isinstance(config, Mapping) else {}
    return values, values.pop("run", None)


def _data_set(named: Path | None, notes: object, file: Path | None) -> Path:
    """The data set that the caller names, or else the one that the notes of an earlier run name."""
    noted = notes.get("data") if isinstance(notes, dict) else None
    source = named or (Path(str(noted)) if noted else None)
    if source is None:
        raise InputError("name the data set to train on: lw-retinanet train DATA")
    if not named and not source.exists():
        raise InputError(f"{file} was made with the data set {source}, which does not exist here; name it: lw-retinanet train DATA")
    return existing(source, "data set")


def _start_of(values: Mapping[str, Any]) -> object:
    section = values.get("model")
    return section.get("start") if isinstance(section, Mapping) else None


def _names_file(model: str) -> bool:
    """Whether ``model`` is a path to start from; otherwise it is a preset, a mistyped one included."""
    path = Path(model)
    return is_named(model) or (not is_preset(model) and (path.name != model or path.suffix in MODEL_SUFFIXES or path.exists()))


def _model_setting(model: str) -> str:
    return f"model.start={json.dumps(model)}" if _names_file(model) else f"model.preset={model}"


def _model_name(model: ModelConfig) -> str:
    """The part of the run folder's name that stands for the model: the preset, or the run or file that the run starts from."""
    if model.start is None:
        return model.preset
    if is_named(model.start):
        return model.start.removeprefix(DOWNLOAD)
    start = Path(model.start).resolve()
    return start.name if start.is_dir() else start.parent.name if start.stem == "model" else start.stem


def _new_folder(name: str) -> Path:
    number = 1
    while (folder := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return folder
