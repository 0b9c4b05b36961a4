"""Weights of another framework in, one of our models out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lw_retinanet.conventions import STRIDES, Conventions
from lw_retinanet.data.records import Category
from lw_retinanet.errors import ConfigError, WeightsError, nearest, shown
from lw_retinanet.heads import PRESETS, HeadPlan
from lw_retinanet.models.anchors import cell_anchors
from lw_retinanet.models.backbone import RESNETS
from lw_retinanet.weights.classes import change_classes
from lw_retinanet.weights.foreign import frameworks, torchvision
from lw_retinanet.weights.foreign.class_rows import GivenClasses, assign_classes, read_classes, with_known_ids
from lw_retinanet.weights.foreign.convention_overrides import BACKBONE, WEIGHTS, apply_overrides, convention_values
from lw_retinanet.weights.foreign.conversion import ConventionOrigin, ConversionReport, ConversionSource, ConvertedModel
from lw_retinanet.weights.foreign.network import Architecture, fill_network, read_architecture
from lw_retinanet.weights.foreign.weights_file import HUB_FILES, ForeignFile, read_weights_file
from lw_retinanet.weights.foreign.weights_format import Assumption, WeightsFormat
from lw_retinanet.weights.model_file import KEY, LoadedModel, build_network, find_model_file, load_model, make_record
from lw_retinanet.weights.stride_rule import BOTTLENECKS, measured_stride, resnet_names
from lw_retinanet.weights.tensor_file import read_header

HALF_ROUNDING = 2**-10  # of anchors that were stored in fp16
_ANCHORS_REMEDY = "give them as anchors.octave_scales=[...] and anchors.aspect_ratios=[...]"


def convert(
    source: str | Path,
    *,
    origin: str = "auto",
    classes: str | Path | Sequence[str] | Sequence[Category] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> ConvertedModel:
    """Convert a weights file of torchvision, Detectron2, MMDetection, odtk or the original Detectron.

    The parameters and errors are those of :func:`lw_retinanet.convert`, which also compares the result with the framework and writes it.

    Returns:
        The model with the conventions of its framework (``loaded``), and a report on every tensor (``report``).
    """
    overrides = dict(overrides or {})
    if origin not in ("auto", *frameworks.NAMES):
        known = f"auto, {', '.join(frameworks.NAMES)}{nearest(origin, frameworks.NAMES)}"
        raise ConfigError(f"unknown framework {origin!r}; known: {known}")
    if BACKBONE in overrides and overrides[BACKBONE] not in RESNETS:
        name = overrides[BACKBONE]
        raise ConfigError(f"backbone={name}: only ResNets can be converted: {', '.join(RESNETS)}{nearest(str(name), RESNETS)}")
    # A wrong name is reported before a large file is read. Whether a rounding is allowed depends on the framework's other conventions.
    apply_overrides(Conventions(), {key: value for key, value in overrides.items() if key != "input.rounding"})
    given = None if classes is None else read_classes(classes)
    text = str(source)
    weights = None if overrides.get(WEIGHTS) is None else str(overrides[WEIGHTS])
    if torchvision.is_named(text):
        if weights is not None:
            raise ConfigError(f"{text} holds one detector; leave weights={shown(weights)} out")
        file = torchvision.download(text)
        return convert_file(file, frameworks.recognise(file, origin), given=given, overrides=overrides, source=text)
    if _is_model_file(Path(source)):
        return _convert_model_file(Path(source), given, overrides)
    file = read_weights_file(Path(source), weights=weights)
    return convert_file(file, frameworks.recognise(file, origin), given=given, overrides=overrides, source=Path(source).name)


def require_model(model: str | Path) -> None:
    """Check that there is a model for :func:`open_model`, without reading it.

    Raises:
        WeightsError: If there is none.
    """
    if torchvision.is_named(model):
        torchvision.require_known(model)
    else:
        find_model_file(Path(model))


def open_model(model: str | Path) -> LoadedModel:
    """The model of a model file or run folder, or torchvision's own trained weights as ``torchvision:NAME``.

    Raises:
        WeightsError: If there is none, or it cannot be used.
    """
    return convert(model).loaded if torchvision.is_named(model) else load_model(Path(model))


def convert_file(
    file: ForeignFile,
    layout: WeightsFormat,
    *,
    given: GivenClasses | None = None,
    overrides: Mapping[str, Any] | None = None,
    source: str,
) -> ConvertedModel:
    """Convert tensors whose format is known; errors as :func:`convert`.

    Args:
        file: The tensors.
        layout: How to read them.
        given: Classes from the caller, if there are any.
        overrides: As in :func:`convert`.
        source: Name of the source, for the report.
    """
    overrides = dict(overrides or {})
    architecture = read_architecture(file.tensors, layout.names, where=file.where, backbone=overrides.get(BACKBONE))
    layout = _with_measured_stride(file, layout, architecture, overrides)
    conventions = apply_overrides(_stated_conventions(file, layout, architecture, overrides), overrides)
    _check_anchors(file, layout, architecture, conventions)
    rows, wanted = assign_classes(architecture.num_rows, layout, given, file.where)
    filled = fill_network(file, layout, architecture, conventions, rows.rows)
    stated = layout.statements.conventions
    assumed = [item for item in layout.assumed if item.setting not in overrides and item.setting not in stated]
    if len(file.weights) > 1:
        why = f"the file also holds {', '.join(map(shown, file.weights[1:]))}"
        assumed.append(Assumption(setting=WEIGHTS, value=file.weights[0], why=why))
    if rows.source in ("unknown", "number of COCO's rows"):
        assumed.append(Assumption(setting="classes", value=f"{len(rows.categories)}", why=rows.note))
    report = ConversionReport(
        source=source,
        framework=layout.framework,
        generation=layout.generation,
        backbone=architecture.backbone,
        used=filled.used,
        unused={**filled.unused, **file.left_out},
        assumed=assumed,
        classes=rows.categories,
        class_note=rows.note,
        conventions=_origins(conventions, layout, architecture, overrides),
    )
    record = make_record(
        filled.model,
        preset=_preset_name(architecture.plan),
        backbone=architecture.backbone,
        width=architecture.width,
        norm="frozen",
        plan=architecture.plan,
        categories=rows.categories,
        notes={"converted": report.summary()},
    )
    converted = ConvertedModel(
        loaded=LoadedModel(model=filled.model, record=record),
        report=report,
        source=ConversionSource(file=file, layout=layout, architecture=architecture, rows=rows.rows),
    )
    return converted if wanted is None else _with_classes(converted, with_known_ids(wanted, rows.categories))


def _preset_name(plan: HeadPlan) -> str:
    """The preset that has this plan, or words for it."""
    named = next((name for name, preset in PRESETS.items() if preset == plan), None)
    if named is None and (plan.cls or plan.bbox):
        return "light"
    units = plan.shared.units
    return named or f"retinanet ({len(units)} units {units[0]})"


def _stated_conventions(file: ForeignFile, layout: WeightsFormat, architecture: Architecture, overrides: Mapping[str, Any]) -> Conventions:
    """The framework's conventions with what shapes and statements of the file say, unless the caller says something else."""
    conventions = layout.conventions
    if architecture.p6_source:
        conventions = conventions.model_copy(update={"p6_source": architecture.p6_source})
    for setting, stated in layout.statements.conventions.items():
        if setting not in overrides:
            try:
                conventions = apply_overrides(conventions, {setting: stated.value})
            except ConfigError as error:
                raise WeightsError(f"{file.where} states a value that cannot be used ({stated.where}): {error}; set {setting}") from None
    return conventions


