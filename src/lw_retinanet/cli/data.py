"""``lw-retinanet data``: look at a data set before training on it."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import names, one_of, print_json, say, say_error, with_bar
from lw_retinanet.data.formats.table import FORMATS

app = typer.Typer(help="Check, look at and convert data sets.", no_args_is_help=True)
_DATA = typer.Argument(help=f"Folder or annotation file: {', '.join(FORMATS).upper()}, recognised by content.")

_CLASSES = typer.Option(None, help="Names of the only classes that are read, separated by commas [default: all].")


@app.command("check")
def check_command(
    data: Path = _DATA,
    split: str | None = typer.Option(None, help="Only this split."),
    classes: str | None = _CLASSES,
    image_size: int = typer.Option(640, min=32, max=4096, help="Longer side for the anchor recall, pixels."),
    quick: bool = typer.Option(False, "--quick", help="Read only the headers of the images; else every image is decoded."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """List every problem of a data set, its classes, its box sizes and how well anchors cover them; exit code 2 on errors."""
    from lw_retinanet.jobs.data import check_data

    checked = check_data(data, split=split, classes=names(classes), image_size=image_size, quick=quick, progress=with_bar)
    if json:
        print_json(checked.as_dict())
    else:
        say("\n".join(checked.lines()))
    if count := checked.report.num_errors:
        say_error(f"{data} has {count:,} errors, listed in the report; correct them and check again")
        raise typer.Exit(2)


@app.command("preview")
def preview_command(
    data: Path = _DATA,
    out: Path = typer.Option(..., help="Folder for the figures."),
    split: str | None = typer.Option(None, help="Only this split [default: the first]."),
    classes: str | None = _CLASSES,
    count: int = typer.Option(16, min=1, max=10_000, help="Number of images."),
    seed: int = typer.Option(0, help="Seed for the choice of images."),
) -> None:
    """Draw the boxes into some images, with every class among them."""
    from lw_retinanet.jobs.data import preview_data

    files = preview_data(data, out, split=split, classes=names(classes), count=count, seed=seed)
    say(f"{len(files) - 1} images in {out}, all of them in {files[-1]}")


@app.command("convert")
def convert_command(
    data: Path = _DATA,
    to: str = typer.Option(..., help=f"Annotation format to write: {', '.join(FORMATS)}."),
    out: Path = typer.Option(..., help="New or empty folder."),
    classes: str | None = _CLASSES,
    copy_images: bool = typer.Option(True, help="Copy the images too."),
    turned: str | None = typer.Option(
        None, help="Where boxes fit the stored pixels of images that an EXIF tag turns: turn the boxes, or drop the tag of the images."
    ),
) -> None:
    """Write a data set in another annotation format, and say what that format cannot hold."""
    from lw_retinanet.data.convert import Turned
    from lw_retinanet.jobs.data import convert_data

    known: tuple[Turned, ...] = ("boxes", "images")
    conversion = convert_data(
        data,
        out,
        to=to,
        classes=names(classes),
        copy_images=copy_images,
        turned=one_of(known, turned, "turned") if turned is not None else None,
    )
    say(f"{conversion.images:,} images, {conversion.boxes:,} boxes as {conversion.form} in {conversion.out}")
    for loss in conversion.losses:
        say(f"  {loss}")


@app.command("split")
def split_command(
    data: Path = _DATA,
    out: Path = typer.Option(..., help="New or empty folder."),
    val: float = typer.Option(0.2, help="Share of the images for val, between 0 and 1."),
    group: str | None = typer.Option(
        None, help="Regular expression: images whose file names have the same match stay together, for example '^[^_]+'."
    ),
    classes: str | None = _CLASSES,
    seed: int = typer.Option(0, help="Seed for the choice of images."),
    copy_images: bool = typer.Option(True, help="Copy the images too."),
) -> None:
    """Divide a data set without a val split into train and val, by images, with the classes balanced."""
    from lw_retinanet.jobs.data import split_data

    done = split_data(data, out, val=val, group=group, seed=seed, copy_images=copy_images, classes=names(classes))
    say(f"{done.images:,} images, {done.boxes:,} boxes as {done.form} in {done.out}: train.json, val.json")
