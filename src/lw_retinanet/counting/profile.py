"""The profile of a detector: MACs and parameters of its blocks, as a table and as JSON."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lw_retinanet.conventions import AnchorRule
from lw_retinanet.counting.detector_cost import DetectorCost, count_detector
from lw_retinanet.counting.macs import Cost, count_head
from lw_retinanet.errors import ConfigError
from lw_retinanet.heads import HeadPlan
from lw_retinanet.models.head import Head
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.page import Html, Shaded, joined, paragraph, table
from lw_retinanet.tables import aligned

BAR_WIDTH = 24
_EIGHTHS = " ▏▎▍▌▋▊▉"


@dataclass(frozen=True, kw_only=True)
class Profile:
    """MACs and parameters of a detector, for one image.

    Args:
        name: Name of the preset or file.
        size_hw: Height and width of the padded network input in pixels.
        num_classes: Number of classes.
        layers: What is counted: ``convolutions``, or ``convolutions and linear layers`` for backbones that have both.
        blocks: Costs of C1..C5, P3..P7 and D3..D7, which add up to the model.
        original_d3_macs: MACs of D3 if this model had RetinaNet's own head, shared by all levels.
        original_macs: MACs of the whole model in that case.
        remarks: Sentences for the reader, in addition to the usual notes.
        latency_ms: Times of this model from :func:`~lw_retinanet.counting.latency.measure_latency`.
    """

    name: str
    size_hw: tuple[int, int]
    num_classes: int
    layers: str
    blocks: Mapping[str, Cost]
    original_d3_macs: int
    original_macs: int
    remarks: tuple[str, ...] = ()
    latency_ms: Mapping[str, Mapping[str, float]] | None = None

    @property
    def macs(self) -> int:
        """MACs of the whole model."""
        return sum(cost.macs for cost in self.blocks.values())

    @property
    def flops(self) -> int:
        """Two operations for every multiply-accumulate."""
        return 2 * self.macs

    @property
    def params(self) -> int:
        """Parameters of the whole model."""
        return sum(cost.params for cost in self.blocks.values())

    def share(self, cost: Cost) -> float:
        """Share of the model's MACs, 0..1."""
        return cost.macs / self.macs

    def as_dict(self) -> dict[str, Any]:
        """The profile as one JSON object."""
        result: dict[str, Any] = {
            "model": self.name,
            "size_hw": list(self.size_hw),
            "num_classes": self.num_classes,
            "macs": self.macs,
            "flops": self.flops,
            "params": self.params,
            "blocks": {name: self._cost_dict(cost) for name, cost in self.blocks.items()},
        }
        if self.latency_ms is not None:
            result["latency_ms"] = {precision: dict(times) for precision, times in self.latency_ms.items()}
        return result

    def _cost_dict(self, cost: Cost) -> dict[str, Any]:
        result: dict[str, Any] = {"macs": cost.macs, "params": cost.params, "share": self.share(cost)}
        if cost.parts:
            result["parts"] = {name: self._cost_dict(part) for name, part in cost.parts.items()}
        return result

    def lines(self, *, unicode: bool = True) -> list[str]:
        """The table for people: blocks and their parts, totals, what was counted, and the gain over RetinaNet's own head.

        Args:
            unicode: Draw bars with block characters; else with ``#``, for terminals without Unicode.
        """
        most = max(cost.macs for cost in self.blocks.values())
        rows = [("", "GMACs", "GFLOPs", "Mparams", "share", "")]
        for name, cost in self.blocks.items():
            rows.append(self._row(name, cost, _bar(cost.macs / most, unicode=unicode)))
            rows += [self._row(f"  {part.replace('_', ' ')}", part_cost, "") for part, part_cost in cost.parts.items()]
        rows.append(self._row("total", Cost(macs=self.macs, params=self.params), ""))
        table = aligned(rows, left=(0, 5))
        rule = ("─" if unicode else "-") * len(table[-1])  # the total has no bar
        return [f"{self.name}, {self.setting}", "", table[0], rule, *table[1:-1], rule, table[-1], "", *self.notes()]

    def table(self) -> Html:
        """The blocks and their sum as a part of a page."""
        rows: list[list[str | Shaded]] = [
            [name, f"{cost.macs / 1e9:.3f}", f"{cost.params / 1e6:.3f}", Shaded(f"{self.share(cost):.1%}", self.share(cost))]
            for name, cost in self.blocks.items()
        ]
        rows.append(["total", f"{self.macs / 1e9:.3f}", f"{self.params / 1e6:.3f}", ""])
        return table("cost", ["block", "GMACs", "M parameters", "share"], rows)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return joined(paragraph(f"{self.name}, {self.setting}"), self.table(), *map(paragraph, self.notes()))

    def notes(self) -> list[str]:
        """What the numbers mean and leave out, the gain, and the latency if it was measured."""
        notes = [
            f"Counted for one image of {self.setting}: {self.layers} only;"
            " normalisation, activations, resizing, anchors and NMS are left out.",
            "FLOPs = 2 x MACs. Weights that several blocks use are counted in the first of them.",
            *self.remarks,
        ]
        if self.macs < self.original_macs:
            notes.append(
                f"{self.original_macs / self.macs:.2f}x fewer MACs than retinanet"
                f" ({_giga(self.original_macs, 3)} G); D3 alone: {self.original_d3_macs / self.blocks['D3'].macs:.2f}x fewer."
            )
        for precision, times in (self.latency_ms or {}).items():
            notes.append(f"Latency, {precision}: {times['median']:.1f} ms (p10 {times['p10']:.1f}, p90 {times['p90']:.1f}).")
        return notes

    @property
    def setting(self) -> str:
        """Input size and number of classes, in words."""
        return f"{self.size_hw[0]} x {self.size_hw[1]} pixels, {self.num_classes:,} {'class' if self.num_classes == 1 else 'classes'}"

    def _row(self, name: str, cost: Cost, bar: str) -> tuple[str, str, str, str, str, str]:
        # Five digits of the total, so that small models do not round to nothing.
        digits = max(3, 4 - math.floor(math.log10(max(self.macs, 1) / 1e9)))
        params = f"{cost.params / 1e6:.3f}" if cost.params or not cost.macs else "shared"
        return name, _giga(cost.macs, digits), _giga(2 * cost.macs, digits), params, f"{self.share(cost):.1%}", bar