def _with_measured_stride(
    file: ForeignFile, layout: WeightsFormat, architecture: Architecture, overrides: Mapping[str, Any]
) -> WeightsFormat:
    """The format with a measured stride rule, where neither the file nor the caller names one and the norms can tell."""
    if "stride_in" in overrides or "stride_in" in layout.statements.conventions or architecture.backbone not in BOTTLENECKS:
        return layout
    names = {ours: layout.names(f"backbone.{ours}") for ours in resnet_names(architecture.backbone)}
    tensors = {ours: file.tensors[theirs] for ours, theirs in names.items() if theirs is not None and theirs in file.tensors}
    rule = _stated_conventions(file, layout, architecture, overrides)
    measured = measured_stride(architecture.backbone, tensors, rule.input, eps=rule.norm_eps)
    if measured is None:
        return layout
    value, why = measured
    others = tuple(item for item in layout.assumed if item.setting != "stride_in")
    return replace(
        layout,
        conventions=layout.conventions.model_copy(update={"stride_in": value}),
        assumed=(*others, Assumption(setting="stride_in", value=value, why=why)),
    )


def _origins(
    conventions: Conventions, layout: WeightsFormat, architecture: Architecture, overrides: Mapping[str, Any]
) -> tuple[ConventionOrigin, ...]:
    """Where the value of each convention comes from."""
    assumed = {item.setting: item.why for item in layout.assumed}
    origins = []
    for setting, value in convention_values(conventions).items():
        if setting in overrides:
            origins.append(ConventionOrigin(setting=setting, value=value, origin="set"))
        elif setting in layout.statements.conventions:
            where = layout.statements.conventions[setting].where
            origins.append(ConventionOrigin(setting=setting, value=value, origin="file", why=where))
        elif setting == "p6_source" and architecture.p6_source:
            origins.append(ConventionOrigin(setting=setting, value=value, origin="file", why="the shape of P6's kernel"))
        else:
            why = assumed.get(setting, f"{layout.framework}'s own")
            origins.append(ConventionOrigin(setting=setting, value=value, origin="assumed", why=why))
    return tuple(origins)


