"""Other classes for a trained model: everything but the class predictions stays as it is."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lw_retinanet.data.records import Category
from lw_retinanet.errors import WeightsError
from lw_retinanet.models.head import PRIOR
from lw_retinanet.weights.model_file import LoadedModel, build_network, make_record

_CLASS_PREDICTIONS = ("head.cls.shared_predict.", "head.cls.own_predict.")


def change_classes(loaded: LoadedModel, categories: Sequence[Category], seed: int = 0) -> LoadedModel:
    """A copy of the model for other classes.

    Backbone, pyramid, towers and the box branch keep their very values. The last convolution of every class prediction starts anew, with
    normal(0, 0.01) weights and the prior as bias; a class whose name the model knows (case, spaces, hyphens and underscores aside) keeps
    its rows.

    Args:
        loaded: stays as it is.
        categories: at least one, names all different.
        seed: of the new rows.

    Raises:
        WeightsError: for no classes, or one name twice.
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
        if name.startswith(_CLASS_PREDICTIONS) and wanted[name].shape[0] % len(names) == 0 and _is_last(name, old):
            values = _rows(values, source, old.num_classes, generator)
        state[name] = values
    model.load_state_dict(state, assign=True)
    copied = [category.name for category, row in zip(categories, source.tolist(), strict=True) if row >= 0]
    notes = {**record.notes, "classes_changed": {"from": [c.name for c in record.categories], "kept": copied, "seed": seed}}
    changed = make_record(
        model,
        preset=record.preset,
        backbone=record.backbone,
        width=record.width,
        norm=record.norm,
        plan=record.plan,
        categories=tuple(categories),
        notes=notes,
    )
    heads = {"switchable": record.switchable, "full_output": record.full_output}
    return LoadedModel(model=model.train(old.training), record=changed.model_copy(update=heads))


def plain_name(name: str) -> str:
    """A class name without what spelling changes."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _is_last(name: str, model: nn.Module) -> bool:
    """Whether a prediction's tensor has rows for classes: a separable prediction starts with a depthwise convolution, which has none."""
    module = model.get_submodule(name.rpartition(".")[0])
    assert isinstance(module, nn.Conv2d)
    return module.groups == 1


def _rows(values: Tensor, source: Tensor, num_classes: int, generator: torch.Generator) -> Tensor:
    """(anchors * old classes, ...) -> (anchors * new classes, ...), drawn anew where ``source`` is -1."""
    old = values.unflatten(0, (-1, num_classes))
    shape = (old.shape[0], len(source), *old.shape[2:])
    # As the head's own initialisation.
    prior = -math.log((1 - PRIOR) / PRIOR)
    fresh = torch.full(shape, prior) if values.dim() == 1 else torch.empty(shape).normal_(std=0.01, generator=generator)
    fresh = fresh.to(values)
    kept = source >= 0
    fresh[:, kept.to(values.device)] = old[:, source[kept].to(values.device)]
    return fresh.flatten(0, 1)
