"""``lw-retinanet evaluate``."""

import sys
from pathlib import Path

import typer

from lw_retinanet.cli.console import checked_precision, names, print_json, say, with_bar
from lw_retinanet.detection.tiling import Tiling


def evaluate_command(
    model: Path | None = typer.Argument(None, help="Model file, run folder, exported file or torchvision:NAME."),
    data: Path | None = typer.Argument(None, help="Data set."),
    split: str | None = typer.Option(None, help="Split of the data set [default: val, if there are splits]."),
    classes: str | None = typer.Option(None, help="Names of the only classes that count, separated by commas [default: all]."),
    ground_truth: Path | None = typer.Option(None, help="Annotation file, for --detections."),
    detections: Path | None = typer.Option(None, help="COCO results file, or what predict wrote, to score instead of a model."),
    out: Path | None = typer.Option(None, help="Folder for detections.json, metrics.json and figures."),
    head: str | None = typer.Option(
        None, help="Head of a lightened model: light, or full, the one it had before [default: light, or the one in an exported file]."
    ),
    precision: str = typer.Option("fp32", help="Of the network: fp32, bf16, fp16 (GPUs), or auto: fp32 or bf16, as measured."),
    device: str = typer.Option("auto", help="auto, cpu, cuda or mps."),
    batch_size: int = typer.Option(1, min=1, max=1024, help="Images at a time."),
    max_pixels: int = typer.Option(64_000_000, min=1, help="Refuse images with more pixels; decoding one takes about 8 bytes a pixel."),
    max_detections: int = typer.Option(
        100, min=11, max=100_000, help="Detections of an image and class that are scored; COCO's limit is 100."
    ),
    tile: int | None = typer.Option(None, help="Cut images into tiles of so many pixels a side."),
    overlap: float = typer.Option(0.2, help="Share of a tile that the next one has, too; larger than the objects."),
    whole_image: bool = typer.Option(False, "--whole-image", help="Also look at the image as a whole, for objects larger than a tile."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Score a model on a data set, or a file of detections against a file of annotations, with the COCO metrics."""
    from lw_retinanet.evaluation.report import class_table, summary_table
    from lw_retinanet.jobs.evaluate import run_evaluation

    metrics = run_evaluation(
        model,
        data,
        split=split,
        classes=names(classes),
        ground_truth=ground_truth,
        detections=detections,
        out=out,
        head=head,
        precision=checked_precision(precision),
        device=device,
        batch_size=batch_size,
        max_pixels=max_pixels,
        max_detections=max_detections,
        tiling=Tiling.of(tile, overlap=overlap, whole_image=whole_image),
        progress=with_bar,
    )
    for note in metrics.notes:
        print(f"note: {note.replace('max_detections to', '--max-detections')}", file=sys.stderr)
    if json:
        print_json(metrics.as_dict())
    else:
        say(f"{summary_table(metrics)}\n\n{class_table(metrics)}")
