"""Saves and loads models as the Hugging Face hub stores them: a folder of ``model.safetensors``, ``config.json`` and a model card."""

import json
import logging
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lw_retinanet.counting.profile import profile
from lw_retinanet.data.preprocess import padded_size
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import Precision, choose_device
from lw_retinanet.errors import ConfigError, InputError, MissingExtraError, OutputError, WeightsError, first_line
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.files import write_text
from lw_retinanet.interop.model_card import ModelCard
from lw_retinanet.weights.model_file import LoadedModel, ModelRecord, find_model_file, load_model, save_model

MODEL_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
Model = LoadedModel | Detector | str | Path
log = logging.getLogger(__name__)


def save_pretrained(
    model: Model,
    folder: str | Path,
    *,
    metrics: Metrics | Mapping[str, Any] | None = None,
    licence: str | None = None,
    dataset: str | None = None,
    name: str | None = None,
) -> Path:
    """Save a model as a folder that :func:`from_pretrained` loads and the hub displays.

    Args:
        model: A model file, a run folder, a detector or a loaded model.
        folder: The folder to write, which is created if it does not exist. An existing ``README.md`` is kept, since people edit it; the
            other files are replaced.
        metrics: Metrics of an evaluation; None takes the ``metrics.json`` beside the model file, if there is one.
        licence: Licence of the weights as the hub spells it, such as ``apache-2.0``; None states that it is not known.
        dataset: Name of the data set that the model was trained and evaluated on; None takes the name in the model file's notes.
        name: The name that the model card gives to ``from_pretrained``; None takes the folder.

    Returns:
        The folder.

    Raises:
        WeightsError: If the model file cannot be used.
        InputError: For a detector without a record of its architecture, a licence that is no identifier, or metrics without an AP.
        OutputError: If the folder cannot be written.

    Example:
        >>> import torchvision, lw_retinanet as lw
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        >>> loaded = lw.from_torchvision(model, ["cat", "dog"])
        >>> folder = lw.save_pretrained(loaded, "cats-and-dogs", licence="apache-2.0")
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
    """
    if licence is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise InputError(f"licence {licence!r} is not an identifier of the hub; give one such as apache-2.0, or leave it out")
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give a folder to write {MODEL_FILE}, {CONFIG_FILE} and {CARD_FILE} into")
    loaded = _loaded(model)
    card = _card(loaded, _metrics(model, metrics), licence, dataset)
    save_model(folder / MODEL_FILE, loaded.model, loaded.record)
    write_text(folder / CONFIG_FILE, json.dumps(card.config(), indent=2) + "\n")
    if (folder / CARD_FILE).exists():
        log.info("%s is kept as it is; delete it to get a new one", folder / CARD_FILE)
    else:
        write_text(folder / CARD_FILE, card.text(name or str(folder)))
    return folder


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
) -> Detector:
    """Load a model from a folder or from the Hugging Face hub.

    Only ``model.safetensors`` is downloaded and read, and it contains no code.

    Args:
        source: A folder or model file if one of this name exists, else a repository of the hub, ``OWNER/NAME``.
        revision: Branch, tag or commit of the repository.
        token: Token for private repositories; None takes the one that ``hf auth login`` stored.
        cache_dir: Folder for downloads; None takes the hub's own cache.
        device: Device to run on: ``auto``, ``cpu``, ``cuda``, ...
        precision: Precision of the network; ``auto`` takes the faster one, by a measurement.

    Raises:
        WeightsError: If the folder, repository or revision does not exist or cannot be reached, or if its model cannot be used.
        MissingExtraError: If the model is on the hub and ``huggingface_hub`` is not installed.

    Example:
        >>> import torchvision, lw_retinanet as lw
        >>> model = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        >>> folder = lw.save_pretrained(lw.from_torchvision(model, ["cat", "dog"]), "cats-and-dogs")
        >>> detector = lw.from_pretrained("cats-and-dogs", device="cpu")
        >>> [category.name for category in detector.categories]
        ['cat', 'dog']
    """
    path = Path(source)
    file = find_model_file(path) if path.exists() else _download(str(source), revision, token, cache_dir)
    chosen = choose_device(device)
    loaded = load_model(file)
    name = f"{source} ({loaded.record.preset})"
    return Detector.of_model(loaded.model, loaded.record.categories, device=chosen, precision=precision, name=name, record=loaded.record)


