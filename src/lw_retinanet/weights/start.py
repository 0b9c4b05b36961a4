"""What a training starts from: a new network, or the one of a model file with the classes of the data set."""

import logging
from pathlib import Path
from typing import Any

from lw_retinanet import __version__
from lw_retinanet.config import MAX_SIZE, Config, Resize
from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.files import sha256
from lw_retinanet.heads import plan_of
from lw_retinanet.weights.classes import change_classes
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.model_file import LoadedModel, find_model_file, load_model, make_record

FOREIGN = (".pth", ".pt", ".pkl", ".ckpt")
log = logging.getLogger(__name__)


def new_start(config: Config, categories: tuple[Category, ...]) -> LoadedModel:
    """A network as the settings describe it, with a random head.

    Args:
        config: resolved settings without ``model.start``.
        categories: its classes.

    Raises:
        ConfigError, WeightsError: as :func:`~lw_retinanet.weights.create.create_model`.
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


def file_start(
    path: Path,
    categories: tuple[Category, ...],
    *,
    image_size: int | None,
    resize: Resize = "long_side",
    max_size: int = MAX_SIZE,
    seed: int,
) -> LoadedModel:
    """The network of a model file, for other classes.

    Everything is the file's own: weights, head plan, backbone and its norm, conventions. A class that the file knows by name keeps its
    weights, every other one starts anew. Of a file with two heads the light one goes on; the full one would not learn along, and is left
    behind.

    Args:
        path: model file or run folder.
        categories: classes of the data set; the answer's, in this order and with these ids.
        image_size: side of the pictures from now on that ``resize`` names; None keeps the size rule of the file.
        resize: ``long_side`` or ``short_side``.
        max_size: of the longer side, for ``short_side``.
        seed: of the weights of new classes.

    Returns:
        Its notes hold ``start``: name, SHA-256 and notes of the file, and which classes it kept if they have changed.

    Raises:
        WeightsError: if there is no model file, or it cannot be used.
    """
    if path.suffix in FOREIGN and path.is_file():
        raise WeightsError(f"{path} is not a model file of this program; make one: lw-retinanet convert {path} --out MODEL.safetensors")
    file = find_model_file(path)
    loaded = _light_only(load_model(file))
    notes: dict[str, Any] = {"start": {"file": str(path), "sha256": sha256(file), "notes": loaded.record.notes}}
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
    classes = [vars(category) for category in categories]
    values = {**dict(loaded.record), "version": __version__, "classes": classes, "conventions": conventions, "notes": notes}
    return LoadedModel(model=loaded.model, record=type(loaded.record).model_validate(values))


def _light_only(loaded: LoadedModel) -> LoadedModel:
    """The model itself, without what only its full head needs: it would get no gradient."""
    loaded.model.fpn.full_output = None
    return LoadedModel(model=loaded.model, record=loaded.record.model_copy(update={"switchable": False, "full_output": False}))
