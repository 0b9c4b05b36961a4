"""The result of a conversion: the model, and a report of what was read, left out and assumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lw_retinanet.data.records import Category
from lw_retinanet.weights.foreign.network import Architecture
from lw_retinanet.weights.foreign.weights_file import ForeignFile
from lw_retinanet.weights.foreign.weights_format import Assumption, WeightsFormat
from lw_retinanet.weights.model_file import LoadedModel


@dataclass(frozen=True, kw_only=True)
class FrameworkComparison:
    """How far the converted model's predictions are from those of its original framework.

    Args:
        status: ``checked``, or the reason why there is no comparison.
        images: How many images were compared, and at what size.
        differences: Largest absolute difference of logits, deltas, anchors (pixels), boxes (pixels) and scores; and ``unmatched``, the
            number of detections without a match. Detections at a threshold are not counted, since rounding decides them.
        detections: Number of detections of the framework on all images.
        unmatched: The first detections without a match, as text.
    """

    status: str
    images: str = ""
    differences: Mapping[str, float]
    detections: int = 0
    unmatched: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "status": self.status,
            "pictures": self.images,
            "detections": self.detections,
            "differences": dict(self.differences),
            "unmatched": list(self.unmatched),
        }


@dataclass(frozen=True, kw_only=True)
class ConventionOrigin:
    """The value of a convention and where it comes from.

    Args:
        setting: Dotted name of a field of Conventions.
        value: Its value.
        origin: ``file``, ``assumed`` or ``set`` by the caller.
        why: The place in the file, or the reason for the assumption.
    """

    setting: str
    value: Any
    origin: Literal["file", "assumed", "set"]
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """What was read, left out and assumed.

    Args:
        source: Name of the file.
        framework: The framework that wrote it.
        generation: Version or variant of the framework's format.
        backbone: Name of the backbone, as the setting ``model.backbone`` takes it.
        used: Name of each of our tensors -> name of the file's tensor that fills it.
        unused: Name of each other tensor of the file -> the reason why it is left out.
        assumed: What the file does not state.
        classes: The classes, in the order of the labels.
        class_note: How the classes are known and which rows were left out.
        conventions: The value of each convention and where it comes from.
        comparison: How far the predictions are from the framework's; None if this was not compared.
    """

    source: str
    framework: str
    generation: str
    backbone: str
    used: Mapping[str, str]
    unused: Mapping[str, str]
    assumed: Sequence[Assumption]
    classes: tuple[Category, ...]
    class_note: str
    conventions: Sequence[ConventionOrigin] = ()
    comparison: FrameworkComparison | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            **self.summary(),
            "used": dict(self.used),
            "unused": dict(self.unused),
            "classes": [{"id": category.id, "name": category.name} for category in self.classes],
        }

    def summary(self) -> dict[str, Any]:
        """Return plain values without the long lists, for the notes of a model file."""
        return {
            "source": self.source,
            "framework": self.framework,
            "generation": self.generation,
            "backbone": self.backbone,
            "tensors_used": len(self.used),
            "tensors_unused": len(self.unused),
            "assumed": [{"setting": item.setting, "value": item.value, "why": item.why} for item in self.assumed],
            "conventions": {item.setting: {"value": item.value, "origin": item.origin, "why": item.why} for item in self.conventions},
            "class_note": self.class_note,
            "parity": self.comparison.as_dict() if self.comparison else None,
        }

    def lines(self, *, set_by: str = "set by the caller") -> list[str]:
        """Return the report as lines of text.

        Args:
            set_by: What is said of a convention that the caller set.
        """
        names = ", ".join(category.name for category in self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        lines = [
            f"{self.source}: {self.framework} ({self.generation}), {self.backbone}, {len(self.classes)} classes ({names})",
            f"classes: {self.class_note}",
            f"tensors: {len(self.used)} used, {len(self.unused)} left out",
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.unused.items():
            reasons.setdefault(reason, []).append(name)
        for reason, unused in reasons.items():
            listed = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
            lines.append(f"  left out, {reason}: {listed}")
        lines += self._convention_lines(set_by)
        known = {item.setting for item in self.conventions}
        lines += [f"  {item.setting} = {_short(item.value)}: {item.why}" for item in self.assumed if item.setting not in known]
        compared = self.comparison
        if compared and compared.differences:
            lines.append(f"largest differences from {self.framework} itself, {compared.images}, {compared.detections} detections:")
            lines += [f"  {name:10} {_number(value)}" for name, value in compared.differences.items()]
            lines += [f"  without a match: {text}" for text in compared.unmatched]
        elif compared:
            lines.append(f"not compared with {self.framework} itself: {compared.status}")
        return lines

    def _convention_lines(self, set_by: str) -> list[str]:
        if not self.conventions:
            return []
        said = {"file": "from the file", "assumed": "assumed", "set": set_by}
        rows = [
            (item.setting, _short(item.value), said[item.origin] + (f": {item.why}" if item.why and item.origin != "set" else ""))
            for item in self.conventions
        ]
        return ["conventions (another value: set NAME=VALUE):", *_table(rows)]


def _table(rows: Sequence[tuple[str, str, str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"  {setting:{widths[0]}}  {value:{widths[1]}}  {origin}" for setting, value, origin in rows]


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"


@dataclass(frozen=True, kw_only=True)
class ConversionSource:
    """What a model was converted from, for a comparison with the framework itself.

    Args:
        file: The tensors as the file holds them.
        layout: Their names.
        architecture: What their shapes determine.
        rows: The class rows that became classes, in the order of the labels.
    """

    file: ForeignFile
    layout: WeightsFormat
    architecture: Architecture
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ConvertedModel:
    """A converted model.

    Args:
        loaded: Network and record, ready for :func:`~lw_retinanet.weights.model_file.save_model`.
        report: What was read, left out and assumed; a summary is in the record's notes under ``converted``.
        source: What it was converted from; None if that was a model file, or if the classes were changed.
    """

    loaded: LoadedModel
    report: ConversionReport
    source: ConversionSource | None = None

    def save(self, path: str | Path, *, half: bool = False) -> Path:
        """Write the model file and return its path; ``half`` stores convolutions in fp16."""
        return self.loaded.save(path, half=half)

    def with_comparison(self, comparison: FrameworkComparison) -> "ConvertedModel":
        """Return the same model with a comparison in its report and notes."""
        report = replace(self.report, comparison=comparison)
        record = self.loaded.record
        noted = record.model_copy(update={"notes": {**record.notes, "converted": report.summary()}})
        return replace(self, loaded=LoadedModel(model=self.loaded.model, record=noted), report=report)