def push_to_hub(
    model: Model,
    repo_id: str,
    *,
    metrics: Metrics | Mapping[str, Any] | None = None,
    licence: str | None = None,
    dataset: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    message: str = "Upload an lw-retinanet model",
) -> str:
    """Upload what :func:`save_pretrained` writes to the Hugging Face hub; a model card that is already there is kept.

    Args:
        model: As in :func:`save_pretrained`.
        repo_id: The repository, ``OWNER/NAME``, which is created if it does not exist.
        metrics, licence, dataset: As in :func:`save_pretrained`.
        private: Whether a new repository is private; None takes the owner's default.
        revision, token: As in :func:`from_pretrained`.
        message: Message of the commit.

    Returns:
        The URL of the commit.

    Raises:
        InputError: As in :func:`save_pretrained`.
        OutputError: If the hub refuses the upload or cannot be reached.
        MissingExtraError: If ``huggingface_hub`` is not installed.
    """
    hub = _hub(f"uploading to {repo_id}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = save_pretrained(model, Path(temporary) / "model", metrics=metrics, licence=licence, dataset=dataset, name=repo_id)
        try:
            api = hub.HfApi(token=token)
            api.create_repo(repo_id, private=private, exist_ok=True)
            if api.file_exists(repo_id, CARD_FILE, revision=revision):
                (folder / CARD_FILE).unlink()
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision, commit_message=message).commit_url)
        except Exception as error:  # errors of the hub, its HTTP client and the system have no common base class in all of its versions
            raise OutputError(f"cannot upload to {repo_id} on the hub: {_reason(error)}") from error


def _download(source: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None) -> Path:
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", source) or source.endswith(".safetensors"):
        raise WeightsError(f"{source} is not there, and no repository of the hub either; give a folder, a model file or OWNER/NAME")
    hub = _hub(f"{source} is no folder here, and fetching it from the hub")
    try:
        return Path(hub.hf_hub_download(source, MODEL_FILE, revision=revision, token=token, cache_dir=cache_dir))
    except Exception as error:  # see push_to_hub
        place = f"{source} at {revision}" if revision else source
        raise WeightsError(f"there is no folder {source}, and the hub does not give {place}: {_reason(error)}") from error


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise MissingExtraError(f"{what} needs huggingface_hub; install it with: pip install 'lw-retinanet[hub]'") from None
    return huggingface_hub


# Classes by name, subclasses first: their modules and base classes change between versions of the hub's library.
_REASONS = {
    "GatedRepoError": "its owner must let you in first; ask on its page, then give token=",
    "RepositoryNotFoundError": "no such repository, or a private one; check the name or give token=",
    "RevisionNotFoundError": "no such revision; check revision=",
    "LocalEntryNotFoundError": "it is not in the cache and the hub cannot be reached; check the network",
    "OfflineModeIsEnabled": "offline mode is on (HF_HUB_OFFLINE) and it is not in the cache",
    "EntryNotFoundError": f"it holds no {MODEL_FILE}, so it is no model of this program",
}


def _reason(error: Exception) -> str:
    bases = {base.__name__ for base in type(error).__mro__}
    return next((reason for name, reason in _REASONS.items() if name in bases), first_line(error))


def _loaded(model: Model) -> LoadedModel:
    if isinstance(model, LoadedModel):
        return model
    if not isinstance(model, Detector):
        return load_model(Path(model))
    record = getattr(model, "record", None)
    if not isinstance(record, ModelRecord):
        raise InputError("this detector has no record of its architecture; give its model file or run folder instead")
    return LoadedModel(model=model.model, record=record)


def _metrics(model: Model, given: Metrics | Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    if isinstance(given, Metrics):
        return given.as_dict()
    where = "metrics"
    if given is None and isinstance(model, str | Path):
        file = find_model_file(Path(model)).with_name("metrics.json")
        if not file.is_file():
            return None
        where = str(file)
        try:
            given = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"cannot read {file} ({type(error).__name__}); evaluate again, or give metrics=") from None
    if given is not None and (not isinstance(given, Mapping) or not isinstance(given.get("AP"), int | float)):
        raise InputError(f"{where}: expected a mapping with AP in 0..1, as `lw-retinanet evaluate` prints and writes it")
    return given


def _card(loaded: LoadedModel, metrics: Mapping[str, Any] | None, licence: str | None, dataset: str | None) -> ModelCard:
    rule = loaded.record.conventions.input
    size_hw = padded_size([(rule.size, rule.size)], rule.pad_multiple)
    try:
        macs = profile(loaded.model, name="", size_hw=size_hw).macs
    except ConfigError:  # a backbone with layers that cannot be counted
        macs = None
    noted = loaded.record.notes.get("data")
    return ModelCard(
        record=loaded.record,
        size_hw=size_hw,
        macs=macs,
        params=sum(parameter.numel() for parameter in loaded.model.parameters()),
        metrics=metrics,
        licence=licence,
        dataset=dataset or (str(noted) if noted else None),
    )
