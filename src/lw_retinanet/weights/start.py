"""The model that a training starts from: a new one, or that of a model file with the classes of the data set."""

import logging
from pathlib import Path
from typing import Any

from lw_retinanet.config import MAX_SIZE, Config, Resize
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.files import sha256
from lw_retinanet.heads import plan_of
from lw_retinanet.weights.classes import change_classes
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.foreign.convert import open_model, require_model
from lw_retinanet.weights.foreign.torchvision import is_named
from lw_retinanet.weights.model_file import LoadedModel, find_model_file, make_record

_FOREIGN_SUFFIXES = (".pth", ".pt", ".pkl", ".ckpt")
log = logging.getLogger(__name__)


def start_from_settings(config: Config, categories: tuple[Category, ...]) -> LoadedModel:
    """Create the model that the settings describe, with a random head.

    Args:
        config: Resolved settings without ``model.start``.
        categories: Classes of the model.

    Raises:
        ConfigError, WeightsError: As in :func:`~lw_retinanet.weights.create.create_model`.
    """
    settings = config.model
    assert config.data.image_size is not None
    model = create_model(
        settings,
        num_classes=len(categories),
        image_size=config.data.image_size,
        resize=config.data.resize,
        max_size=config.data.max_size,
        seed=config.train.seed,
    )
    record = make_record(
        model,
        preset=settings.preset,
        backbone=settings.backbone,
        width=settings.head_width,
        norm=settings.norm,
        plan=plan_of(settings.preset),
        categories=categories,
        notes={},
    )
    return LoadedModel(model=model.eval(), record=record)


def start_from_file(
    path: Path,
    categories: tuple[Category, ...],
    *,
    image_size: int | None,
    resize: Resize = "long_side",
    max_size: int = MAX_SIZE,
    seed: int,
) -> LoadedModel:
    """Load the model of a model file for the classes of a data set.

    Weights, head, backbone and conventions are those of the file. A class whose name the file knows keeps its weights; the weights of every
    other class are random. If the file has two heads, the light one is trained; the full head is removed, since it would not be trained.

    Args:
        path: Model file, run folder, or ``torchvision:NAME``.
        categories: Classes of the data set; the model gets them in this order and with these ids.
        image_size: New length in pixels of the side that ``resize`` names; None keeps the file's rule for resizing.
        resize: ``long_side`` or ``short_side``.
        max_size: Largest length of the longer side, for ``short_side``.
        seed: Seed for the weights of new classes.

    Returns:
        The model. Its notes hold ``start`` (name, SHA-256 and notes of the file) and, if the classes changed, which of them were kept.

    Raises:
        WeightsError: If there is no model file, or if it cannot be used.
    """
    if path.suffix in _FOREIGN_SUFFIXES and path.is_file():
        raise WeightsError(f"{path} is not a model file of this program; convert it first: lw-retinanet convert {path}")
    require_model(path)
    loaded = _without_full_head(open_model(path))
    digest = {} if is_named(path) else {"sha256": sha256(find_model_file(path))}
    notes: dict[str, Any] = {"start": {"file": path.name, **digest, "notes": loaded.record.notes}}
    known = loaded.record.categories
    if [category.name for category in known] != [category.name for category in categories]:
        loaded = change_classes(loaded, categories, seed=seed)
        notes["classes_changed"] = loaded.record.notes["classes_changed"]
        log.info("%s knows %d classes, the data set has %d; those of the same name keep their weights", path, len(known), len(categories))
    conventions = loaded.model.conventions
    if image_size is not None:
        limit = {"max_size": max_size} if resize == "short_side" else {}
        size_rule = conventions.input.model_copy(update={"resize": resize, "size": image_size, **limit})
        conventions = conventions.model_copy(update={"input": size_rule})
        loaded.model.conventions = conventions
    record = loaded.record.changed(categories=categories, conventions=conventions, notes=notes)
    return LoadedModel(model=loaded.model, record=record)


def _without_full_head(loaded: LoadedModel) -> LoadedModel:
    """The model without the convolutions that only its full head uses, which would get no gradient."""
    loaded.model.fpn.drop_full_outputs()
    return LoadedModel(model=loaded.model, record=loaded.record.model_copy(update={"switchable": False, "full_output": False}))