def _check_anchors(file: ForeignFile, layout: WeightsFormat, architecture: Architecture, conventions: Conventions) -> None:
    if architecture.num_anchors != conventions.anchors.num_anchors:
        raise WeightsError(
            f"the box predictor of {file.where} is for {architecture.num_anchors} anchors in a cell, {layout.framework} has "
            f"{conventions.anchors.num_anchors}; {_ANCHORS_REMEDY}"
        )
    for stride, stored in zip(STRIDES, layout.cell_anchors, strict=False):
        ours = cell_anchors(stride, conventions.anchors)
        if stored.shape != ours.shape or not torch.allclose(stored.float(), ours, rtol=HALF_ROUNDING, atol=0.01):
            raise WeightsError(f"{file.where} holds other anchors of stride {stride} than {layout.framework}'s; {_ANCHORS_REMEDY}")


def _with_classes(converted: ConvertedModel, categories: tuple[Category, ...]) -> ConvertedModel:
    before = converted.loaded.record.categories
    loaded = change_classes(converted.loaded, categories)
    note = converted.report.class_note
    if tuple(category.name for category in before) != tuple(category.name for category in categories):
        kept = loaded.record.notes["classes_changed"]["kept"]
        note = f"{note}; changed for {len(categories)} classes, {len(kept)} of which keep their weights"
    assumed = [item for item in converted.report.assumed if item.setting != "classes"]
    report = replace(converted.report, classes=categories, class_note=note, assumed=assumed)
    record = loaded.record.model_copy(update={"notes": {**loaded.record.notes, "converted": report.summary()}})
    return ConvertedModel(loaded=LoadedModel(model=loaded.model, record=record), report=report)


def _is_model_file(path: Path) -> bool:
    """Whether this is a model file of ours, or a folder that may hold one."""
    if path.is_dir():
        path = path / "model.safetensors"
        if not path.is_file():  # a run folder without a model, which is said; or weights as the hub has them
            return not any((path.parent / name).is_file() for name in HUB_FILES)
    try:
        return KEY in read_header(path).metadata
    except (SafetensorError, OSError):
        return False


def _convert_model_file(path: Path, given: GivenClasses | None, overrides: Mapping[str, Any]) -> ConvertedModel:
    """A model file of ours with other classes or conventions."""
    loaded = load_model(path)
    record = loaded.record
    for name in (BACKBONE, WEIGHTS):
        if name in overrides:
            raise ConfigError(f"{path} is a model file, which has its own {name}; leave {name}={overrides[name]} out")
    conventions = apply_overrides(record.conventions, overrides)
    if conventions != record.conventions:
        try:
            model = build_network(record, conventions=conventions)
            model.load_state_dict(loaded.model.state_dict(), assign=True)
        except (ConfigError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise WeightsError(f"the tensors of {path} do not fit these conventions: {reason}; set others") from None
        loaded = LoadedModel(model=model.eval(), record=record.model_copy(update={"conventions": conventions}))
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
        conventions=tuple(
            ConventionOrigin(setting=setting, value=value, origin="set" if setting in overrides else "file", why="the model file's record")
            for setting, value in convention_values(conventions).items()
        ),
    )
    converted = ConvertedModel(loaded=loaded, report=report)
    return converted if given is None else _with_classes(converted, with_known_ids(given, record.categories))
