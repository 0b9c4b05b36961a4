"""``lw-retinanet ship``."""

from pathlib import Path

import typer

from lw_retinanet.cli.console import print_json, say, with_bar
from lw_retinanet.heads import presets_in_words


def ship_command(
    model: str = typer.Argument(help="Trained model file, run folder, checkpoint of another framework, or torchvision:NAME."),
    data: Path = typer.Option(help="Data set: images of train are looked at, boxes of val measure AP."),
    out: Path = typer.Option(help="Folder for models, results.md and figures; if it was interrupted, it goes on."),
    max_drop: float = typer.Option(0.5, min=0.0, max=100.0, help="Points of AP that the shipped file may lose against the original."),
    to: str = typer.Option("", help=f"Preset: {presets_in_words()} [default: lw-narrow, without --budget]."),
    budget: float | None = typer.Option(None, min=0.0, help="GMACs to stay within at the model's size; without --to the plan is found."),
    epochs: int = typer.Option(0, min=0, help="Epochs of training with the labels of train after lightening, the old head teaching."),
    classes: str | None = typer.Option(None, help="Classes of a checkpoint that names none: see convert --classes."),
    fit_steps: int = typer.Option(1500, min=0, help="Steps of the fit, without labels; 0 stops after the closed form."),
    rounds: int = typer.Option(30, min=2, help="Rounds of timing; in each, every form runs once."),
    seed: int = typer.Option(0, min=0, help="Seed for the choice of images and for the order of fit and training."),
    device: str = typer.Option("auto", help="auto, cpu or cuda."),
    json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Lighten a trained detector, export it in the form that is fastest here with AP inside the limit, and write the receipt on a page."""
    from lw_retinanet.jobs.ship import ShipSettings, run_ship

    settings = ShipSettings(
        to=to or None,
        budget=budget,
        max_drop=max_drop,
        epochs=epochs,
        classes=classes,
        fit_steps=fit_steps,
        rounds=rounds,
        seed=seed,
        device=device,
    )
    shipment = run_ship(model, data, out, settings, progress=with_bar)
    if json:
        print_json(shipment.as_dict())
    else:
        say("\n".join([*shipment.lines(), f"page: {shipment.page}"]))
    if shipment.shipped is None:
        raise typer.Exit(1)
