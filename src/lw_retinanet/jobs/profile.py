"""Count what a detector costs, rank what is worth lightening, and propose a plan for a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lw_retinanet.config import parse_config
from lw_retinanet.counting.cost_chart import save_cost_chart
from lw_retinanet.counting.imbalance import Ranking, rank
from lw_retinanet.counting.imbalance_chart import save_imbalance_chart
from lw_retinanet.counting.latency import measure_latency
from lw_retinanet.counting.profile import Profile, profile, with_head
from lw_retinanet.counting.torchvision_model import native_size, torchvision_detector
from lw_retinanet.detection.detector import Detector
from lw_retinanet.devices import choose_device
from lw_retinanet.errors import InputError
from lw_retinanet.exporting.load import AnyModel, open_detector, open_loaded
from lw_retinanet.heads import HeadPlan, is_preset, known_presets
from lw_retinanet.lightening.budget import Proposal, propose_for
from lw_retinanet.models.retinanet import RetinaNet
from lw_retinanet.page import Html, folded, joined, preformatted
from lw_retinanet.weights.create import create_model
from lw_retinanet.weights.foreign.conversion import ConvertedModel
from lw_retinanet.weights.model_file import LoadedModel

TORCHVISION = "torchvision:"
PRESET_SIZE = (800, 800)
PRESET_CLASSES = 80
MIN_SIDE, MAX_SIDE = 32, 16384  # pixels


@dataclass(frozen=True, kw_only=True)
class CostReport:
    """What a detector costs, and what could be saved.

    Args:
        cost: MACs and parameters by block, and the latency if it was measured.
        ranking: Levels and branches, the most worth lightening first; None unless a budget or a torchvision model asks for it.
        proposal: The plan that reaches the budget; None without a budget.
    """

    cost: Profile
    ranking: Ranking | None
    proposal: Proposal | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON of ``profile``."""
        result = self.cost.as_dict()
        if self.ranking is not None:
            result["ranking"] = self.ranking.as_list()
        if self.proposal is not None:
            result["proposal"] = self.proposal.as_dict()
        return result

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        others = [line for part in (self.ranking, self.proposal) if part is not None for line in part.lines()]
        return joined(Html(self.cost._repr_html_()), folded("What is worth lightening", preformatted(others)) if others else "")

    def lines(self, *, unicode: bool = True) -> list[str]:
        """The tables for people; ``unicode`` allows bars of block characters."""
        sections = [self.cost.lines(unicode=unicode), *(part.lines() for part in (self.ranking, self.proposal) if part is not None)]
        return "\n\n".join("\n".join(lines) for lines in sections).split("\n")


def run_profile(
    model: AnyModel,
    *,
    size: int | Sequence[int] | None = None,
    classes: int | None = None,
    backbone: str | None = None,
    width: int | None = None,
    anchors: str | None = None,
    stride_in: str | None = None,
    budget: float | None = None,
    latency: bool = False,
    plot: Path | None = None,
    device: str = "auto",
) -> CostReport:
    """Count a detector; the parameters are those of :func:`lw_retinanet.profile`."""
    if budget is not None and not (math.isfinite(budget) and budget > 0):
        raise InputError(f"budget {budget:g}: expected a positive number of GMACs, for instance 100")
    options = {"classes": classes, "backbone": backbone, "width": width, "anchors": anchors, "stride_in": stride_in}
    if isinstance(model, LoadedModel | ConvertedModel):
        model = open_detector(model)
    elif isinstance(model, PathLike):
        model = Path(model)
    name = str(model) if isinstance(model, str | Path) else model.name if isinstance(model, Detector) else type(model).__name__
    network, default_size = _network(model, options, needs_weights=latency)
    size_hw = default_size if size is None else _checked_size(size)
    ranking = rank(network, size_hw) if budget is not None or not isinstance(network, RetinaNet) else None
    proposal = propose_for(network, ranking.cost, round(budget * 1e9)) if ranking is not None and budget is not None else None
    times = measure_latency({name: network}, size_hw=size_hw, device=choose_device(device))[name] if latency else None
    cost = profile(network, name=name, size_hw=size_hw, latency_ms=times)
    report = CostReport(cost=cost, ranking=ranking, proposal=proposal)
    if plot:
        _save_chart(plot, network, report)
    return report


def _checked_size(size: int | Sequence[int]) -> tuple[int, int]:
    sides = [size] if isinstance(size, int) else list(size)
    if len(sides) not in (1, 2) or not all(MIN_SIDE <= side <= MAX_SIDE for side in sides):
        shown = " ".join(map(str, sides))
        raise InputError(f"size {shown}: expected one side or height and width, each from {MIN_SIDE} to {MAX_SIDE} pixels")
    return sides[0], sides[-1]


def _network(model: AnyModel, options: Mapping[str, int | str | None], *, needs_weights: bool) -> tuple[nn.Module, tuple[int, int]]:
    """The network, and the input size that it is counted at by default."""
    if isinstance(model, str) and is_preset(model):
        return _preset_network(model, options, needs_weights=needs_weights), PRESET_SIZE
    given = [name for name, value in options.items() if value is not None]
    is_named = isinstance(model, str) and model.startswith(TORCHVISION)
    if is_named and "classes" in given:
        given.remove("classes")
    if isinstance(model, str | Path) and not is_named and not Path(model).exists():
        raise InputError(f"{str(model)!r} is no preset, model file or run folder{known_presets(str(model))}; or torchvision:NAME")
    if given:
        raise InputError(f"{', '.join(given)}: only presets take this, and {model} describes itself; leave it out")
    if is_named:
        network = torchvision_detector(str(model).removeprefix(TORCHVISION), num_classes=options["classes"])  # type: ignore[arg-type]
    elif isinstance(model, nn.Module):
        network = model
    else:
        network = open_loaded(model).model
    if isinstance(network, RetinaNet):
        side = network.conventions.input.size
        return network, (side, side)
    if needs_weights:
        raise InputError(f"{model}: latency is measured for models of this package only, others are counted; leave the latency out")
    return network, native_size(network)


def _preset_network(preset: str, options: Mapping[str, int | str | None], *, needs_weights: bool) -> nn.Module:
    values = {
        "preset": preset,
        "backbone": options["backbone"] or "resnet50",
        "head_width": options["width"] or 256,
        "anchors": options["anchors"] or "nine",
        "stride_in": options["stride_in"] or "3x3",
        "norm": "frozen",
    }
    config = parse_config({"model": values}, where="profile")
    with torch.device("cpu" if needs_weights else "meta"):
        return create_model(config.model, num_classes=int(options["classes"] or PRESET_CLASSES))


def _save_chart(path: Path, network: nn.Module, report: CostReport) -> None:
    cost = report.cost
    if report.ranking is not None and report.proposal is not None:
        planned = {step.place: (step.block, step.macs_after) for step in report.proposal.steps}
        save_imbalance_chart(report.ranking, path, name=f"{cost.name}, {cost.setting}", planned=planned)
        return
    beside = [cost]
    if isinstance(network, RetinaNet) and cost.macs < cost.original_macs:
        beside.insert(0, profile(with_head(network, HeadPlan()), name="retinanet", size_hw=cost.size_hw))
    save_cost_chart(beside, path)
