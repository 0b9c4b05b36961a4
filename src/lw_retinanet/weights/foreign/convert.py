"""Weights of another program in, one of our models out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open

from lw_retinanet.conventions import STRIDES, Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import ConfigError, WeightsError, nearest
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.anchors import cell_anchors
from lw_retinanet.models.backbone import RESNETS
from lw_retinanet.weights.classes import change_classes
from lw_retinanet.weights.foreign import caffe2, detectron2, mmdet, odtk, torchvision
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, read_structure
from lw_retinanet.weights.foreign.class_list import ClassList, assign_rows, read_class_list, with_known_ids
from lw_retinanet.weights.foreign.conversion import Conversion, ConversionReport, Origin
from lw_retinanet.weights.foreign.overrides import BACKBONE, override_conventions
from lw_retinanet.weights.foreign.state_file import ForeignFile, read_foreign
from lw_retinanet.weights.foreign.torchvision_hub import HUB, read_hub
from lw_retinanet.weights.foreign.transfer import transfer
from lw_retinanet.weights.model_file import KEY, LoadedModel, build_network, load_model, make_record

Framework = Literal["torchvision", "detectron2", "mmdet", "odtk", "caffe2"]
FRAMEWORKS: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "detectron2": detectron2,
    "mmdet": mmdet,
    "odtk": odtk,
    "caffe2": caffe2,
}
_ANCHORS_WAY_OUT = "give them with --set anchors.octave_scales=[...] and --set anchors.aspect_ratios=[...]"


def convert(
    source: str | Path,
    *,
    origin: Framework | Literal["auto"] = "auto",
    classes: str | Path | Sequence[str] | Sequence[Category] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert a weights file of torchvision, Detectron2, MMDetection, odtk or the original Detectron.

    Args:
        source: file, one of our own model files or run folders (then only ``classes`` and ``overrides`` act), or
            ``torchvision:retinanet_resnet50_fpn`` or ``..._v2`` (downloaded, or from torch's cache).
        origin: framework; ``auto`` recognises it by the tensors' names.
        classes: names, categories, a text file of names or a data set. They name the rows where only their number was known; where the
            file itself names other classes, or COCO's do not match in number, the class predictions are changed for these.
        overrides: dotted fields of :class:`~lw_retinanet.conventions.Conventions` -> values, and ``backbone``.

    Returns:
        The model with its origin's conventions, and the account of every tensor.

    Raises:
        WeightsError: if the source cannot be read, is no RetinaNet of these frameworks, or does not fit.
        ConfigError: for an override or an ``origin`` that does not exist.
        InputError: for classes that cannot be read.
    """
    overrides = dict(overrides or {})
    if origin not in ("auto", *FRAMEWORKS):
        raise ConfigError(f"unknown framework {origin!r}; known: auto, {', '.join(FRAMEWORKS)}{nearest(origin, FRAMEWORKS)}")
    if BACKBONE in overrides and overrides[BACKBONE] not in RESNETS:
        name = overrides[BACKBONE]
        raise ConfigError(f"backbone={name}: only ResNets can be converted: {', '.join(RESNETS)}{nearest(str(name), RESNETS)}")
    override_conventions(Conventions(), _independent(overrides))  # a wrong name is said before a large file is read
    given = None if classes is None else read_class_list(classes)
    text = str(source)
    if not text.startswith(HUB) and _is_ours(Path(source)):
        return _own(Path(source), given, overrides)
    file = read_hub(text.removeprefix(HUB)) if text.startswith(HUB) else read_foreign(Path(source))
    blueprint = recognise(file, origin)
    return assemble(file, blueprint, given=given, overrides=overrides, source=text if text.startswith(HUB) else Path(source).name)


def recognise(file: ForeignFile, origin: str = "auto") -> Blueprint:
    """Which framework's file this is, and how to read it.

    Raises:
        WeightsError: if it is none that is known, or not the one that was asked for.
    """
    names = file.tensors.keys()
    found = [key for key, module in FRAMEWORKS.items() if module.recognises(names)]
    if origin == "auto" and len(found) != 1:
        some = ", ".join(list(names)[:3])
        raise WeightsError(
            f"{file.where} is no RetinaNet of {', '.join(FRAMEWORKS)} by its {len(names)} tensors ({some}, ...); "
            "name the framework with --from, or give the file of the whole detector"
        )
    if origin != "auto" and origin not in found:
        looks = f"it looks like {found[0]}" if found else f"its tensors are {', '.join(list(names)[:3])}, ..."
        raise WeightsError(f"{file.where} is no RetinaNet of {origin}: {looks}; leave --from out, or give another file")
    module = FRAMEWORKS[origin if origin != "auto" else found[0]]
    blueprint: Blueprint = module.blueprint(file)
    return blueprint


