"""``lw-retinanet predict``."""

import sys
from pathlib import Path

import typer


def predict_command(
    model: Path = typer.Argument(help="Model file or run folder."),
    sources: list[str] = typer.Argument(help="Pictures, folders, globs."),
    out: Path | None = typer.Option(
        None, help="Folder for pictures with boxes, predictions.json and results.json (COCO) [default: predictions, without --json]."
    ),
    score: float = typer.Option(0.3, min=0.0, max=0.999, help="Smallest score that is shown."),
    head: str | None = typer.Option(
        None, help="Of a lightened model: light, or full, the one it had before [default: light, or the one in an exported file]."
    ),
    precision: str = typer.Option("fp32", help="Of the network: fp32, bf16, or auto: the faster one, measured at the first picture."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    batch_size: int = typer.Option(1, min=1, max=1024, help="Pictures at a time, of equal size when resized; more than 1 helps a GPU."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Find objects in pictures; a picture that cannot be read is named, the others go on, and the exit code is 1."""
    from lw_retinanet.api import load
    from lw_retinanet.cli.console import checked_precision, print_json, with_bar
    from lw_retinanet.data.image_files import find_images
    from lw_retinanet.detection.collect import Collection
    from lw_retinanet.errors import ImageError
    from lw_retinanet.files import output_folder

    checked = checked_precision(precision)
    files = find_images(sources)
    folder = out or (None if json else Path("predictions"))
    collection = Collection(folder and output_folder(folder), files)
    detector = load(model, device=device, precision=checked)
    if head is not None:
        detector = detector.with_head(head)
    failed = 0
    for result in with_bar(detector.predict_files(files, score=score, batch_size=batch_size), len(files), "predict"):
        if isinstance(result, ImageError):
            failed += 1
            print(f"error: {' '.join(str(result).split())}", file=sys.stderr)
        else:
            collection.add(result)
    collection.write()
    if json:
        print_json(collection.as_dict())
    else:
        found = sum(len(image["detections"]) for image in collection.as_dict()["images"])
        print(f"{found} objects in {len(files) - failed} pictures; see {folder}")
    if failed:
        raise typer.Exit(1)
