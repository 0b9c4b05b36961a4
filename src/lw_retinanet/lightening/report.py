"""What lightening saved and cost, stage by stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lw_retinanet import __version__
from lw_retinanet.counting.profile import profile
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.evaluation.paired import Comparison
from lw_retinanet.lightening.stages import Lightened
from lw_retinanet.tables import aligned


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage of the report.

    Args:
        name: Name of the stage.
        macs: MACs of the model after the stage, for one image of the report's size.
        params: Number of parameters that the model after the stage runs.
        seconds: Duration of the stage.
        metrics: COCO metrics by name, 0..1; empty if nothing was evaluated.
        low: Lower end of the 95 % interval of the difference in AP to the full head, paired over images; None if it was not computed.
        high: Upper end of this interval.
        latency_ms: Median latency by precision; empty if it was not measured.
    """

    name: str
    macs: int
    params: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    low: float | None = None
    high: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LighteningReport:
    """The whole report.

    Args:
        source: Name of the model that was lightened.
        to: Name of the plan.
        size_hw: Image size for MACs and latency.
        num_classes: Number of classes.
        num_images: Number of calibration images.
        num_maps: Number of feature maps that the towers were fitted to, mirrored images counted.
        evaluated_on: Number of images that AP was measured on; 0 for none.
        rows: The stages, the full head first.
        errors: By level and branch, the share of the old outputs' variance that the closed form misses.
        curve: By level, the steps of the fit with their class and box losses.
    """

    source: str
    to: str
    size_hw: tuple[int, int]
    num_classes: int
    num_images: int
    num_maps: int
    evaluated_on: int
    rows: Sequence[StageRow]
    errors: Mapping[str, float]
    curve: Mapping[str, Mapping[str, Sequence[float]]]

    def as_dict(self) -> dict[str, Any]:
        """The content of ``report.json`` and of the command's JSON output."""
        stages = [
            {
                "name": row.name,
                "macs": row.macs,
                "params": row.params,
                "seconds": round(row.seconds, 2),
                **{key: row.metrics.get(key) for key in METRICS},
                "difference": None if row.low is None else row.metrics["AP"] - self.rows[0].metrics["AP"],
                "low": row.low,
                "high": row.high,
                "latency_ms": dict(row.latency_ms),
            }
            for row in self.rows
        ]
        return {
            "version": __version__,
            "source": self.source,
            "to": self.to,
            "size_hw": list(self.size_hw),
            "num_classes": self.num_classes,
            "calibration": {"images": self.num_images, "views": self.num_maps},
            "evaluated_on": self.evaluated_on,
            "stages": stages,
            "closed_form_errors": dict(self.errors),
            "curve": {level: dict(values) for level, values in self.curve.items()},
        }

    def lines(self) -> list[str]:
        """Table and explanations as text."""
        return [*aligned(self.table()), "", *self.notes()]

    def table(self) -> list[list[str]]:
        """A header and one row for each stage, without columns that hold no value."""
        header = ["stage", "GMACs", "Mparams", *METRICS, "AP - full (95 %)", "ms fp32", "ms bf16", "seconds"]
        rows = []
        for row in self.rows:
            shift = ""
            if row.low is not None and row.high is not None:
                shift = f"{100 * (row.metrics['AP'] - self.rows[0].metrics['AP']):+.2f} ({100 * row.low:+.2f}..{100 * row.high:+.2f})"
            rows.append(
                [
                    row.name,
                    f"{row.macs / 1e9:.2f}",
                    f"{row.params / 1e6:.2f}",
                    *(f"{100 * row.metrics[key]:.2f}" if row.metrics.get(key, -1) >= 0 else "" for key in METRICS),
                    shift,
                    *(f"{row.latency_ms[key]:.0f}" if key in row.latency_ms else "" for key in ("fp32", "bf16")),
                    f"{row.seconds:.0f}",
                ]
            )
        used = [column for column in range(len(header)) if any(row[column] for row in rows)]
        return [[row[column] for column in used] for row in [header, *rows]]

    def notes(self) -> list[str]:
        """Sentences that explain the numbers."""
        full, light = self.rows[0], self.rows[-1]
        notes = [
            f"{full.macs / light.macs:.2f}x fewer MACs at {self.size_hw[0]} x {self.size_hw[1]} pixels, {self.num_classes:,} classes. "
            "Parameters are those that the light head runs; the file also holds what the full head needs."
        ]
        if self.num_images:
            notes.append(
                f"Fitted on {self.num_images:,} images ({self.num_maps:,} feature maps, mirrored images counted), without their labels."
            )
        if self.evaluated_on:
            notes.append(
                f"AP in points on {self.evaluated_on:,} images; its interval comes from drawing these images again 1,000 times, "
                "the same ones for both heads. APs are the objects that P3 is there for."
            )
        if any(row.latency_ms for row in self.rows):
            notes.append("Milliseconds are medians of the network alone, one image, measured here, full and light head taking turns.")
        return notes


def make_report(
    lightened: Lightened,
    *,
    source: str,
    metrics: Mapping[str, Metrics],
    comparisons: Mapping[str, Comparison],
    latency_ms: Mapping[str, Mapping[str, Mapping[str, float]]],
    evaluated_on: int,
) -> LighteningReport:
    """Combine the measurements, and count MACs and parameters of each stage.

    Args:
        lightened: The light detector with its stages.
        source: Name of the model that was lightened.
        metrics: COCO metrics by stage; may be empty.
        comparisons: By stage, its comparison with the full head; may be empty.
        latency_ms: Milliseconds by ``full`` and ``light``, precision and percentile; may be empty.
        evaluated_on: Number of images that the metrics come from.
    """
    side = lightened.detector.conventions.input.size
    rows = []
    for number, stage in enumerate(lightened.stages):
        counted = profile(stage.model, name=stage.name, size_hw=(side, side))
        compared = comparisons.get(stage.name)
        times = latency_ms.get("light" if number else "full", {})
        rows.append(
            StageRow(
                name=stage.name,
                macs=counted.macs,
                params=counted.params,
                seconds=stage.seconds,
                metrics={key: getattr(metrics[stage.name], key) for key in METRICS} if stage.name in metrics else {},
                low=compared.ap.low if compared else None,
                high=compared.ap.high if compared else None,
                latency_ms={precision: values["median"] for precision, values in times.items()},
            )
        )
    return LighteningReport(
        source=source,
        to=lightened.record.preset,
        size_hw=(side, side),
        num_classes=lightened.detector.model.num_classes,
        num_images=lightened.num_images,
        num_maps=lightened.num_maps,
        evaluated_on=evaluated_on,
        rows=rows,
        errors=lightened.errors,
        curve={level: {"step": curve.steps, "cls": curve.cls, "bbox": curve.bbox} for level, curve in lightened.curve.items()},
    )
