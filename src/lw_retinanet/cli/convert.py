"""``lw-retinanet convert``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say


def convert_command(
    weights: str = typer.Argument(help="Weights file, hub folder with config.json, torchvision:NAME, or a model file to change."),
    origin: str = typer.Option("auto", "--from", help="auto, torchvision, detectron2, mmdet, odtk or caffe2."),
    out: Path = typer.Option(help="Model file to write (.safetensors)."),
    classes: str | None = typer.Option(
        None,
        help="Names separated by commas, a text file with one name a line, or a data set; new classes start untrained.",
    ),
    set_: list[str] = typer.Option(
        [], "--set", help="A convention, for example stride_in=1x1, norm_eps=0, input.size=416; or backbone=resnet50."
    ),
    check: list[str] = typer.Option([], help="Also compare with the origin's program on these images, folders or globs."),
    half: bool = typer.Option(False, help="Store convolutions in fp16: a file of half the size; norms and biases stay in fp32."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Turn weights of torchvision, Detectron2, MMDetection, odtk or Detectron into a model file that gives the same detections."""
    from lw_retinanet.jobs.convert import run_conversion

    conversion = run_conversion(weights, out, origin=origin, classes=classes, overrides=set_, check=check, half=half)
    if json:
        print_json({"out": str(out), **conversion.report.as_dict()})
    else:
        say("\n".join([*conversion.report.lines(set_by="from --set"), f"written: {out}"]))
