"""The gate that an int8 network must pass: how much AP it costs, on images that it was not calibrated on."""

from dataclasses import dataclass
from typing import Any, Literal

from lw_retinanet.data.records import Records
from lw_retinanet.detection.detector import Detector
from lw_retinanet.evaluation.coco_metrics import evaluate
from lw_retinanet.evaluation.detect_records import detect_records
from lw_retinanet.evaluation.detections import DetectionTable
from lw_retinanet.evaluation.paired import MIN_IMAGES, compare
from lw_retinanet.progress import Progress

MAX_DROP = 0.005
"""AP, in 0..1: half a point."""


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP before and after, in 0..1.

    Args:
        before: AP of the fp32 network.
        after: AP of the int8 network.
        low, high: 95 % interval of after minus before; None for fewer than 20 images.
        images: Number of images that both were measured on.
        max_drop: Largest loss that is allowed.
    """

    before: float
    after: float
    low: float | None
    high: float | None
    images: int
    max_drop: float

    @property
    def difference(self) -> float:
        """AP after minus AP before."""
        return self.after - self.before

    @property
    def passes(self) -> bool:
        """Whether the loss is allowed: the measured one, not an end of its interval. 1e-9 are left for rounding in the sums."""
        return -self.difference <= self.max_drop + 1e-9

    @property
    def beyond_chance(self) -> Literal["loss", "gain"] | None:
        """Which way AP has changed, if the interval excludes 0."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return None
        return "gain" if self.low > 0 else "loss"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "difference": self.difference, "passes": self.passes, "beyond_chance": self.beyond_chance}

    def line(self) -> str:
        """One line for people, in points of AP."""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" (95 % interval {100 * self.low:+.2f} .. {100 * self.high:+.2f})"
        said = f"; this is a {self.beyond_chance} beyond chance" if self.beyond_chance else ""
        return (
            f"AP {100 * self.before:.2f} -> {100 * self.after:.2f}, {100 * self.difference:+.2f}{interval}, on {self.images} images; "
            f"allowed: -{100 * self.max_drop:g}{said}"
        )


class Gate:
    """Scores the fp32 network once, and any number of int8 networks against it.

    Args:
        before: Detector in fp32.
        records: Validation images with boxes.
        max_drop: Largest loss of AP that is allowed, in 0..1.
        progress: Shows how far it is.
    """

    def __init__(self, before: Detector, records: Records, *, max_drop: float = MAX_DROP, progress: Progress | None = None) -> None:
        self.records, self.max_drop, self.progress = records, max_drop, progress
        self.before = detect_records(before, records, progress=progress)

    def measure(self, after: Detector) -> Accuracy:
        """AP before and after, and the interval of the difference."""
        return self.score(detect_records(after, self.records, progress=self.progress))

    def score(self, after: DetectionTable) -> Accuracy:
        """Like :meth:`measure`, for detections that were made before."""
        low = high = None
        if self.records.num_images >= MIN_IMAGES:
            comparison = compare(self.records, self.before, after)
            low, high = comparison.ap.low, comparison.ap.high
        before, later = (evaluate(self.records, table).AP for table in (self.before, after))
        return Accuracy(before=before, after=later, low=low, high=high, images=self.records.num_images, max_drop=self.max_drop)
