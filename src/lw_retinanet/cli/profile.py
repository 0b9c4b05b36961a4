"""``lw-retinanet profile``: where the arithmetic goes."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.models.retinanet import RetinaNet


def profile_command(
    model: str = typer.Argument(help="Preset (retinanet, lw-v3, ...), model file or run folder."),
    size: str = typer.Option("", help="Network input: one side, or height and width. Presets: 800; files: their own."),
    classes: int | None = typer.Option(None, min=1, max=100_000, help="Number of classes (presets only) [default: 80]."),
    backbone: str | None = typer.Option(None, help="resnet18|34|50|101, mobilenet_v2 or timm:NAME (presets only) [default: resnet50]."),
    width: int | None = typer.Option(None, min=8, max=4096, help="Channels of pyramid and towers (presets only) [default: 256]."),
    stride_in: str | None = typer.Option(None, help="Convolution of a bottleneck that strides: 3x3 or 1x1 (presets only) [default: 3x3]."),
    latency: bool = typer.Option(False, help="Also measure milliseconds an image, here and now."),
    plot: Path | None = typer.Option(None, help="Write a bar chart to this .png or .svg file, beside the full head if this is light."),
    device: str = typer.Option("auto", help="For --latency: auto, cpu or cuda."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Count multiply-accumulates and parameters of every block, and show where they are."""
    from lw_retinanet.analyze.latency import measure_latency
    from lw_retinanet.analyze.profile import profile, with_original_head
    from lw_retinanet.cli.console import print_json

    settings = {"classes": classes, "backbone": backbone, "width": width, "stride-in": stride_in}
    network, default_size = _network(model, settings, needs_weights=latency)
    size_hw = _size(size) or default_size
    latency_ms = None
    if latency:
        from lw_retinanet.devices import choose_device

        latency_ms = measure_latency({model: network}, size_hw=size_hw, device=choose_device(device))[model]
    counted = profile(network, name=model, size_hw=size_hw, latency_ms=latency_ms)
    if plot:
        from lw_retinanet.analyze.cost_chart import save_cost_chart

        beside = [counted]
        if counted.macs < counted.original_macs:
            beside.insert(0, profile(with_original_head(network), name="retinanet", size_hw=size_hw))
        save_cost_chart(beside, plot)
    if json:
        print_json(counted.as_dict())
    else:
        is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
        print("\n".join(counted.lines(unicode=is_unicode)))


def _network(model: str, settings: dict[str, int | str | None], *, needs_weights: bool) -> tuple["RetinaNet", tuple[int, int]]:
    import torch

    from lw_retinanet.config import nearest, parse_config
    from lw_retinanet.errors import InputError
    from lw_retinanet.models.variants import PRESETS
    from lw_retinanet.weights.create import create_model
    from lw_retinanet.weights.model_file import load_model

    path = Path(model)
    if model not in PRESETS:
        if not path.exists():
            raise InputError(f"{model!r} is no preset, model file or run folder{nearest(model, PRESETS)}; presets: {', '.join(PRESETS)}")
        given = [f"--{name}" for name, value in settings.items() if value is not None]
        if given:
            raise InputError(f"{', '.join(given)} is for presets, and {model} says itself what it is; leave it out")
        loaded = load_model(path).model
        side = loaded.conventions.input.size
        return loaded, (side, side)
    values = {
        "preset": model,
        "backbone": settings["backbone"] or "resnet50",
        "head_width": settings["width"] or 256,
        "stride_in": settings["stride-in"] or "3x3",
        "norm": "frozen",
    }
    config = parse_config({"model": values}, where="profile")
    num_classes = settings["classes"] or 80
    assert isinstance(num_classes, int)
    with torch.device("cpu" if needs_weights else "meta"):
        return create_model(config.model, num_classes=num_classes), (800, 800)


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