def profile(
    model: nn.Module,
    *,
    name: str,
    size_hw: tuple[int, int],
    cost: DetectorCost | None = None,
    latency_ms: Mapping[str, Mapping[str, float]] | None = None,
) -> Profile:
    """Count a detector. The network is not run, so it may be on the meta device.

    Args:
        model: A network of this package or a detector of torchvision. For the latter the gain over an original head is not known.
        name: Name for the table and the JSON.
        size_hw: Height and width of the network input in pixels, padding included.
        cost: The model's cost at this size, if it is counted already.
        latency_ms: Measured times to show with the count.

    Raises:
        ConfigError: If the size is too small for the network, or the network is of a kind that cannot be counted.
    """
    cost = cost or count_detector(model, size_hw)
    original, remarks = dict(cost.blocks), cost.remarks
    if isinstance(model, RetinaNet):
        original |= count_head(with_head(model, HeadPlan()).head, cost.levels)
        remarks = _anchor_remarks(model.conventions.anchors.num_anchors)
    return Profile(
        name=name,
        size_hw=size_hw,
        num_classes=cost.num_classes,
        layers=_layers(model),
        blocks=cost.blocks,
        original_d3_macs=original["D3"].macs if "D3" in original else 0,
        original_macs=sum(block.macs for block in original.values()),
        remarks=remarks,
        latency_ms=latency_ms,
    )


def with_head(model: RetinaNet, plan: HeadPlan) -> RetinaNet:
    """The model's backbone and pyramid with another head without weights, to compare the costs.

    Raises:
        ConfigError: If a unit of the plan cannot have the model's width.
    """
    try:
        with torch.device("meta"):
            head = Head(
                in_channels=model.fpn.out_channels,
                num_classes=model.num_classes,
                num_anchors=model.conventions.anchors.num_anchors,
                plan=plan,
            )
    except ValueError as error:
        raise ConfigError(f"the plan cannot be built for a head {model.fpn.out_channels} wide: {error}") from None
    return RetinaNet(backbone=model.backbone, fpn=model.fpn, head=head, conventions=model.conventions)


def _anchor_remarks(number: int) -> tuple[str, ...]:
    if number == AnchorRule().num_anchors:
        return ()
    return (f"{number} anchor{'' if number == 1 else 's'} a cell, also in the retinanet that it is compared with.",)


def _layers(model: nn.Module) -> str:
    has_linear = any(isinstance(layer, nn.Linear) for layer in model.modules())
    return "convolutions and linear layers" if has_linear else "convolutions"


def _giga(number: int, digits: int) -> str:
    return f"{number / 1e9:,.{digits}f}"


def _bar(fraction: float, *, unicode: bool) -> str:
    if not unicode:
        return "#" * round(fraction * BAR_WIDTH)
    full, rest = divmod(round(fraction * BAR_WIDTH * 8), 8)
    return "█" * full + _EIGHTHS[rest].strip()
