"""``lw-retinanet export``."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lw_retinanet.exporting.run import ExportSettings


def export_command(
    model: Path = typer.Argument(help="Trained model file or run folder."),
    format: str = typer.Option(..., help="onnx, openvino, or triton: a model repository around an ONNX file that gives boxes."),  # noqa: A002
    out: Path = typer.Option(..., help="File to write: .onnx, or .xml for OpenVINO (weights beside it, .bin); a new folder for triton."),
    precision: str = typer.Option("fp32", help="fp32, bf16 (openvino), or int8 with --calibrate."),
    calibrate: Path | None = typer.Option(
        None, help="For int8: data set whose training pictures give the ranges, or a folder of pictures."
    ),
    calibration_images: int = typer.Option(300, min=1, help="Calibration pictures, drawn at random if there are more."),
    validate: Path | None = typer.Option(None, help="For int8: data set whose val split gives the AP [default: that of --calibrate]."),
    gate_images: int | None = typer.Option(None, min=1, help="Validation pictures, drawn at random [default: all]."),
    max_drop: float = typer.Option(0.5, min=0.0, max=100.0, help="Points of AP that int8 may cost."),
    allow_drop: bool = typer.Option(False, help="Write the int8 file even if it costs more, flagged."),
    symmetric: bool = typer.Option(False, help="onnx, int8: ranges around zero, the form that TensorRT takes."),
    end_to_end: bool = typer.Option(False, help="onnx: decoding and NMS inside; boxes, scores, labels, counts come out, of fixed size."),
    half_weights: bool = typer.Option(False, help="openvino: store weights in fp16."),
    head: str = typer.Option("light", help="Of a lightened model: light, or full, the one it had before."),
    seed: int = typer.Option(0, min=0, help="Of the choice of pictures."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write a model for ONNX Runtime, OpenVINO or Triton, checked against PyTorch first; `predict` and `evaluate` take the file."""
    from lw_retinanet.cli.console import print_json, with_bar
    from lw_retinanet.exporting.run import export_model

    settings = _settings(
        file_format=format,
        precision=precision,
        head=head,
        calibrate=calibrate,
        calibration_images=calibration_images,
        validate=validate,
        gate_images=gate_images,
        max_drop=max_drop / 100,
        allow_drop=allow_drop,
        symmetric=symmetric,
        end_to_end=end_to_end,
        half_weights=half_weights,
        seed=seed,
    )
    exported = export_model(model, out, settings, progress=with_bar)
    if json:
        print_json(exported.as_dict())
    else:
        print("\n".join(exported.lines()))


def _settings(
    *, file_format: str, precision: str, head: str, calibrate: Path | None, validate: Path | None, **others: object
) -> "ExportSettings":
    from typing import Any

    from lw_retinanet.cli.console import one_of
    from lw_retinanet.exporting.run import ExportSettings
    from lw_retinanet.files import existing

    for data in (calibrate, validate):
        if data is not None:
            existing(data, "data set")
    values: dict[str, Any] = dict(others)
    return ExportSettings(
        format=one_of(("onnx", "openvino", "triton"), file_format, "format"),
        precision=one_of(("fp32", "bf16", "int8"), precision, "precision"),
        head=one_of(("light", "full"), head, "head"),
        calibrate=calibrate,
        validate=validate,
        **values,
    )
