"""``lw-retinanet data``: look at a data set before training on it."""

import sys
from pathlib import Path

import typer

from lw_retinanet.data.formats.table import FORMATS

app = typer.Typer(help="Check, look at and convert data sets.", no_args_is_help=True)


_DATA = typer.Argument(help=f"Folder or annotation file: {', '.join(FORMATS).upper()}, recognised by content.")


@app.command("check")
def check_command(
    data: Path = _DATA,
    split: str | None = typer.Option(None, help="Only this split."),
    image_size: int = typer.Option(640, min=32, max=4096, help="Longer side for the anchor recall, pixels."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """List every problem of a data set, its classes, its box sizes and how well anchors cover them; exit code 2 on errors."""
    from lw_retinanet.cli.console import existing, print_json
    from lw_retinanet.data.check import check
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.data.image_sizes import with_sizes
    from lw_retinanet.errors import DataError, ImageError
    from lw_retinanet.training.anchor_recall import anchor_recall

    dataset = Dataset.open(existing(data, "data set"))
    report = check(dataset, split)
    recalls = {}
    names: list[str | None] = [split] if split else [*dataset.splits] or [None]
    for name in names:
        try:
            records = with_sizes(dataset.read(name))
        except (DataError, ImageError):
            continue  # the report says why
        recalls[name] = anchor_recall(records, image_size)
    if json:
        print_json({**report.as_dict(), "anchor_recall": {name or "all": recall.as_dict() for name, recall in recalls.items()}})
    else:
        print("\n".join(report.lines()))
        for name, recall in recalls.items():
            print("\n".join([f"{name}:" if name else "", *recall.lines()]).strip())
    if report.num_errors:
        print(f"error: {data} has {report.num_errors:,} errors, listed in the report; correct them and check again", file=sys.stderr)
        raise typer.Exit(2)


@app.command("preview")
def preview_command(
    data: Path = _DATA,
    out: Path = typer.Option(..., help="Folder for the pictures."),
    split: str | None = typer.Option(None, help="Only this split [default: the first]."),
    count: int = typer.Option(16, min=1, max=10_000, help="Number of pictures."),
    seed: int = typer.Option(0, help="Which pictures."),
) -> None:
    """Draw the boxes into some pictures, every class among them."""
    from lw_retinanet.cli.console import existing
    from lw_retinanet.data.dataset import Dataset
    from lw_retinanet.data.preview import preview

    dataset = Dataset.open(existing(data, "data set"))
    files = preview(dataset.read(split or next(iter(dataset.splits), None)), out, count=count, seed=seed)
    print(f"{len(files) - 1} pictures in {out}, all of them in {files[-1]}")


@app.command("convert")
def convert_command(
    data: Path = _DATA,
    to: str = typer.Option(..., help=f"Target format: {', '.join(FORMATS)}."),
    out: Path = typer.Option(..., help="New or empty folder."),
    copy_images: bool = typer.Option(True, help="Copy the pictures too."),
) -> None:
    """Write a data set in another format, and say what that format cannot carry."""
    from lw_retinanet.cli.console import existing
    from lw_retinanet.data.convert import convert
    from lw_retinanet.data.dataset import Dataset

    dataset = Dataset.open(existing(data, "data set"))
    records = {split: dataset.read(split) for split in dataset.splits} or dataset.read()
    conversion = convert(records, to, out, copy_images=copy_images)
    print(f"{conversion.images:,} images, {conversion.boxes:,} boxes as {conversion.form} in {conversion.out}")
    for loss in conversion.losses:
        print(f"  {loss}")
