"""What a measurement found, as one record: plain values, from which tables and pictures are made."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lw_retinanet.benchmarking.contender import Contender
from lw_retinanet.benchmarking.parity import Parity
from lw_retinanet.benchmarking.stages import in_order
from lw_retinanet.counting.rounds import ratio_interval, summary

STAGE_TOLERANCE = 0.1  # of the whole: what the stages may differ from it
_STAGE_FLOOR_MS = 1.0  # below this, the clock's own steps are to be seen
_ROUNDED = ("bf16", "int8")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender's times.

    Args:
        contender: whose.
        times: milliseconds a call, of every round.
        stages: median milliseconds a call by stage; empty where they cannot be seen.
        staged_whole: median milliseconds of the whole in the rounds whose pictures the stages saw.
    """

    contender: Contender
    times: list[float]
    stages: Mapping[str, float]
    staged_whole: float

    def stages_dict(self) -> dict[str, Any]:
        """Stages, their sum, and whether that is what the whole takes."""
        total = sum(self.stages.values())
        difference = total - self.staged_whole
        adds_up = abs(difference) <= max(STAGE_TOLERANCE * self.staged_whole, _STAGE_FLOOR_MS)
        return {
            "milliseconds": in_order(self.stages),
            "sum": total,
            "whole": self.staged_whole,
            "difference": difference,
            "adds_up": adds_up,
        }


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it.

    Args:
        machine: :func:`~lw_retinanet.benchmarking.machine.machine`, before the measurement.
        settings: plain values.
        pictures: where they come from.
        parities: comparisons of answers, all passed.
        measured: in the order of the contenders, at least one.
        shipped: name of torchvision's RetinaNet as shipped, if it took part.
        remarks: sentences for the reader.
    """

    machine: Mapping[str, Any]
    settings: Mapping[str, Any]
    pictures: str
    parities: tuple[Parity, ...]
    measured: tuple[Measured, ...]
    shipped: str | None
    remarks: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """What ``benchmark --json`` prints. Of every contender: what it is, ``latency_ms`` a call (``median`` with the ``low`` and ``high``
        of its 95 % interval, ``p10``, ``p90``), ``images_per_second``, ``stages``, and ``times_as_fast`` as others: a list of ``than``,
        ``ratio`` with ``low`` and ``high``, and how many times as many ``macs`` the other one has.
        """
        remarks = list(self.remarks)
        rows = []
        for one in self.measured:
            latency = summary(one.times)
            row = {**one.contender.as_dict(), "latency_ms": latency}
            row["images_per_second"] = 1e3 * self.settings["batch_size"] / latency["median"]
            row["stages"] = one.stages_dict() if one.stages else None
            if row["stages"] is not None and not row["stages"]["adds_up"]:
                remarks.append(
                    f"The stages of {one.contender.name} come to {row['stages']['sum']:.1f} ms, the whole to {one.staged_whole:.1f} ms: "
                    "something disturbed one of the two; measure again on an idle machine."
                )
            row["times_as_fast"] = [self._ratio(one, other, role) for role, other in self._slower(one).items()]
            rows.append(row)
        return {
            "what": "encoded pictures to boxes",
            "machine": dict(self.machine),
            "settings": dict(self.settings),
            "pictures": self.pictures,
            "parity": [parity.as_dict() for parity in self.parities],
            "parity_words": [parity.line() for parity in self.parities],
            "contenders": rows,
            "remarks": remarks,
        }

    def _slower(self, one: Measured) -> dict[str, Measured]:
        """Whom it is held against, by the part that these play."""
        alike = next(each for each in self.measured if _way(each) == _way(one))
        like = {"alike": alike} if one.contender.family == "ours" and alike is not one else {}
        if self.shipped is None:
            first = self.measured[0]
            return {} if one is first else {"first": first, **({} if alike is first else like)}
        if one.contender.family == "torchvision":
            return {}
        theirs = [each for each in self.measured if each.contender.family == "torchvision"]
        # What computes in fp32 is held against fp32; what rounds against the fastest of all.
        fair = [each for each in theirs if one.contender.precision in _ROUNDED or each.contender.precision == "fp32"]
        shipped = next(each for each in theirs if each.contender.name == self.shipped)
        return {"shipped": shipped, "best": min(fair, key=lambda each: summary(each.times)["median"]), **like}

    @staticmethod
    def _ratio(one: Measured, other: Measured, role: str) -> dict[str, Any]:
        macs, others = one.contender.macs, other.contender.macs
        return {
            "role": role,
            "than": other.contender.name,
            **ratio_interval(other.times, one.times).as_dict("ratio"),
            "macs_ratio": others / macs if macs and others else None,
        }


def _way(measured: Measured) -> tuple[str, ...]:
    """How it is run, whatever the model."""
    one = measured.contender
    return one.family, one.runtime, one.precision, one.how
