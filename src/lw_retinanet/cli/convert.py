"""``lw-retinanet convert``."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.detection.result import Result
    from lw_retinanet.weights.foreign.comparison import Image
    from lw_retinanet.weights.model_file import LoadedModel


def convert_command(
    weights: str = typer.Argument(help="Weights file, torchvision:NAME, or a model file to change."),
    origin: str = typer.Option("auto", "--from", help="auto, torchvision, detectron2, mmdet, odtk or caffe2."),
    out: Path = typer.Option(help="Model file to write (.safetensors)."),
    classes: str | None = typer.Option(
        None, help="Names between commas, a text file with a name a line, or a data set; other classes than the file's start anew."
    ),
    set_: list[str] = typer.Option([], "--set", help="A convention, as stride_in=1x1, norm_eps=0, input.size=416; or backbone=resnet50."),
    check: list[str] = typer.Option([], help="Also compare with the origin's program on these pictures, folders, globs."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Turn weights of torchvision, Detectron2, MMDetection, odtk or Detectron into a model file that answers as they do."""
    from lw_retinanet.cli.console import print_json
    from lw_retinanet.data.image_files import find_images
    from lw_retinanet.data.images import decode
    from lw_retinanet.errors import OutputError
    from lw_retinanet.weights.foreign.comparison import compare_with_framework
    from lw_retinanet.weights.foreign.convention_overrides import parse_overrides
    from lw_retinanet.weights.foreign.convert import convert
    from lw_retinanet.weights.model_file import save_model

    overrides = parse_overrides(set_)
    if out.suffix != ".safetensors" or out.is_dir():
        raise OutputError(f"--out {out}: a model file ends in .safetensors; give a file of such a name")
    if out.exists() and Path(weights).exists() and out.samefile(weights):
        raise OutputError(f"--out {out} is the file to convert itself; choose another name")
    files = find_images(check) if check else []
    conversion = convert(weights, origin=origin, classes=classes, overrides=overrides)
    conversion = compare_with_framework(conversion, _answers, [decode(file) for file in files])
    save_model(out, conversion.loaded.model, conversion.loaded.record)
    if json:
        print_json({"out": str(out), **conversion.report.as_dict()})
    else:
        print("\n".join([*conversion.report.lines(), f"written: {out}"]))


def _answers(loaded: "LoadedModel", images: "Sequence[Image]") -> "Sequence[Result]":
    """As every user of the model gets them."""
    from lw_retinanet.detection.detector import Detector

    return Detector.of_model(loaded.model, loaded.record.categories).predict_arrays(images)
