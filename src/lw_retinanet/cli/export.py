"""``lw-retinanet export``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say, with_bar
from lw_retinanet.exporting.targets import TARGETS

_FORMATS = "; ".join(f"{name}: {row.what}" for name, row in TARGETS.items())


def export_command(
    model: Path = typer.Argument(help="Trained model file, run folder or torchvision:NAME."),
    format: str = typer.Option(..., help=f"{_FORMATS}."),  # noqa: A002
    out: Path = typer.Option(..., help="File or folder to write."),
    precision: str = typer.Option("fp32", help="fp32, bf16 (openvino), or int8 with --calibrate."),
    calibrate: Path | None = typer.Option(None, help="For int8: data set whose training images give the ranges, or a folder of images."),
    calibration_images: int = typer.Option(300, min=1, help="Calibration images, drawn at random if there are more."),
    validate: Path | None = typer.Option(None, help="For int8: data set whose val split gives the AP [default: that of --calibrate]."),
    gate_images: int | None = typer.Option(None, min=1, help="Validation images, drawn at random [default: all]."),
    max_drop: float = typer.Option(0.5, min=0.0, max=100.0, help="Points of AP that int8 may cost."),
    allow_drop: bool = typer.Option(False, help="Write the int8 file even if it costs more, flagged."),
    symmetric: bool = typer.Option(False, help="onnx, int8: ranges around zero, the form that TensorRT takes."),
    end_to_end: bool = typer.Option(False, help="onnx: decoding and NMS inside; boxes, scores, labels, counts come out, of fixed size."),
    half_weights: bool = typer.Option(False, help="openvino: store weights in fp16."),
    head: str = typer.Option("light", help="Head of a lightened model: light, or full, the one it had before."),
    seed: int = typer.Option(0, min=0, help="Seed for the choice of images."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write a model for ONNX Runtime, OpenVINO or Triton, checked against PyTorch first; `predict` and `evaluate` take the file."""
    from lw_retinanet.jobs.export import run_export

    exported = run_export(
        model,
        out,
        format=format,
        precision=precision,
        end_to_end=end_to_end,
        half_weights=half_weights,
        head=head,
        calibrate=calibrate,
        calibration_images=calibration_images,
        validate=validate,
        gate_images=gate_images,
        max_drop=max_drop / 100,
        allow_drop=allow_drop,
        symmetric=symmetric,
        seed=seed,
        progress=with_bar,
    )
    if json:
        print_json(exported.as_dict())
    else:
        say("\n".join(exported.lines()))
