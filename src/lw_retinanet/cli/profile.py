"""``lw-retinanet profile``: where the arithmetic goes."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lw_retinanet.backbones import BACKBONES_IN_WORDS

if TYPE_CHECKING:
    from torch import nn

    from lw_retinanet.counting.imbalance import Ranking
    from lw_retinanet.counting.profile import Profile
    from lw_retinanet.lightening.budget import Proposal

TORCHVISION = "torchvision:"


def profile_command(
    model: str = typer.Argument(
        help="Preset (retinanet, lw-v3, ...), model file, run folder, or torchvision:NAME for any of its detectors."
    ),
    size: str = typer.Option("", help="Network input: one side, or height and width. Presets: 800; others: their own."),
    classes: int | None = typer.Option(
        None, min=1, max=100_000, help="Number of classes of a preset [80], or of torchvision:NAME with the background as one [91]."
    ),
    backbone: str | None = typer.Option(None, help=f"{BACKBONES_IN_WORDS} (presets only) [default: resnet50]."),
    width: int | None = typer.Option(None, min=8, max=4096, help="Channels of pyramid and towers (presets only) [default: 256]."),
    anchors: str | None = typer.Option(None, help="Anchors of a cell: nine, or ATSS's one (presets only) [default: nine]."),
    stride_in: str | None = typer.Option(None, help="Convolution of a bottleneck that strides: 3x3 or 1x1 (presets only) [default: 3x3]."),
    budget: float | None = typer.Option(None, help="GMACs to reach: rank what is worth lightening and propose the least harmful plan."),
    latency: bool = typer.Option(False, help="Also measure milliseconds an image, here and now."),
    plot: Path | None = typer.Option(
        None, help="Write a bar chart to this .png or .svg file: every block, or with --budget what is saved where."
    ),
    device: str = typer.Option("auto", help="For --latency: auto, cpu or cuda."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Count multiply-accumulates and parameters of every block, and show where they are."""
    from lw_retinanet.cli.console import print_json
    from lw_retinanet.counting.imbalance import rank
    from lw_retinanet.counting.profile import profile
    from lw_retinanet.lightening.budget import propose_for

    budget_macs = _budget(budget)
    settings = {"classes": classes, "backbone": backbone, "width": width, "anchors": anchors, "stride-in": stride_in}
    network, default_size = _network(model, settings, needs_weights=latency)
    size_hw = _size(size) or default_size
    ranking = proposal = latency_ms = None
    if budget_macs is not None or model.startswith(TORCHVISION):
        ranking = rank(network, size_hw)
    if ranking is not None and budget_macs is not None:
        proposal = propose_for(network, ranking.cost, budget_macs)
    if latency:
        from lw_retinanet.counting.latency import measure_latency
        from lw_retinanet.devices import choose_device

        latency_ms = measure_latency({model: network}, size_hw=size_hw, device=choose_device(device))[model]
    counted = profile(network, name=model, size_hw=size_hw, latency_ms=latency_ms)
    if plot:
        _plot(plot, network, counted, ranking, proposal)
    if json:
        result = counted.as_dict()
        if ranking is not None:
            result["ranking"] = ranking.as_list()
        if proposal is not None:
            result["proposal"] = proposal.as_dict()
        print_json(result)
    else:
        is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        sections = [counted.lines(unicode=is_unicode), *(part.lines() for part in (ranking, proposal) if part is not None)]
        print("\n\n".join("\n".join(lines) for lines in sections))


def _budget(gmacs: float | None) -> int | None:
    from lw_retinanet.errors import InputError

    if gmacs is None:
        return None
    if not (math.isfinite(gmacs) and gmacs > 0):
        raise InputError(f"--budget {gmacs:g}: expected a positive number of GMACs, for instance 100")
    return round(gmacs * 1e9)


def _plot(path: Path, network: "nn.Module", counted: "Profile", ranking: "Ranking | None", proposal: "Proposal | None") -> None:
    from lw_retinanet.counting.cost_chart import save_cost_chart
    from lw_retinanet.counting.imbalance_chart import save_imbalance_chart
    from lw_retinanet.counting.profile import profile, with_head
    from lw_retinanet.heads import HeadPlan
    from lw_retinanet.models.retinanet import RetinaNet

    if ranking is not None and proposal is not None:
        planned = {step.place: (step.block, step.macs_after) for step in proposal.steps}
        save_imbalance_chart(ranking, path, name=f"{counted.name}, {counted.setting}", planned=planned)
        return
    beside = [counted]
    if isinstance(network, RetinaNet) and counted.macs < counted.original_macs:
        beside.insert(0, profile(with_head(network, HeadPlan()), name="retinanet", size_hw=counted.size_hw))
    save_cost_chart(beside, path)


def _network(model: str, settings: dict[str, int | str | None], *, needs_weights: bool) -> tuple["nn.Module", tuple[int, int]]:
    import torch

    from lw_retinanet.config import parse_config
    from lw_retinanet.errors import InputError
    from lw_retinanet.heads import is_preset, known_presets
    from lw_retinanet.weights.create import create_model
    from lw_retinanet.weights.model_file import load_model

    path = Path(model)
    given = [f"--{name}" for name, value in settings.items() if value is not None]
    if model.startswith(TORCHVISION):
        return _torchvision_network(model, settings["classes"], [option for option in given if option != "--classes"], needs_weights)
    if not is_preset(model):
        if not path.exists():
            raise InputError(f"{model!r} is no preset, model file or run folder{known_presets(model)}; or torchvision:NAME")
        if given:
            raise InputError(f"{', '.join(given)} is for presets, and {model} says itself what it is; leave it out")
        loaded = load_model(path).model
        side = loaded.conventions.input.size
        return loaded, (side, side)
    values = {
        "preset": model,
        "backbone": settings["backbone"] or "resnet50",
        "head_width": settings["width"] or 256,
        "anchors": settings["anchors"] or "nine",
        "stride_in": settings["stride-in"] or "3x3",
        "norm": "frozen",
    }
    config = parse_config({"model": values}, where="profile")
    num_classes = settings["classes"] or 80
    assert isinstance(num_classes, int)
    with torch.device("cpu" if needs_weights else "meta"):
        return create_model(config.model, num_classes=num_classes), (800, 800)


def _torchvision_network(
    model: str, num_classes: int | str | None, given: list[str], needs_weights: bool
) -> tuple["nn.Module", tuple[int, int]]:
    from lw_retinanet.counting.torchvision_model import native_size, torchvision_detector
    from lw_retinanet.errors import InputError

    if given:
        raise InputError(f"{', '.join(given)} is for presets, and {model} says itself what it is; leave it out")
    if needs_weights:
        raise InputError(f"--latency is for this package's own models, and {model} is only counted; leave it out")
    assert num_classes is None or isinstance(num_classes, int)
    network = torchvision_detector(model.removeprefix(TORCHVISION), num_classes=num_classes)
    return network, native_size(network)


def _size(text: str) -> tuple[int, int] | None:
    from lw_retinanet.errors import InputError

    if not text:
        return None
    try:
        sides = [int(part) for part in text.replace("x", " ").replace(",", " ").split()]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or not all(32 <= side <= 16384 for side in sides):
        raise InputError(f"--size {text}: expected one side or height and width, each from 32 to 16384 pixels")
    return sides[0], sides[-1]
