"""What a conversion gives: the model, and the account of how it came about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lw_retinanet.data.records import Category
from lw_retinanet.weights.foreign.blueprint import Assumption, Blueprint, Structure
from lw_retinanet.weights.foreign.state_file import ForeignFile
from lw_retinanet.weights.model_file import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far the converted model's answers are from its origin's.

    Args:
        status: ``checked``, or why there is no comparison.
        pictures: how many were compared, and at what size.
        differences: largest absolute difference of logits, deltas, anchors (pixels), boxes (pixels), scores; and ``unmatched``: detections
            without a counterpart, ties at the cut aside.
        detections: of the origin, on all pictures.
    """

    status: str
    pictures: str = ""
    differences: Mapping[str, float]
    detections: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "pictures": self.pictures,
            "detections": self.detections,
            "differences": dict(self.differences),
        }


@dataclass(frozen=True, kw_only=True)
class ConversionReport:
    """The account.

    Args:
        source: name of the file.
        framework: where the weights come from.
        generation: which of the framework's forms.
        backbone: setting.
        used: our tensor name -> the file's.
        unused: the file's tensor name -> why it is left out.
        assumed: what the file does not say.
        classes: in the order of the labels.
        class_note: how they are known and which rows were left out.
        parity: None where nobody asked.
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
    parity: Parity | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for ``--json``."""
        return {
            **self.summary(),
            "used": dict(self.used),
            "unused": dict(self.unused),
            "classes": [{"id": category.id, "name": category.name} for category in self.classes],
        }

    def summary(self) -> dict[str, Any]:
        """Without the long lists, for a model's notes."""
        return {
            "source": self.source,
            "framework": self.framework,
            "generation": self.generation,
            "backbone": self.backbone,
            "tensors_used": len(self.used),
            "tensors_unused": len(self.unused),
            "assumed": [{"setting": item.setting, "value": item.value, "why": item.why} for item in self.assumed],
            "class_note": self.class_note,
            "parity": self.parity.as_dict() if self.parity else None,
        }

    def lines(self) -> list[str]:
        """For people."""
        names = ", ".join(category.name for category in self.classes[:6]) + (", ..." if len(self.classes) > 6 else "")
        found = [
            f"{self.source}: {self.framework} ({self.generation}), {self.backbone}, {len(self.classes)} classes ({names})",
            f"classes: {self.class_note}",
            f"tensors: {len(self.used)} used, {len(self.unused)} left out",
        ]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.unused.items():
            reasons.setdefault(reason, []).append(name)
        for reason, unused in reasons.items():
            listed = ", ".join(unused[:3]) + (f" and {len(unused) - 3} more" if len(unused) > 3 else "")
            found.append(f"  left out, {reason}: {listed}")
        if self.assumed:
            found.append("assumed, since the file does not say (another value by --set NAME=VALUE):")
            found += [f"  {item.setting} = {_short(item.value)}: {item.why}" for item in self.assumed]
        if self.parity and self.parity.differences:
            found.append(f"largest differences from {self.framework} itself, {self.parity.pictures}, {self.parity.detections} detections:")
            found += [f"  {name:10} {_number(value)}" for name, value in self.parity.differences.items()]
        elif self.parity:
            found.append(f"not compared with {self.framework} itself: {self.parity.status}")
        return found


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if value == int(value) else f"{value:.2g}"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What the converted model was made of, for a comparison with the origin's own program.

    Args:
        file: tensors as they were.
        blueprint: their names.
        structure: what their shapes mean.
        rows: class rows that became classes, in the order of the labels.
    """

    file: ForeignFile
    blueprint: Blueprint
    structure: Structure
    rows: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A converted model.

    Args:
        loaded: network and record, ready for :func:`~lw_retinanet.weights.model_file.save_model`.
        report: the account, also in the record's notes under ``converted``.
        origin: None where the source was a model file, or the classes were changed.
    """

    loaded: LoadedModel
    report: ConversionReport
    origin: Origin | None = None

    def with_parity(self, parity: Parity) -> "Conversion":
        """The same with a comparison, in the report and in the model's notes."""
        report = replace(self.report, parity=parity)
        record = self.loaded.record
        noted = record.model_copy(update={"notes": {**record.notes, "converted": report.summary()}})
        return replace(self, loaded=LoadedModel(model=self.loaded.model, record=noted), report=report)
