"""Changes the classes of a trained model; everything but the class predictions stays as it is."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.models.head import PRIOR
from lw_retinanet.weights.model_file import LoadedModel, build_network

_CLASS_PREDICTIONS = ("head.cls.shared_predict.", "head.cls.own_predict.")


def change_classes(loaded: LoadedModel, categories: Sequence[Category], seed: int = 0) -> LoadedModel:
    """Return a copy of the model for other classes.

    Backbone, pyramid, towers and box branch keep their values. A class whose name the model knows keeps its rows in the last convolution of
    the class predictions; case, spaces, hyphens and underscores do not matter. Rows of other classes get normal(0, 0.01) weights and the
    prior as bias.

    Args:
        loaded: The model, which stays as it is.
        categories: The new classes; at least one, with different names.
        seed: Seed for the weights of new classes.

    Raises:
        WeightsError: If there is no class, or if two have the same name.
    """
    names = [plain_name(category.name) for category in categories]
    if not names:
        raise WeightsError("a model needs at least one class; give a list of names or a data set with classes")
    twice = next((category.name for category, name in zip(categories, names, strict=True) if names.count(name) > 1), None)
    if twice is not None:
        raise WeightsError(f"two classes are called {twice!r}, case and spaces aside; every class needs a name of its own")
    record, old = loaded.record, loaded.model
    known = {plain_name(category.name): row for row, category in reversed(list(enumerate(record.categories)))}
    source = torch.tensor([known.get(name, -1) for name in names])
    model = build_network(record, num_classes=len(names), conventions=old.conventions)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    wanted = model.state_dict()
    for name, tensor in old.state_dict().items():
        values = tensor.detach().clone()
        if name.startswith(_CLASS_PREDICTIONS) and wanted[name].shape[0] % len(names) == 0 and _has_class_rows(name, old):
            values = _rows(values, source, old.num_classes, generator)
        state[name] = values
    model.load_state_dict(state, assign=True)
    copied = [category.name for category, row in zip(categories, source.tolist(), strict=True) if row >= 0]
    notes = {**record.lasting_notes, "classes_changed": {"from": [c.name for c in record.categories], "kept": copied, "seed": seed}}
    changed = record.changed(categories=categories, conventions=old.conventions, notes=notes)
    return LoadedModel(model=model.train(old.training), record=changed)


def plain_name(name: str) -> str:
    """Return a class name in the form in which names are compared: lower case, words separated by one space."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _has_class_rows(name: str, model: nn.Module) -> bool:
    """Whether a tensor of a prediction has a row for each class; the depthwise convolution of a separable prediction has not."""
    module = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(module, nn.Conv2d)
    return module.groups == 1


def _rows(values: Tensor, source: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """(anchors * old classes, ...) -> (anchors * new classes, ...); row ``source[i]`` becomes row i, and -1 stands for a new row."""
    old = values.unflatten(0, (-1, num_classes))
    shape = (old.shape[0], len(source), *old.shape[2:])
    # The head itself is initialised in the same way.
    prior = -math.log((1 - PRIOR) / PRIOR)
    fresh = torch.full(shape, prior) if values.dim() == 1 else torch.empty(shape).normal_(std=0.01, generator=generator)
    fresh = fresh.to(values)
    kept = source >= 0
    fresh[:, kept.to(values.device)] = old[:, source[kept].to(values.device)]
    return fresh.flatten(0, 1)
