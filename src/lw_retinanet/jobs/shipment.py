"""What a shipment came to: the forms that were tried, and the one that is shipped."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from lw_retinanet.counting.profile import Profile
from lw_retinanet.devices import Precision
from lw_retinanet.tables import aligned


@dataclass(frozen=True, kw_only=True)
class Form:
    """The light model in one runtime and precision.

    Args:
        name: Runtime and precision.
        file: The file to load.
        precision: To open it with: ``bf16``, or ``fp32``, which is the default everywhere and also for int8 files.
        ms: Median milliseconds from an encoded image to boxes; None if it was not timed.
        ap: On ``val``, 0..1; None if it was not scored.
        difference: That minus the AP of the original.
        low, high: 95 % interval of the difference; None if it was not computed.
        outcome: What became of it.
        reason: Why it is not shipped.
    """

    name: str
    file: Path
    precision: Precision = "fp32"
    ms: float | None = None
    ap: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    outcome: Literal["shipped", "refused", "slower", "not made"] = "slower"
    reason: str = ""

    @property
    def folder(self) -> str:
        """The name of the folder with its detections, metrics and figures."""
        return f"scored-{self.name.lower().replace(' ', '-')}"

    def refused(self, reason: str) -> Self:
        """The same, refused."""
        return replace(self, outcome="refused", reason=reason)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        named = {"form": self.name, "file": str(self.file), "precision": self.precision, "AP": self.ap, "difference": self.difference}
        return {**named, "ms": self.ms, "outcome": self.outcome, "reason": self.reason}


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """What was made.

    Args:
        page: The path of ``results.md``.
        title: The model's name.
        original_ap: AP of the original on ``val``, 0..1.
        original_cost: MACs and parameters of the original.
        light_cost: The same of the light model, in whatever form.
        images: Number of images that AP was measured on.
        max_drop: Points of AP that the shipped file may lose.
        tried: The forms, and what became of them.
        benchmark: What :func:`~lw_retinanet.benchmarking.run.benchmark` measured; None if it did not come to that.
    """

    page: Path
    title: str
    original_ap: float
    original_cost: Profile
    light_cost: Profile
    images: int
    max_drop: float
    tried: tuple[Form, ...] = ()
    benchmark: Mapping[str, Any] | None = None

    @property
    def shipped(self) -> Form | None:
        """The fastest form with an AP inside the limit; None if there is none."""
        return next((form for form in self.tried if form.outcome == "shipped"), None)

    @property
    def original_ms(self) -> float | None:
        """Median milliseconds of the original in PyTorch, fp32."""
        return self._ms(lambda row: row["family"] == "ours" and row["model"] == "original.safetensors" and row["precision"] == "fp32")

    @property
    def torchvision_ms(self) -> float | None:
        """Median milliseconds of torchvision's RetinaNet as shipped."""
        return self._ms(lambda row: row["family"] == "torchvision" and row["how"] == "as shipped")

    def _ms(self, is_meant: Any) -> float | None:
        rows = self.benchmark["contenders"] if self.benchmark else []
        return next((row["latency_ms"]["median"] for row in rows if is_meant(row)), None)

    def as_dict(self) -> dict[str, Any]:
        """The JSON of ``ship``."""
        shipped = self.shipped
        return {
            "original": {"AP": self.original_ap, "macs": self.original_cost.macs, "ms": self.original_ms},
            "shipped": shipped
            and {
                "file": str(shipped.file),
                "AP": shipped.ap,
                "difference": shipped.difference,
                "low": shipped.low,
                "high": shipped.high,
                "macs": self.light_cost.macs,
                "ms": shipped.ms,
            },
            "torchvision_ms": self.torchvision_ms,
            "tried": [form.as_dict() for form in self.tried],
        }

    def lines(self) -> list[str]:
        """Tables for people, and a verdict."""
        return [*aligned(self.table()), "", *aligned(self.tried_table(), left=(0, 4, 5)), "", self.verdict()]

    def table(self) -> list[list[str]]:
        """A header, torchvision, the original, and what is shipped."""
        rows = [["", "AP", "GMACs", "Mparams", "ms", "times torchvision as shipped"]]
        if self.torchvision_ms:
            rows.append(["torchvision as shipped", "", "", "", f"{self.torchvision_ms:.1f}", "1"])
        cost = self.original_cost
        rows.append(["original, PyTorch fp32", f"{self.original_ap:.4f}", *_cost_cells(cost), *self._speed_cells(self.original_ms)])
        if shipped := self.shipped:
            ap = f"{shipped.ap:.4f}"
            rows.append([f"shipped, {shipped.name}", ap, *_cost_cells(self.light_cost), *self._speed_cells(shipped.ms)])
        return rows

    def _speed_cells(self, ms: float | None) -> list[str]:
        return [f"{ms:.1f}", f"{self.torchvision_ms / ms:.1f}" if self.torchvision_ms else ""] if ms else ["", ""]

    def tried_table(self) -> list[list[str]]:
        """A header, and a row for each form that was tried."""
        rows = [["tried", "ms", "AP", "points", "outcome", "why"]]
        for form in self.tried:
            ms, ap = ("" if value is None else f"{value:{how}}" for value, how in ((form.ms, ".1f"), (form.ap, ".4f")))
            shift = "" if form.difference is None else f"{100 * form.difference:+.2f}"
            rows.append([form.name, ms, ap, shift, form.outcome, form.reason])
        return rows

    def verdict(self) -> str:
        """What came of it, in one or two sentences."""
        shipped = self.shipped
        fewer = f"{self.original_cost.macs / self.light_cost.macs:.2f}x fewer MACs"
        if shipped is None or shipped.difference is None:
            lost = [form for form in self.tried if form.difference is not None]
            best = max((100 * form.difference for form in lost if form.difference is not None), default=float("nan"))
            return (
                f"Nothing is shipped: the light model changes AP by {best:+.2f} points, and max_drop allows a loss of {self.max_drop:g}. "
                "All steps are kept: call again with a larger max_drop, or with epochs if the data set has labels to train on."
            )
        interval = ", too few images for an interval"
        if shipped.low is not None and shipped.high is not None:
            interval = f", 95 % interval {100 * shipped.low:+.2f} .. {100 * shipped.high:+.2f}"
        speed = ""
        if shipped.ms and self.original_ms:
            speed = f", {self.original_ms / shipped.ms:.1f}x the original's speed"
            speed += f" and {self.torchvision_ms / shipped.ms:.1f}x that of torchvision as shipped" if self.torchvision_ms else ""
        return (
            f"Shipped: {shipped.file} ({shipped.name}), {fewer}{speed}. "
            f"AP changes by {100 * shipped.difference:+.2f} points{interval}, on {self.images:,} images."
        )


def _cost_cells(cost: Profile) -> list[str]:
    return [f"{cost.macs / 1e9:.2f}", f"{cost.params / 1e6:.2f}"]
