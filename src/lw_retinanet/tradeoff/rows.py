"""The rows of a trade-off table: what one variant at one input size costs, and what it finds."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lw_retinanet.evaluation.paired import Estimate, Interval
from lw_retinanet.tradeoff.experiment import Regime

BLOCKS = ("C1", "C2", "C3", "C4", "C5", "P3", "P4", "P5", "P6", "P7", "D3", "D4", "D5", "D6", "D7")
Role = Literal["baseline", "scaling", "light", "other"]
"""The scaling line's largest size, its other sizes, and all that is compared with them."""


class BlockCost(NamedTuple):
    """Multiply-accumulates for one image, and parameters, of a block."""

    macs: int
    params: int


class Latency(NamedTuple):
    """Milliseconds for one image: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant at one input size in one regime, over all its seeds.

    Args:
        line: name of the line that it belongs to.
        role: what it is in the comparison; ``other`` rows answer another question, say that of initialisation.
        regime: how the networks came about.
        variant: label for people, ``bbox-v1, init paper``.
        preset: name of the head.
        scale: longer side of the pictures, pixels.
        size_hw: height and width of the padded input that was counted, the commonest of the validation pictures.
        macs: multiply-accumulates for one image of that size.
        params: of the network.
        blocks: by name in ``BLOCKS``, which add up to ``macs`` and ``params``.
        latency_ms: of the network alone; None where it was not measured.
        seeds: a run each.
        aps: AP in 0..1 of each seed.
        metrics: AP, AP50, AP75, APs, APm, APl in 0..1, the mean over the seeds, without those for which there is nothing to find; the
            interval comes from drawing images and seeds again.
        against_baseline: AP minus the baseline's, paired; None for the baseline itself.
        against_scaling: AP minus that of the scaling line at the same ``macs``, paired; None on the line and outside its range.
        seconds: a run took, in the mean.
        command: that makes this row again.
        made_with: versions and machine of its runs.
    """

    line: str
    role: Role
    regime: Regime
    variant: str
    preset: str
    scale: int
    size_hw: tuple[int, int]
    macs: int
    params: int
    blocks: Mapping[str, BlockCost]
    latency_ms: Latency | None
    seeds: tuple[int, ...]
    aps: tuple[float, ...]
    metrics: Mapping[str, Estimate]
    against_baseline: Interval | None
    against_scaling: Interval | None
    seconds: float
    command: str
    made_with: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``bbox-v1, init paper @ 416``."""
        return f"{self.variant} @ {self.scale}"

    @property
    def is_on_scaling_line(self) -> bool:
        return self.role in ("baseline", "scaling")

    @property
    def ap(self) -> Estimate:
        return self.metrics["AP"]


def scaling_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of the scaling line with the baseline, from few MACs to many; none where only others were run."""
    return sorted((row for row in rows if row.is_on_scaling_line), key=lambda row: row.macs)


def baseline_row(rows: Sequence[Row]) -> Row | None:
    """The row that the others' differences are from; None where it was not run."""
    return next((row for row in rows if row.role == "baseline"), None)


def light_rows(rows: Sequence[Row]) -> list[Row]:
    """All rows but the scaling line's, in their order."""
    return [row for row in rows if row.role == "light"]


def joined(notes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """What several runs were made with, as one: ``2.10.0`` where all agree, ``2.10.0 / 2.11.0`` where not."""
    values: dict[str, list[str]] = {}
    for note in notes:
        for name, value in note.items():
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return {name: " / ".join(known) for name, known in values.items()}
