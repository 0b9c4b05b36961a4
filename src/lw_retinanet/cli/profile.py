"""``lw-retinanet profile``: where the arithmetic goes."""

import sys
from pathlib import Path

import typer

from lw_retinanet.backbones import BACKBONES_IN_WORDS
from lw_retinanet.cli.console import print_json, say
from lw_retinanet.errors import InputError
from lw_retinanet.heads import presets_in_words


def profile_command(
    model: str = typer.Argument(
        help=f"Model file, run folder, torchvision:NAME for any of its detectors, or a preset: {presets_in_words()}."
    ),
    size: str = typer.Option("", help="Network input: one side, or height and width. Presets: 800; others: their own."),
    classes: int | None = typer.Option(
        None, min=1, max=100_000, help="Number of classes of a preset [80], or of torchvision:NAME with the background as one [91]."
    ),
    backbone: str | None = typer.Option(None, help=f"{BACKBONES_IN_WORDS} (presets only) [default: resnet50]."),
    width: int | None = typer.Option(None, min=8, max=4096, help="Channels of pyramid and towers (presets only) [default: 256]."),
    anchors: str | None = typer.Option(None, help="Anchors of a cell: nine, or one as in ATSS (presets only) [default: nine]."),
    stride_in: str | None = typer.Option(
        None, help="Convolution of a bottleneck that has the stride: 3x3 or 1x1 (presets only) [default: 3x3]."
    ),
    budget: float | None = typer.Option(None, help="GMACs to reach: rank what is worth lightening and propose the least harmful plan."),
    latency: bool = typer.Option(False, help="Also measure milliseconds an image, here and now."),
    plot: Path | None = typer.Option(
        None, help="Write a bar chart to this .png or .svg file: every block, or with --budget what is saved where."
    ),
    device: str = typer.Option("auto", help="For --latency: auto, cpu, cuda or mps."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Count multiply-accumulates and parameters of every block, and show where they are."""
    from lw_retinanet.jobs.profile import run_profile

    report = run_profile(
        model,
        size=_sides(size),
        classes=classes,
        backbone=backbone,
        width=width,
        anchors=anchors,
        stride_in=stride_in,
        budget=budget,
        latency=latency,
        plot=plot,
        device=device,
    )
    if json:
        print_json(report.as_dict())
    else:
        say("\n".join(report.lines(unicode=(sys.stdout.encoding or "").lower().startswith("utf"))))


def _sides(text: str) -> list[int] | None:
    """The numbers in ``600``, ``600 800``, ``600x800`` or ``600,800``; None for an empty text."""
    try:
        return [int(part) for part in text.replace("x", " ").replace(",", " ").split()] if text else None
    except ValueError:
        raise InputError(f"--size {text}: expected one side, or height and width, in pixels") from None
