"""AP of a smaller input at any cost, between the three sizes that the paper has, and what the light rows have more or less."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from .printed import LIGHT, LIGHT_GFLOPS, SCALING, SCALING_GFLOPS
from .readings import Reading

Points = Sequence[tuple[float, float]]  # (cost, AP)
Curve = Callable[[float, Points], float]


def neighbours(cost: float, line: Points) -> tuple[tuple[float, float], tuple[float, float]]:
    """The points on both sides of ``cost``.

    Raises:
        ValueError: outside of the line.
    """
    for low, high in pairwise(sorted(line)):
        if low[0] <= cost <= high[0]:
            return low, high
    raise ValueError(f"{cost} lies outside of the line")


def straight(cost: float, line: Points) -> float:
    """AP at ``cost``, straight between neighbours."""
    (low, fewer), (high, more) = neighbours(cost, line)
    return fewer + (more - fewer) * (cost - low) / (high - low)


def curved(cost: float, line: Points) -> float:
    """AP at ``cost`` on the polynomial through all points (Lagrange's formula): a parabola for three."""
    return sum(ap * math.prod((cost - other) / (place - other) for other, _ in line if other != place) for place, ap in line)


def scaling_line(reading: Reading | None, metric: int = 0) -> list[tuple[float, float]]:
    """(GMACs, metric) of the paper's scaling rows; None takes the GFLOPs that it prints."""
    return [
        (reading.macs("retinanet", scale) / 1e9 if reading else float(SCALING_GFLOPS[scale]), row[metric]) for scale, row in SCALING.items()
    ]


def light_points(reading: Reading | None, metric: int = 0) -> dict[str, tuple[float, float]]:
    """The same of the light rows, by name."""
    return {name: (reading.macs(name) / 1e9 if reading else float(LIGHT_GFLOPS[name]), row[metric]) for name, row in LIGHT.items()}


def advantages(reading: Reading | None, curve: Curve = straight, metric: int = 0) -> dict[str, float]:
    """What each light row has over the scaling line at its own cost."""
    line = scaling_line(reading, metric)
    return {name: value - curve(cost, line) for name, (cost, value) in light_points(reading, metric).items()}
