"""The rows of a trade-off table: the cost and the AP of one variant at one input size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lw_retinanet.evaluation.paired import Estimate, Interval
from lw_retinanet.tradeoff.experiment import Regime

Role = Literal["baseline", "scaling", "light", "other"]
"""The largest size of the scaling line, its other sizes, the light heads that are compared with them, and all other rows."""


class BlockCost(NamedTuple):
    """Multiply-accumulates of a block for one image, and its parameters."""

    macs: int
    params: int


class Latency(NamedTuple):
    """Milliseconds for one image: the median, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class ExperimentRow:
    """One variant at one input size in one regime, over all its seeds.

    Args:
        line: Name of the line that the row belongs to.
        role: Role in the comparison; ``other`` rows answer another question, such as that of initialisation.
        regime: How the networks were made, see ``REGIMES``.
        variant: Label for people, ``bbox-v1, init paper``.
        preset: Name of the head.
        scale: Longer side of the images, pixels.
        size_hw: Padded size for which the arithmetic is counted, the commonest of the validation images.
        macs: Multiply-accumulates for one image of that size.
        params: Parameters of the network.
        blocks: Cost of each block by name; they add up to ``macs`` and ``params``.
        latency_ms: Latency of the network alone; None if it was not measured.
        seeds: Seed of each run.
        aps: AP of each run, 0..1.
        metrics: AP, AP50, AP75, APs, APm, APl in 0..1, the mean over the runs; a metric for which the data has no object is left out. The
            interval comes from drawing images and seeds again.
        against_baseline: AP minus that of the baseline, paired; None for the baseline itself.
        against_scaling: AP minus that of the scaling line at the same ``macs``, paired; None on the line and outside its range.
        seconds: Mean duration of a run.
        command: Command that makes this row again.
        made_with: Versions and machine of its runs.
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
        """Whether the row is a size of the scaling line."""
        return self.role in ("baseline", "scaling")

    @property
    def ap(self) -> Estimate:
        """AP, 0..1, with its interval."""
        return self.metrics["AP"]


def scaling_rows(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """The rows of the scaling line, baseline included, from few MACs to many."""
    return sorted((row for row in rows if row.is_on_scaling_line), key=lambda row: row.macs)


def baseline_row(rows: Sequence[ExperimentRow]) -> ExperimentRow | None:
    """The row that the others are compared with; None if it was not run."""
    return next((row for row in rows if row.role == "baseline"), None)


def light_rows(rows: Sequence[ExperimentRow]) -> list[ExperimentRow]:
    """The rows with light heads that are compared with the scaling line, in their order."""
    return [row for row in rows if row.role == "light"]


def joined(notes: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Merge notes of several runs: ``2.10.0`` if all agree on a value, ``2.10.0 / 2.11.0`` if not."""
    values: dict[str, list[str]] = {}
    for note in notes:
        for name, value in note.items():
            known = values.setdefault(name, [])
            if value not in known:
                known.append(value)
    return {name: " / ".join(known) for name, known in values.items()}
