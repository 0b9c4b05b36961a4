"""What lightening cost and saved, stage by stage: numbers, a plot, and a page that holds both."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lw_retinanet import __version__
from lw_retinanet.counting.profile import profile
from lw_retinanet.evaluation.coco_metrics import Metrics
from lw_retinanet.evaluation.match_tables import METRICS
from lw_retinanet.evaluation.paired import Comparison
from lw_retinanet.files import write_bytes, write_text
from lw_retinanet.lightening.report_figure import stage_plot
from lw_retinanet.lightening.stages import Lightened
from lw_retinanet.tables import aligned


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage.

    Args:
        name: of the stage.
        macs, params: of the model after it, for one image of the report's size.
        seconds: that it took.
        metrics: by name in 0..1, or empty where nothing was evaluated.
        low, high: 95 % interval of AP minus the full head's, paired over images; None for the full head and where it was not computed.
        latency_ms: median by precision; empty where it was not measured.
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
    """The receipt.

    Args:
        source: model that was lightened.
        to: name of the plan.
        size_hw: that MACs and latency are for.
        num_classes: K.
        images: calibration images.
        views: feature maps learned from.
        evaluated_on: number of images that AP comes from; 0 for none.
        rows: a stage each, the full head first.
        errors: share of the old head's outputs that the closed form left unexplained, by level and branch.
        curve: step, class and box loss of the fit, by level.
    """

    source: str
    to: str
    size_hw: tuple[int, int]
    num_classes: int
    images: int
    views: int
    evaluated_on: int
    rows: Sequence[StageRow]
    errors: Mapping[str, float]
    curve: Mapping[str, Mapping[str, Sequence[float]]]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
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
            "calibration": {"images": self.images, "views": self.views},
            "evaluated_on": self.evaluated_on,
            "stages": stages,
            "closed_form_errors": dict(self.errors),
            "curve": {level: dict(values) for level, values in self.curve.items()},
        }

    def lines(self) -> list[str]:
        """The table for people."""
        return [*aligned(self.table()), "", *self.notes()]

    def table(self) -> list[list[str]]:
        """Header and a row a stage; columns without any value are left out."""
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
        """What the numbers mean."""
        full, light = self.rows[0], self.rows[-1]
        notes = [
            f"{full.macs / light.macs:.2f}x fewer MACs at {self.size_hw[0]} x {self.size_hw[1]} pixels, {self.num_classes:,} classes. "
            "Parameters are those that the light head runs; the file also holds what the full head needs."
        ]
        if self.images:
            notes.append(f"Fitted on {self.images:,} images ({self.views:,} views), without their labels.")
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
    """Put together what was measured.

    Args:
        lightened: with its stages.
        source: name of the model that was lightened.
        metrics: by stage; may be empty.
        comparisons: by stage, of the stage with the full head.
        latency_ms: by ``full`` and ``light``, precision and percentile; may be empty.
        evaluated_on: images.
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
        images=lightened.images,
        views=lightened.views,
        evaluated_on=evaluated_on,
        rows=rows,
        errors=lightened.errors,
        curve={level: {"step": curve.steps, "cls": curve.cls, "bbox": curve.bbox} for level, curve in lightened.curve.items()},
    )


def write_report(report: LighteningReport, folder: Path) -> None:
    """``report.json``, ``stages.png`` and ``report.html``, the last one self-contained."""
    write_text(folder / "report.json", json.dumps(report.as_dict(), indent=2) + "\n")
    picture = stage_plot(report)
    write_bytes(folder / "stages.png", picture)
    write_text(folder / "report.html", _page(report, picture))


_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; white-space: nowrap; }
td { border-top: 1px solid color-mix(in srgb, currentColor 20%, transparent); }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; border-radius: 6px; margin: 1rem 0; }
p { max-width: 46rem; }
"""


def _page(report: LighteningReport, picture: bytes) -> str:
    header, *rows = report.table()
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    title = html.escape(f"{report.source} lightened to {report.to}")
    notes = "".join(f"<p>{html.escape(note)}</p>" for note in report.notes())
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<img alt="AP after each stage and the curve of the fit" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        f"{notes}<p>lw_retinanet {__version__}; the same numbers as JSON: report.json.</p></body></html>\n"
    )