def assemble(
    file: ForeignFile, blueprint: Blueprint, *, given: ClassList | None = None, overrides: Mapping[str, Any] | None = None, source: str
) -> Conversion:
    """Build, fill and name a model from tensors and the way to read them; arguments and errors as :func:`convert`."""
    overrides = dict(overrides or {})
    structure = read_structure(file.tensors, blueprint.name, where=file.where, backbone=overrides.get(BACKBONE))
    conventions = blueprint.conventions
    if structure.p6_source:
        conventions = conventions.model_copy(update={"p6_source": structure.p6_source})
    conventions = override_conventions(conventions, overrides)
    if structure.num_anchors != conventions.anchors.num_anchors:
        raise WeightsError(
            f"the box predictor of {file.where} is for {structure.num_anchors} anchors a cell, {blueprint.framework} has "
            f"{conventions.anchors.num_anchors}; {_ANCHORS_WAY_OUT}"
        )
    for stride, stored in zip(STRIDES, blueprint.cell_anchors, strict=False):
        ours = cell_anchors(stride, conventions.anchors)
        if stored.shape != ours.shape or not torch.allclose(stored.float(), ours, atol=0.01):
            raise WeightsError(f"{file.where} holds other anchors of stride {stride} than {blueprint.framework}'s; {_ANCHORS_WAY_OUT}")
    rows, wanted = assign_rows(structure.num_rows, blueprint, given)
    filled = transfer(file, blueprint, structure, conventions, rows.rows)
    assumed = [item for item in blueprint.assumed if item.setting not in overrides]
    note = rows.note
    if rows.ground in ("unknown", "COCO's by their number"):
        assumed.append(Assumption(setting="classes", value=f"{len(rows.categories)}", why=f"{note}; --classes names others"))
    report = ConversionReport(
        source=source,
        framework=blueprint.framework,
        generation=blueprint.generation,
        backbone=structure.backbone,
        used=filled.used,
        unused=filled.unused,
        assumed=assumed,
        classes=rows.categories,
        class_note=note,
    )
    is_plain = structure.plan == HeadPlan()
    record = make_record(
        filled.model,
        preset="retinanet" if is_plain else f"retinanet ({len(structure.plan.shared.units)} units {structure.plan.shared.units[0]})",
        backbone=structure.backbone,
        width=structure.width,
        norm="frozen",
        plan=structure.plan,
        categories=rows.categories,
        notes={"converted": report.summary()},
    )
    conversion = Conversion(
        loaded=LoadedModel(model=filled.model, record=record),
        report=report,
        origin=Origin(file=file, blueprint=blueprint, structure=structure, rows=rows.rows),
    )
    return conversion if wanted is None else _changed(conversion, with_known_ids(wanted, rows.categories))


def _changed(conversion: Conversion, categories: tuple[Category, ...]) -> Conversion:
    before = conversion.loaded.record.categories
    loaded = change_classes(conversion.loaded, categories)
    kept = loaded.record.notes["classes_changed"]["kept"]
    note = f"{conversion.report.class_note}; changed for {len(categories)} classes, {len(kept)} of which keep their weights"
    if tuple(category.name for category in before) == tuple(category.name for category in categories):
        note = conversion.report.class_note
    assumed = [item for item in conversion.report.assumed if item.setting != "classes"]
    report = replace(conversion.report, classes=categories, class_note=note, assumed=assumed)
    notes = {**loaded.record.notes, "converted": report.summary()}
    record = loaded.record.model_copy(update={"notes": notes})
    return Conversion(loaded=LoadedModel(model=loaded.model, record=record), report=report)


def _independent(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides that can be checked without knowing what they go beside."""
    return {key: value for key, value in overrides.items() if key != "input.rounding"}


def _is_ours(path: Path) -> bool:
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            if file.read(9)[8:] != b"{":
                return False
        with safe_open(path, framework="pt") as tensors:
            return KEY in (tensors.metadata() or {})
    except (SafetensorError, OSError, ValueError):
        return False


def _own(path: Path, given: ClassList | None, overrides: Mapping[str, Any]) -> Conversion:
    """A model file with other classes or conventions."""
    loaded = load_model(path)
    record = loaded.record
    if BACKBONE in overrides:
        raise ConfigError(f"{path} is a model file, which says its backbone itself; leave backbone={overrides[BACKBONE]} out")
    conventions = override_conventions(record.conventions, overrides)
    if conventions != record.conventions:
        loaded = _reconvened(path, loaded, conventions)
    report = ConversionReport(
        source=path.name,
        framework="lw_retinanet",
        generation=f"version {record.version}",
        backbone=record.backbone,
        used={name: name for name in loaded.model.state_dict()},
        unused={},
        assumed=(),
        classes=loaded.record.categories,
        class_note="the file names its classes",
    )
    conversion = Conversion(loaded=loaded, report=report)
    return conversion if given is None else _changed(conversion, with_known_ids(given, record.categories))


def _reconvened(path: Path, loaded: LoadedModel, conventions: Conventions) -> LoadedModel:
    """The same tensors in a network of other conventions."""
    record = loaded.record
    try:
        model = build_network(record, conventions=conventions)
        model.load_state_dict(loaded.model.state_dict(), assign=True)
    except (ConfigError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise WeightsError(f"the tensors of {path} do not fit these conventions: {reason}; set others") from None
    return LoadedModel(model=model.eval(), record=record.model_copy(update={"conventions": conventions}))
